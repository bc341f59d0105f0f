-- Passes a wake-up that nobody here can use to the next worker that waits. After wake.lua.
-- KEYS: {rep}wait:<ceiling> of each ceiling.
-- ARGV[1]: JSON {worker}.
-- Return: {ceilings (1-based) at which the worker itself was next: it has been refused again meanwhile}.
-- Invariant: each call removes at least one registration or finds none, so passing on ends.

local plan = cjson.decode(ARGV[1])
local woken = {}
for i, key in ipairs(KEYS) do
  if wake(key, 1, plan.worker) == 1 then
    woken[#woken + 1] = i
  end
end
return woken
