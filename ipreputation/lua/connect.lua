-- Takes connection leases for several candidates, in their order, and pays their opening paces. After gcra.lua, wake.lua.
-- KEYS: per ceiling two, {rep}lease:<ceiling> (zset: "<worker>/<token>" by expiry in ms) and {rep}wait:<ceiling>;
--       then per pace one, {rep}pace:<pace> (string: TAT in µs).
-- ARGV[1]: JSON {worker, lease (ms), want, each, members ["<worker>/<token>" × want], again,
--          keep [ceiling, …], ceilings [most, …], paces [[limit, period µs, burst], …],
--          candidates [[[ceiling, …], [pace, …]], …]} with 1-based numbers of ceilings and paces.
-- Return: {candidate of each member in turn, 0 = not granted}, wait in µs or -1, binding ceiling (> 0) or pace (< 0),
--         {ceilings at which the worker now waits}, {ceilings at which the worker itself was woken}.
-- Registration: one per worker and ceiling, however many of its flows wait. So a worker that was woken is registered again
--   by the connect that follows (`keep`): if its other flows wait no more, the next wake-up is passed on.
-- Invariant: no ceiling holds more live leases than `most` by what is granted here; a lease is in all its ceilings or in
--   none; a ceiling that was looked at and has room has no waiter left. With `again` (the reply was lost) members that
--   hold leases are answered as they are, nothing more is taken.

local plan = cjson.decode(ARGV[1])
local now = clock()
local ms = math.floor(now / 1000)
local rooms, paces, full = {}, {}, {}
local LONGEST = 600000 -- ms; no lease is longer, so a later expiry is from before the clock stepped back

local function room(i)
  if not rooms[i] then
    local key = KEYS[2 * i - 1]
    call('ZREMRANGEBYSCORE', key, '-inf', ms)
    rooms[i] = plan.ceilings[i] - call('ZCARD', key)
  end
  return rooms[i]
end

local function register(i)
  call('ZADD', KEYS[2 * i], 'NX', now, plan.worker)
  call('PEXPIRE', KEYS[2 * i], 2 * plan.lease)
end

local function pace(p)
  if not paces[p] then
    local rate = plan.paces[p]
    paces[p] = open_pace(KEYS[2 * #plan.ceilings + p], now, rate[1], rate[2], rate[3])
  end
  return paces[p]
end

local function until_expiry(i) -- µs until enough leases of a full ceiling would expire
  if plan.ceilings[i] <= 0 then
    return plan.lease * 1000
  end
  local key, rank = KEYS[2 * i - 1], 0 - rooms[i] -- not -0, which Redis 7 reads as no integer
  for _, member in ipairs(call('ZRANGEBYSCORE', key, ms + LONGEST, '+inf')) do
    call('ZADD', key, ms + plan.lease, member)
  end
  local entry = call('ZRANGE', key, rank, rank, 'WITHSCORES')
  return (entry[2] - ms + 1) * 1000
end

local function blockage(candidate) -- the limit that holds this candidate back longest: µs, its number
  local longest, binding = -1, 0
  for _, i in ipairs(candidate[1]) do
    if room(i) <= 0 then
      full[i] = full[i] or until_expiry(i)
      if full[i] > longest then
        longest, binding = full[i], i
      end
    end
  end
  for _, p in ipairs(candidate[2]) do
    local wait = patience(pace(p))
    if fits(pace(p)) < 1 and wait > longest then
      longest, binding = wait, -p
    end
  end
  return longest, binding
end

local function held_already()
  local grants, found = {}, false
  for k, member in ipairs(plan.members) do
    grants[k] = 0
    for c, candidate in ipairs(plan.candidates) do
      local first = candidate[1][1]
      if first and call('ZSCORE', KEYS[2 * first - 1], member) then
        grants[k], found = c, true
        break
      end
    end
  end
  return found and grants
end

local earlier = plan.again and held_already()
if earlier then
  return { earlier, -1, 0, {}, {} }
end

for _, i in ipairs(plan.keep) do
  room(i)
  register(i)
end
local grants, granted, wait, binding = {}, 0, -1, 0
for c, candidate in ipairs(plan.candidates) do
  local quota = math.min(plan.each, plan.want - granted)
  if quota <= 0 then
    break
  end
  local count = quota
  for _, i in ipairs(candidate[1]) do
    count = math.min(count, room(i))
  end
  for _, p in ipairs(candidate[2]) do
    count = math.min(count, fits(pace(p)))
  end
  for _ = 1, count do
    granted = granted + 1
    grants[granted] = c
    for _, i in ipairs(candidate[1]) do
      call('ZADD', KEYS[2 * i - 1], ms + plan.lease, plan.members[granted])
      call('PEXPIRE', KEYS[2 * i - 1], LONGEST)
      rooms[i] = rooms[i] - 1
    end
  end
  if count > 0 then
    for _, p in ipairs(candidate[2]) do
      pay(pace(p), count)
    end
  end
  if count < quota then
    local longest, limit = blockage(candidate)
    if wait < 0 or longest < wait then
      wait, binding = longest, limit
    end
  end
end

for _, p in pairs(paces) do
  keep_pace(p, now)
end
local waiting, woken = {}, {}
for i, left in pairs(rooms) do
  if left > 0 then
    if wake(KEYS[2 * i], left, plan.worker) == 1 then
      woken[#woken + 1] = i
    end
  elseif granted < plan.want and full[i] then
    register(i)
    waiting[#waiting + 1] = i
  end
end
for k = granted + 1, plan.want do
  grants[k] = 0
end
return { grants, granted < plan.want and wait or -1, binding, waiting, woken }
