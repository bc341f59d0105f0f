-- Returns what was taken from message paces and not used. After gcra.lua.
-- KEYS: {rep}pace:<pace> of each pace (string: TAT in µs).
-- ARGV[1]: JSON {paces [[limit, period µs, burst], …], requests [[count, [pace, …]], …]}, 1-based numbers of paces.
-- Return: 1.
-- Invariant: no pace gets below idle. Never repeated by the caller: a repeat would give back twice.

local plan = cjson.decode(ARGV[1])
local now = clock()
local paces = {}
for p, rate in ipairs(plan.paces) do
  paces[p] = open_pace(KEYS[p], now, rate[1], rate[2], rate[3])
end
for _, request in ipairs(plan.requests) do
  for _, p in ipairs(request[2]) do
    if paces[p].limit > 0 then
      pay(paces[p], -request[1])
    end
  end
end
for _, pace in ipairs(paces) do
  keep_pace(pace, now)
end
return 1
