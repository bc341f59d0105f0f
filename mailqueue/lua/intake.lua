-- intake: whether new mail is taken at all. Fields intake (why not), intake_since and intake_until (ms, 0 = until it is
-- started) of meta in shard 0; no field = it is taken.
-- KEYS: prefix, events. ARGV: verb, reason, seconds (0 = until it is started), event.
--   verb read | stop | start. A stop whose time is over is taken out by whoever reads it first.
-- Returns what was there: {reason, since, until}, or nothing. The event is written where something changed.
local verb, reason, seconds, event = ARGV[1], ARGV[2], tonumber(ARGV[3] or '0'), ARGV[4]
local meta = P .. 'meta'
local there = call('HMGET', meta, 'intake', 'intake_since', 'intake_until')
local over = tonumber(there[3] or '0') or 0
if there[1] and over > 0 and over <= now then
  call('HDEL', meta, 'intake', 'intake_since', 'intake_until')
  there = {}
end
if verb == 'stop' then
  local till = seconds > 0 and now + math.ceil(seconds * 1000) or 0
  local since = there[1] and there[2] or string.format('%d', now)
  call('HSET', meta, 'intake', reason, 'intake_since', since, 'intake_until', string.format('%d', till))
  emit(event)
elseif verb == 'start' and there[1] then
  call('HDEL', meta, 'intake', 'intake_since', 'intake_until')
  emit(event)
end
return there[1] and { there[1], there[2] or '0', there[3] or '0' } or {}
