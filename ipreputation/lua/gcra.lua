-- Fragment, put before scripts that take paces: GCRA over one string key, in microseconds of the server's clock.
-- KEYS, ARGV: none of its own. State of a pace: TAT as a decimal string; a missing key is an idle pace.
-- Invariant: ipreputation/throttle.py decides the same; a TAT further ahead than a full bucket counts as a full bucket,
-- so neither a raised rate nor a clock that stepped back can block for longer than one step of the present rate.

local call = redis.call

local function clock() -- µs
  local time = call('TIME')
  return time[1] * 1000000 + time[2]
end

local function open_pace(key, now, limit, period, burst)
  local ahead, changed = 0, false
  if limit > 0 then
    local full = math.ceil(burst * period / limit)
    ahead = math.max(0, tonumber(call('GET', key) or 0) - now)
    if ahead > full then
      ahead, changed = full, true -- kept even if nothing is granted, else it would stay full until that far moment
    end
  end
  return { key = key, limit = limit, period = period, burst = burst, ahead = ahead, changed = changed }
end

local function fits(pace) -- how many may go now
  if pace.limit == 0 then
    return 0
  end
  return math.max(0, math.floor((pace.burst * pace.period - pace.ahead * pace.limit) / pace.period))
end

local function pay(pace, count) -- negative = give back, never below idle
  pace.ahead = math.max(0, pace.ahead + math.ceil(count * pace.period / pace.limit))
  pace.changed = true
end

local function patience(pace) -- µs until one more fits
  if pace.limit == 0 then
    return pace.period
  end
  return math.max(0, math.ceil((pace.ahead * pace.limit - (pace.burst - 1) * pace.period) / pace.limit))
end

local function keep_pace(pace, now) -- the key goes away by itself when the pace is idle again
  if pace.changed then
    local expiry = string.format('%.0f', math.ceil(pace.ahead / 1000) + 1000)
    call('SET', pace.key, string.format('%.0f', now + pace.ahead), 'PX', expiry)
  end
end
