-- Takes from message paces for many requests at once. After gcra.lua.
-- KEYS: {rep}pace:<pace> of each pace (string: TAT in µs).
-- ARGV[1]: JSON {paces [[limit, period µs, burst], …], requests [[wanted, [pace, …]], …]}, 1-based numbers of paces.
-- Return: three numbers per request: granted, µs until one more fits (0 when all were granted), binding pace or 0.
-- Invariant: a request is granted the least that fits in all its paces, and each is paid just that; earlier requests
--   come first. A repeat after a lost reply pays twice: it may make a pace slower, never faster.

local plan = cjson.decode(ARGV[1])
local now = clock()
local paces, answer = {}, {}
for p, rate in ipairs(plan.paces) do
  paces[p] = open_pace(KEYS[p], now, rate[1], rate[2], rate[3])
end
for _, request in ipairs(plan.requests) do
  local granted, wait, binding = request[1], 0, 0
  for _, p in ipairs(request[2]) do
    granted = math.min(granted, fits(paces[p]))
  end
  if granted > 0 then
    for _, p in ipairs(request[2]) do
      pay(paces[p], granted)
    end
  end
  if granted < request[1] then
    for _, p in ipairs(request[2]) do
      local longest = patience(paces[p])
      if longest > wait then
        wait, binding = longest, p
      end
    end
  end
  answer[#answer + 1] = granted
  answer[#answer + 1] = wait
  answer[#answer + 1] = binding
end
for _, pace in ipairs(paces) do
  keep_pace(pace, now)
end
return answer
