-- Heartbeat: extends all leases of one worker and makes missing ones anew where there is room.
-- KEYS: {rep}lease:<ceiling> of each ceiling (zset: "<worker>/<token>" by expiry in ms).
-- ARGV[1]: JSON {lease (ms), members ["<worker>/<token>", …],
--          ceilings [[most, [member, …]] of each key in turn]} with 1-based numbers of members.
-- Return: {members lost}, {members made anew}.
-- Invariant: what is still there is extended before anything is pruned, expired or not; a lease that is missing (pruned
--   after a silence or a step of the clock, or the server lost it) is made anew if no ceiling gets over `most` by it,
--   else it is lost and left as it is: the connection is still open until its worker releases it. A repeat changes nothing.

local call = redis.call
local plan = cjson.decode(ARGV[1])
local time = call('TIME')
local ms = math.floor(time[1] * 1000 + time[2] / 1000)
local expiry = ms + plan.lease
local LONGEST = 600000 -- ms, as in connect.lua
local PIECE = 1000 -- members per command: unpack fills Lua's stack

local function extend(i, numbers, missing)
  local key = KEYS[i]
  for from = 1, #numbers, PIECE do
    local members, present = {}, {}
    for n = from, math.min(from + PIECE - 1, #numbers) do
      members[#members + 1] = plan.members[numbers[n]]
    end
    local scores = call('ZMSCORE', key, unpack(members))
    for n, member in ipairs(members) do
      if scores[n] then
        present[#present + 1] = expiry
        present[#present + 1] = member
      else
        local number = numbers[from + n - 1]
        missing[number] = missing[number] or {}
        table.insert(missing[number], i)
      end
    end
    if #present > 0 then
      call('ZADD', key, unpack(present))
    end
  end
  call('PEXPIRE', key, LONGEST)
end

local function has_room(i)
  call('ZREMRANGEBYSCORE', KEYS[i], '-inf', ms)
  return call('ZCARD', KEYS[i]) < plan.ceilings[i][1]
end

local missing, lost, anew = {}, {}, {}
for i, ceiling in ipairs(plan.ceilings) do
  extend(i, ceiling[2], missing)
end
for number = 1, #plan.members do
  local places = missing[number]
  if places then
    local room = true
    for _, i in ipairs(places) do
      room = room and has_room(i)
    end
    for _, i in ipairs(room and places or {}) do
      call('ZADD', KEYS[i], expiry, plan.members[number])
      call('PEXPIRE', KEYS[i], LONGEST)
    end
    table.insert(room and anew or lost, number)
  end
end
return { lost, anew }
