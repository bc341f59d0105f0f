-- rate: accepted recipients per calendar minute, hour and day of an account, counted for all processes.
-- KEYS: prefix "{quota}:", unused. ARGV: n × (account, count, 3 × (window's begin, limit or 0)); a count less than none
-- gives back, in windows that still run.
-- Returns per entry 0 = taken, else the number of the window (1 minute, 2 hour, 3 day) that has no room: nothing taken.
-- Invariant: no window counts more than its limit. Who lags behind the clock of the others counts in their window.
local P, call = KEYS[1], redis.call
local answers = {}
for at = 1, #ARGV, 8 do
  local key, count, full = P .. 'rate:' .. ARGV[at], tonumber(ARGV[at + 1]), 0
  local facts = call('HMGET', key, 'b1', 'n1', 'b2', 'n2', 'b3', 'n3')
  local begins, counts = {}, {}
  for window = 1, 3 do
    local begin, limit = tonumber(ARGV[at + window * 2]), tonumber(ARGV[at + 1 + window * 2])
    local there = tonumber(facts[window * 2 - 1] or 0)
    begins[window] = math.max(begin, there)
    counts[window] = there >= begin and tonumber(facts[window * 2] or 0) or 0
    if count > 0 then
      if full == 0 and limit > 0 and counts[window] + count > limit then full = window end
      counts[window] = counts[window] + count
    elseif there == begin then
      counts[window] = math.max(0, counts[window] + count)
    end
  end
  if full == 0 then
    call('HSET', key, 'b1', begins[1], 'n1', counts[1], 'b2', begins[2], 'n2', counts[2], 'b3', begins[3], 'n3', counts[3])
    call('PEXPIRE', key, 2 * 86400 * 1000)
  end
  answers[#answers + 1] = full
end
return answers
