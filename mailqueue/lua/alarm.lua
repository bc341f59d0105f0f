-- alarm: something to be looked at, or no longer.
-- KEYS: prefix, events (of shard 0). ARGV: name, "1" on or "0" off, count, reason, event.
-- Returns 1 when it was not so before, else 0.
-- Invariant: the event is written with the change, once, however many maintenance processes see it; while an alarm stays
-- on its reason and count follow and the time it began stays.
local key, name = P .. 'alarms', ARGV[1]
if ARGV[2] ~= '1' then
  if call('HDEL', key, name) == 0 then return 0 end
  emit(ARGV[5])
  return 1
end
local there = call('HGET', key, name)
local since = there and string.match(there, '^%d+') or string.format('%.0f', now)
call('HSET', key, name, since .. ' ' .. ARGV[3] .. ' ' .. ARGV[4])
if there then return 0 end
emit(ARGV[5])
return 1
