-- worker: the life of a worker's lease.
-- KEYS: prefix, events. ARGV: verb, …
--   join, lease ms, name        → new epoch
--   extend, epoch, lease ms     → the time here (ms), or 0 when the lease was taken away (its items went back)
--   leave, epoch                → 1; its remaining items are left to the reaper at once
--   mark, epoch, n × (item, policy) → per item 1, or 0 when it is not this worker's any more: then the final dot must not be sent
-- Invariant: an epoch is never reused; one that the reaper has buried stays dead.
local verb, epoch = ARGV[1], ARGV[2]
if verb == 'join' then
  epoch = call('HINCRBY', P .. 'meta', 'epoch', 1)
  call('ZADD', P .. 'w', now + tonumber(ARGV[2]), epoch)
  call('HSET', P .. 'workers', epoch, ARGV[3])
  return epoch
end
if verb == 'extend' then
  if not call('ZSCORE', P .. 'w', epoch) then return 0 end
  call('ZADD', P .. 'w', now + tonumber(ARGV[3]), epoch)
  return now
end
if verb == 'leave' then
  if call('ZSCORE', P .. 'w', epoch) then call('ZADD', P .. 'w', 0, epoch) end
  return 1
end
local held, answer = P .. 'w:' .. epoch, {}
local expiry = tonumber(call('ZSCORE', P .. 'w', epoch) or 0)
for index = 3, #ARGV, 2 do
  local stamp = expiry > now and call('HGET', held, ARGV[index])
  if stamp then
    call('HSET', held, ARGV[index], stamp .. '\n' .. ARGV[index + 1])
    answer[#answer + 1] = 1
  else
    answer[#answer + 1] = 0
  end
end
return answer
