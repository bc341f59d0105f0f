-- Fragment, put before scripts that free slots: wakes workers that a refused connect left waiting at a ceiling.
-- KEYS, ARGV: none of its own. Registration: zset {rep}wait:<ceiling>, member = worker, score = µs of the first refusal.
-- Return: 1 when the calling worker itself was among those woken (it is told in the reply, not by a message), else 0.
-- Invariant: each unit of count goes to one worker that listens, or nobody waits any more. A worker without a
-- listening connection is dropped: it asks for itself again when its listener is back.

local WAIT, FREED = '{rep}wait:', '{rep}freed:'

local function wake(key, count, caller)
  local woken = 0
  while count > 0 do
    local first = redis.call('ZPOPMIN', key)
    if #first == 0 then
      break
    end
    if first[1] == caller then
      woken, count = 1, count - 1
    elseif redis.call('PUBLISH', FREED .. first[1], string.sub(key, #WAIT + 1)) > 0 then
      count = count - 1
    end
  end
  return woken
end
