-- accounts: the accounts kept in the queue, read and changed as a whole. Called on shard 0 alone.
-- KEYS: prefix, events. ARGV: verb, …
--   read                                             → version, then n × (name, record)
--   change, token, seconds, e, e × event, n × (name, revision, what) → version | "CONFLICT", name, revision there (0 = no such account)
-- A record is "<revision> <changed at, ms> <what>"; what = "" removes. revision = the one that was read, 0 = the name
-- must be free. All changes are made or none. A token seen in the last `seconds` changes nothing and gets its answer
-- again: a repetition after a lost answer is harmless. The events are written with the change or not at all.
-- Invariant: every change raises the version by one, a record's revision is the version that wrote it, so no
-- revision is given twice; whoever listens on the channel is told.
local accounts, verb = P .. 'accounts', ARGV[1]
if verb == 'read' then
  local answer = call('HGETALL', accounts)
  table.insert(answer, 1, call('HGET', P .. 'meta', 'accounts') or '0')
  return answer
end
local token = P .. 'ac:' .. ARGV[2]
local before = call('GET', token)
if before then return { before } end
local first = 5 + tonumber(ARGV[4])
for at = first, #ARGV, 3 do
  local there = call('HGET', accounts, ARGV[at])
  local revision = there and string.match(there, '^%d+') or '0'
  if revision ~= ARGV[at + 1] then return { 'CONFLICT', ARGV[at], revision } end
end
local version = call('HINCRBY', P .. 'meta', 'accounts', 1)
for at = first, #ARGV, 3 do
  if ARGV[at + 2] == '' then
    call('HDEL', accounts, ARGV[at])
  else
    call('HSET', accounts, ARGV[at], version .. ' ' .. string.format('%.0f', now) .. ' ' .. ARGV[at + 2])
  end
end
for at = 5, first - 1 do emit(ARGV[at]) end
call('SET', token, version, 'EX', ARGV[3])
call('PUBLISH', P .. 'accounts', version)
return { tostring(version) }
