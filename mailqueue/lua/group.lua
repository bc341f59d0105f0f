-- group: groups of consumers of the events: how far each has read, and who reads for it now. Called on shard 0 alone.
-- KEYS: prefix, events. ARGV: verb, …  (positions = n × (shard, stream id): everything up to it is acknowledged)
--   list                                       → n × (name, fields and values)
--   create, name, owner, kinds, most, event, positions  → 1 · 0 = there is one · -1 = there are `most` groups already
--   take, name, owner, kinds, lease ms, holder, token
--       → TAKEN, epoch, kinds, fields and values | BUSY, ms left, holder | OWNER, owner | NONE. owner "" and kinds "*"
--         say nothing. The same token again, after a lost answer, gets the same epoch.
--   ack, name, epoch, lease ms, positions      → OK | LOST, why | NONE
--   leave, name, epoch                         → 1, or 0 when the lease had gone to somebody else
--   rewind, name, event, why, positions        → 1, or 0 = there is none
--   remove, name, event                        → the same
--   forget, name, event, ms                    → 1 when nobody has read since `ms`, and no lease ran then
-- The event ("" = none) is written with the change.
-- Invariants: one holder an epoch, and each take and rewind has a new epoch; only the holder of the last one moves a
-- position, and only forwards. A lease that has run out and that nobody took is still its holder's.
local verb, name = ARGV[1], ARGV[2]
local index = P .. 'groups'
local function key_of(group) return P .. 'gr:' .. group end

local function later(one, other)
  local ms, sequence = string.match(one, '^(%d+)-(%d+)$')
  local ms2, sequence2 = string.match(other, '^(%d+)-(%d+)$')
  if tonumber(ms) ~= tonumber(ms2) then return tonumber(ms) > tonumber(ms2) end
  return tonumber(sequence) > tonumber(sequence2)
end

local function stamp() return string.format('%.0f', now) end

if verb == 'list' then
  local answer = {}
  for _, group in ipairs(call('SMEMBERS', index)) do
    answer[#answer + 1] = group
    answer[#answer + 1] = call('HGETALL', key_of(group))
  end
  return answer
end

local key = key_of(name)
if verb == 'create' then
  if call('EXISTS', key) == 1 then return 0 end
  if call('SCARD', index) >= tonumber(ARGV[5]) then return -1 end
  call('SADD', index, name)
  call('HSET', key, 'owner', ARGV[3], 'kinds', ARGV[4], 'created', stamp(), 'read', stamp(), 'epoch', 0)
  for at = 7, #ARGV, 2 do call('HSET', key, 'p:' .. ARGV[at], ARGV[at + 1]) end
  emit(ARGV[6])
  return 1
end

local there = call('HMGET', key, 'epoch', 'owner', 'holder', 'until', 'token', 'why')
local epoch, owner, holder, till, token = there[1], there[2], there[3], tonumber(there[4] or 0), there[5]
if not epoch then
  if verb == 'take' or verb == 'ack' then return { 'NONE' } end
  return 0
end

if verb == 'take' then
  if ARGV[3] ~= '' and ARGV[3] ~= owner then return { 'OWNER', owner } end
  if token ~= ARGV[7] then
    if till > now then return { 'BUSY', string.format('%.0f', till - now), holder } end
    epoch = call('HINCRBY', key, 'epoch', 1)
    call('HSET', key, 'holder', ARGV[6], 'token', ARGV[7], 'why', 'taken over by ' .. ARGV[6])
    if ARGV[4] ~= '*' then call('HSET', key, 'kinds', ARGV[4]) end
  end
  call('HSET', key, 'until', string.format('%.0f', now + tonumber(ARGV[5])), 'read', stamp())
  return { 'TAKEN', tostring(epoch), call('HGET', key, 'kinds'), call('HGETALL', key) }
end

if verb == 'ack' then
  if epoch ~= ARGV[3] then return { 'LOST', there[6] or '' } end
  for at = 5, #ARGV, 2 do
    local field = 'p:' .. ARGV[at]
    local before = call('HGET', key, field)
    if not before or later(ARGV[at + 1], before) then call('HSET', key, field, ARGV[at + 1]) end
  end
  call('HSET', key, 'until', string.format('%.0f', now + tonumber(ARGV[4])), 'read', stamp())
  return { 'OK' }
end

if verb == 'leave' then
  if epoch ~= ARGV[3] then return 0 end
  call('HDEL', key, 'until', 'holder', 'token')
  return 1
end

if verb == 'rewind' then
  call('HINCRBY', key, 'epoch', 1)
  call('HDEL', key, 'until', 'holder', 'token')
  call('HSET', key, 'why', ARGV[4], 'read', stamp())
  for at = 5, #ARGV, 2 do call('HSET', key, 'p:' .. ARGV[at], ARGV[at + 1]) end
  emit(ARGV[3])
  return 1
end

if verb == 'forget' then
  local read = tonumber(call('HGET', key, 'read'))
  if math.max(read, till) >= tonumber(ARGV[4]) then return 0 end
end
call('DEL', key)
call('SREM', index, name)
emit(ARGV[3])
return 1
