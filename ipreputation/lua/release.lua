-- Gives connection leases back and wakes one waiter per freed slot. After wake.lua.
-- KEYS: per ceiling two, {rep}lease:<ceiling> (zset: "<worker>/<token>" by expiry in ms) and {rep}wait:<ceiling>.
-- ARGV[1]: JSON {worker, members [["<worker>/<token>", …] of each ceiling in turn], again}.
-- Return: {ceilings (1-based) at which the worker itself was woken}.
-- Invariant: a lease that is not there frees nothing, so a repeat changes nothing. With `again` (the reply was lost)
--   the worker is told of all ceilings: it may have been woken by the call whose reply it never read.

local plan = cjson.decode(ARGV[1])
local woken = {}
for i, members in ipairs(plan.members) do
  local freed = 0
  for _, member in ipairs(members) do
    freed = freed + redis.call('ZREM', KEYS[2 * i - 1], member)
  end
  if wake(KEYS[2 * i], freed, plan.worker) == 1 or plan.again then
    woken[#woken + 1] = i
  end
end
return woken
