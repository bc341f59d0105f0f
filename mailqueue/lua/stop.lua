-- stop: suspensions, which never touch an item.
-- KEYS: prefix, events. ARGV: verb, key, until ms (0 = until resumed), reason, event, audit event or "" (once something was done).
--   verb suspend | resume | away (as suspend, unless it is suspended so long already); key = flow:<id> |
--   account:<name> | campaign:<account>/<name> | provider:<group> | source:<address> | destination:<domain> |
--   route:<name> (flows of that pool, and lanes of that group)
--   verb group, key = <domain>, until = the provider group it belongs to
--   verb forget, then n × (hash "sus" or "stop", field, value): taken out where it is still so and its time is over
-- Returns 1, or 0 when there was nothing to do; forget: how many it took out.
-- A destination's reason that begins with "mx: " is delivery's: it does not hold for mail of a smarthost route.
-- Only destinations live outside `stop`: in `sus`, looked up when their turn comes.
local verb, key, till, reason = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if verb == 'forget' then
  local gone = 0
  for at = 2, #ARGV, 3 do
    local value = call('HGET', P .. ARGV[at], ARGV[at + 1])
    local over = tonumber(string.match(value or '', '^%d+'))
    if value == ARGV[at + 2] and over and over > 0 and over <= now then
      gone = gone + call('HDEL', P .. ARGV[at], ARGV[at + 1])
    end
  end
  return gone
end
local domain = string.match(key, '^destination:(.*)$')

local function each_flow(from, act)
  for _, class in ipairs({ 'e', 't', 'b' }) do
    local lane = class .. ':' .. from
    for _, flow in ipairs(call('ZRANGE', P .. 'lf:' .. lane, 0, -1)) do act(class, lane, flow) end
  end
end

if verb == 'group' then
  local from = group_of(key)
  if from == till then return 1 end
  each_flow(from, function(class, lane, flow)
    local score = call('ZSCORE', ready_key(lane, flow), key)
    if score then
      local to = class .. ':' .. till
      call('ZREM', ready_key(lane, flow), key)
      call('ZADD', ready_key(to, flow), score, key)
      local parked = call('ZSCORE', P .. 'lf:' .. lane, flow)
      if tonumber(parked) >= PARK and not call('ZSCORE', P .. 'lf:' .. to, flow) then
        call('ZADD', P .. 'lf:' .. to, PARK, flow)
      end
      touch(lane, flow)
      touch(to, flow)
    end
  end)
  if till == 'default' then call('HDEL', P .. 'dest', key) else call('HSET', P .. 'dest', key, till) end
  finish()
  return 1
end

if verb == 'away' then
  local there = tonumber(string.match(call('HGET', P .. (domain and 'sus' or 'stop'), domain or key) or '', '^%d+'))
  if there and (there == 0 or there >= tonumber(till)) then return 0 end
end
local changed = 1
if verb ~= 'resume' then
  if domain then
    call('HSET', P .. 'sus', domain, (till == '0' and '2900000000000000' or till) .. ' ' .. reason)
  else
    call('HSET', P .. 'stop', key, till .. ' ' .. reason)
  end
else
  changed = call('HDEL', domain and (P .. 'sus') or (P .. 'stop'), domain or key)
end
call('HINCRBY', P .. 'meta', 'stops', 1)
-- A shorter or lifted stop: whoever waits for the old time waits anew.
if domain then
  each_flow(group_of(domain), function(_, lane, flow)
    if call('ZSCORE', ready_key(lane, flow), domain) then settle_head(lane, flow, domain) end
  end)
elseif string.sub(key, 1, 7) ~= 'source:' then
  for _, group in ipairs(call('SMEMBERS', P .. 'lanes')) do
    for _, class in ipairs({ 'e', 't', 'b' }) do
      local lane = class .. ':' .. group
      for _, flow in ipairs(call('ZRANGEBYSCORE', P .. 'lf:' .. lane, WAIT, '+inf')) do
        call('ZREM', P .. 'lf:' .. lane, flow)
        touch(lane, flow)
      end
    end
  end
end
if changed == 1 then
  emit(ARGV[5])
  emit(ARGV[6])
end
finish()
ring()
return changed
