-- due: tickets for a worker with free capacity. A ticket is the right to claim from one flow's queue for one
-- destination until its lease runs out; items stay where they are.
-- KEYS: prefix, events. ARGV: lease ms, quantum (items a ticket is charged for at most), wanted emergency, wanted
-- transactional, wanted bulk, b, b × lane without capacity, p, p × pool all of whose sources are stopped (its flows
-- are looked at again in five seconds) or "<class letter> <pool>" without capacity (in half a second). In lanes of a
-- group "route:<name>" that is the pool of all flows.
-- Returns: ms until the next time worth a look (0 = more is due now; -1 = when the bell rings), version of the source
-- stops, then per ticket: class letter, group, flow, destination, items due, pool.
-- Invariant: in a lane the ready flow with the least virtual time is served next; a flow's price is the number of
-- ready flows of its account over the account's weight, so that accounts share, not campaigns.
local lease, quantum = tonumber(ARGV[1]), tonumber(ARGV[2])
local wanted = { e = tonumber(ARGV[3]), t = tonumber(ARGV[4]), b = tonumber(ARGV[5]) }
local blocked = {}
for index = 7, 6 + tonumber(ARGV[6]) do blocked[ARGV[index]] = true end
local silent = {}
for index = 8 + tonumber(ARGV[6]), 7 + tonumber(ARGV[6]) + tonumber(ARGV[7 + tonumber(ARGV[6])]) do
  silent[ARGV[index]] = true
end
local MOST_STEPS = 2000 -- suspended destinations and stopped flows passed over in one call

local function wake(lane)
  local turn = P .. 'lf:' .. lane
  for _, flow in ipairs(call('ZRANGEBYSCORE', turn, WAIT, WAIT + now, 'LIMIT', 0, 500)) do
    call('ZREM', turn, flow)
    place(lane, flow)
  end
end

local weights = {}

local function charge(lane, flow, virtual, items)
  local key = P .. 'v:' .. lane
  local number = account_number(flow)
  local flows = tonumber(call('HGET', key, 'a:' .. number) or 1)
  weights[number] = weights[number] or tonumber(call('HGET', P .. 'weight', number) or 1)
  call('HSET', key, '#', virtual)
  call('ZINCRBY', P .. 'lf:' .. lane, string.format('%.6f', items * math.max(flows, 1) / weights[number]), flow)
end

local answer, steps = {}, 0
local suspensions = call('EXISTS', P .. 'sus') == 1

-- One ticket of a lane, or nil when nothing in it is due.
local function ticket(lane, class, group)
  while steps < MOST_STEPS do
    steps = steps + 1
    local first = call('ZRANGE', P .. 'lf:' .. lane, 0, 0, 'WITHSCORES')
    if not first[1] or tonumber(first[2]) >= WAIT then return nil end
    local flow = first[1]
    local till = flow_stop(flow, group)
    if not till and next(silent) then
      local pool = string.sub(group, 1, 6) == 'route:' and group or flow_facts(flow)[3] or ''
      till = silent[pool] and now + 5000 or silent[class .. ' ' .. pool] and now + 500
    end
    if till then
      leave_turn(lane, flow, first[2])
      call('ZADD', P .. 'lf:' .. lane, till == 0 and PARK or WAIT + till, flow)
    else
      local ready = ready_key(lane, flow)
      local destination = call('ZRANGEBYSCORE', ready, '-inf', now, 'LIMIT', 0, 1)[1]
      if not destination then
        place(lane, flow)
      else
        local till_when = suspensions and call('HGET', P .. 'sus', destination) or ''
        local suspended = tonumber(string.match(till_when, '^%d+') or 0)
        -- What its MX hosts did says nothing to mail that goes by its sender's smarthost; an operator's word does.
        local passes = string.find(till_when, '^%d+ mx: ')
          and string.sub(flow_facts(flow)[3] or '', 1, 6) == 'route:'
        if suspended > now and not passes then
          call('ZADD', ready, suspended, destination)
        else
          local items = call('ZCOUNT', queue_key(flow, destination), '-inf', now)
          if items == 0 then
            settle_head(lane, flow, destination)
          else
            if suspended > 0 and suspended <= now then call('HDEL', P .. 'sus', destination) end
            charge(lane, flow, first[2], math.min(items, quantum))
            call('ZADD', ready, now + lease, destination)
            touch(lane, flow)
            answer[#answer + 1] = class
            answer[#answer + 1] = group
            answer[#answer + 1] = flow
            answer[#answer + 1] = destination
            answer[#answer + 1] = items
            answer[#answer + 1] = flow_facts(flow)[3] or ''
            return true
          end
        end
      end
    end
  end
  return nil
end

local wake_at

local function wake_by(time)
  if time and (not wake_at or time < wake_at) then wake_at = time end
end

for _, class in ipairs({ 'e', 't', 'b' }) do
  local lanes = {}
  local left, served = wanted[class], wanted[class] > 0
  if served then
    for _, lane in ipairs(call('ZRANGEBYSCORE', P .. 'g:' .. class, '-inf', now)) do
      local group = string.sub(lane, 3)
      local till = stopped('provider:' .. group) or stopped(group)
      if till then
        wake_by(till > now and till or nil)
      elseif not blocked[lane] then
        wake(lane)
        lanes[#lanes + 1] = lane
      end
    end
  end
  while left > 0 and served do
    served = false
    for _, lane in ipairs(lanes) do
      if left > 0 and ticket(lane, class, string.sub(lane, 3)) then
        left = left - 1
        served = true
      end
    end
  end
  finish()
  for _, lane in ipairs(lanes) do
    look(lane)
    wake_by(next_look(lane))
  end
  wake_by(tonumber(call('ZRANGEBYSCORE', P .. 'g:' .. class, '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]))
end
table.insert(answer, 1, call('HGET', P .. 'meta', 'stops') or '0')
table.insert(answer, 1, wake_at and string.format('%.0f', math.max(wake_at - now, 0)) or '-1')
return answer
