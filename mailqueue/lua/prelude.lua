-- Prepended to every verb. KEYS[1] = the shard's prefix "{qN}:" (every key of the shard begins with it, so a
-- script touches one slot); KEYS[2] = the shard's event stream "events:{qN}". Lua spells keys here and nowhere else;
-- Python spells them in keys.py. Works on Redis 6.2, 7 and Valkey.
--
-- A flow is (class, account, campaign, pool), named in put by "<class letter>\n<account>\n<campaign>\n<pool>"; its id
-- is "<account number>.<n>". A lane is "<class letter>:<provider group>". In lf:<lane> a flow's score says its state:
--   [0, WAIT)     ready, score = virtual time (start-time fair queueing: least is served next)
--   [WAIT, PARK)  nothing due before score - WAIT (ms)
--   PARK          stopped until somebody resumes it
-- In r:<lane>:<flow> a destination's score is its head's due time, or later while a worker holds its ticket or
-- while it is suspended. Invariant at the end of each script: every flow with destinations in a lane stands in lf,
-- every lane with flows that are not parked stands in g:<class> by its next time worth a look, and whoever made
-- that time earlier has rung the bell.
local P, EVENTS = KEYS[1], KEYS[2]
local call = redis.call
local WAIT, PARK = 1e15, 4e15
local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local groups, touched, order = {}, {}, {}

local function group_of(destination)
  local group = groups[destination]
  if not group then
    group = call('HGET', P .. 'dest', destination) or 'default'
    groups[destination] = group
  end
  return group
end

local function account_number(flow) return string.match(flow, '^[^.]+') end
local function queue_key(flow, destination) return P .. 'q:' .. flow .. ':' .. destination end
local function ready_key(lane, flow) return P .. 'r:' .. lane .. ':' .. flow end
local function id_of(item) return string.sub(item, 1, -3) end

local function emit(event)
  if event and event ~= '' then return call('XADD', EVENTS, '*', 'e', event) end
end

-- To be placed anew when the script finishes.
local function touch(lane, flow)
  local at = lane .. '\n' .. flow
  if not touched[at] then
    touched[at] = true
    order[#order + 1] = { lane, flow }
  end
end

local function leave_turn(lane, flow, virtual)
  if call('EXISTS', P .. 'f:' .. flow) == 1 then call('HSET', P .. 'v:' .. lane, flow, virtual) end
  call('HINCRBY', P .. 'v:' .. lane, 'a:' .. account_number(flow), -1)
end

local function enter_turn(lane, flow)
  local key = P .. 'v:' .. lane
  local saved = call('HMGET', key, flow, '#')
  local virtual = math.max(tonumber(saved[1]) or 0, tonumber(saved[2]) or 0)
  call('HINCRBY', key, 'a:' .. account_number(flow), 1)
  call('ZADD', P .. 'lf:' .. lane, string.format('%.6f', virtual), flow)
end

local function place(lane, flow)
  local turn = P .. 'lf:' .. lane
  local score = tonumber(call('ZSCORE', turn, flow) or nil)
  local head = call('ZRANGE', ready_key(lane, flow), 0, 0, 'WITHSCORES')
  if not head[1] then
    if score then
      if score < WAIT then leave_turn(lane, flow, score) end
      call('ZREM', turn, flow)
    end
    return
  end
  if score and score >= PARK then return end
  local due = tonumber(head[2])
  if due <= now then
    if not score or score >= WAIT then enter_turn(lane, flow) end
  else
    if score and score < WAIT then leave_turn(lane, flow, score) end
    call('ZADD', turn, WAIT + due, flow)
  end
end

-- Next time worth a look at a lane: 0 = at once, nil = never.
local function next_look(lane)
  local turn = P .. 'lf:' .. lane
  local first = call('ZRANGE', turn, 0, 0, 'WITHSCORES')
  if not first[1] then return nil end
  local score = tonumber(first[2])
  if score < WAIT then return 0 end
  if score >= PARK then return nil end
  return score - WAIT
end

-- Every worker listens; each asks `due` when it has capacity. A ring that nobody hears is no loss: the time is in g.
local function ring() call('PUBLISH', P .. 'bell', '') end

local function look(lane)
  local key = P .. 'g:' .. string.sub(lane, 1, 1)
  local next_time = next_look(lane)
  if not next_time then
    call('ZREM', key, lane)
    return
  end
  local before = call('ZSCORE', key, lane)
  if not before then call('SADD', P .. 'lanes', string.sub(lane, 3)) end
  if not before or tonumber(before) ~= next_time then call('ZADD', key, next_time, lane) end
  if not before or next_time < tonumber(before) then ring() end
end

local opened = {} -- flow → items put by this script and not yet in its books

-- A charge is "<account>\n<period>\n<day>\n<origin>": whose bag in this shard, of which month at least ("" = any), and
-- where the use is booked. left = funded - returned - lapsed - used, kept nowhere, so it can't disagree. What one
-- script takes and gives back is written once, when it finishes.
local bags, tabs = {}, {}

-- Of a charge: its bag, the bag's field for the day and origin, and what that says.
local function tab_of(charge)
  local tab = tabs[charge]
  if not tab then
    local account, period, day, origin = string.match(charge, '^([^\n]*)\n([^\n]*)\n([^\n]*)\n([^\n]*)$')
    local key, field = P .. 'bag:' .. account, 'u:' .. day .. '\n' .. origin
    local facts = call('HMGET', key, 'funded', 'returned', 'lapsed', 'used', 'period', 'first', field)
    local bag = bags[account]
    if not bag then
      bag = { period = facts[5] or '', first = facts[6], used = tonumber(facts[4] or 0), account = account, uses = {} }
      bag.left = (facts[1] or 0) - (facts[2] or 0) - (facts[3] or 0) - bag.used
      bags[account] = bag
    end
    bag.uses[field] = bag.uses[field] or tonumber(facts[7] or 0)
    tab = { bag = bag, period = period, field = field }
    tabs[charge] = tab
  end
  return tab
end

-- `count` recipients on the charge, fewer than none to give them back.
local function book(charge, count)
  local tab = tab_of(charge)
  local bag = tab.bag
  bag.left, bag.used, bag.changed = bag.left - count, bag.used + count, true
  bag.uses[tab.field] = bag.uses[tab.field] + count
end

-- Whether the bag has them; without, nothing was taken and the ledger must allot.
local function take(charge, count)
  local tab = tab_of(charge)
  if tab.bag.left < count or tab.bag.period < tab.period then return false end
  book(charge, count)
  return true
end

-- Gives recipients back and says so in their event.
local function refund(charge, count, event)
  book(charge, -count)
  if event == '' then return event end
  return string.sub(event, 1, -2) .. ',"refunded":' .. count .. '}'
end

local function close_bags()
  for account, bag in pairs(bags) do
    if bag.changed then
      local words = { 'used', bag.used }
      if bag.opened then words = { 'used', bag.used, 'first', bag.opened } end
      for field, count in pairs(bag.uses) do
        words[#words + 1] = field
        words[#words + 1] = count
      end
      call('HSET', P .. 'bag:' .. account, unpack(words))
    end
  end
  bags, tabs = {}, {}
end

local function finish()
  if next(bags) then close_bags() end
  for flow, items in pairs(opened) do call('HINCRBY', P .. 'f:' .. flow, 'open', items) end
  opened = {}
  local lanes = {}
  for _, pair in ipairs(order) do
    place(pair[1], pair[2])
    lanes[pair[1]] = true
  end
  for lane in pairs(lanes) do look(lane) end
  touched, order = {}, {}
end

-- The destination's score in r is its head's due time again (its ticket, if any, is given back).
local function settle_head(lane, flow, destination)
  local head = call('ZRANGE', queue_key(flow, destination), 0, 0, 'WITHSCORES')
  if head[1] then
    call('ZADD', ready_key(lane, flow), head[2], destination)
  else
    call('ZREM', ready_key(lane, flow), destination)
  end
  touch(lane, flow)
end

-- Items {due, item, due, item, …} into one queue. A destination whose ticket is out, or that is suspended, keeps
-- its later score: recognised by a score that is not its head's.
local function enqueue(class, flow, destination, pairs_)
  local lane = class .. ':' .. group_of(destination)
  local queue, ready = queue_key(flow, destination), ready_key(lane, flow)
  local head = call('ZRANGE', queue, 0, 0, 'WITHSCORES')
  local score = call('ZSCORE', ready, destination)
  for first = 1, #pairs_, 4000 do
    call('ZADD', queue, unpack(pairs_, first, math.min(first + 3999, #pairs_)))
  end
  local soonest = pairs_[1]
  for at = 3, #pairs_, 2 do soonest = math.min(soonest, pairs_[at]) end
  if head[1] then
    if score and (tonumber(score) ~= tonumber(head[2]) or soonest >= tonumber(head[2])) then return end
    soonest = math.min(soonest, tonumber(head[2]))
  elseif score then
    return
  end
  call('ZADD', ready, soonest, destination)
  touch(lane, flow)
end

-- One reference less to the dictionary that a stored message was compressed with; an idle one lives an hour more.
-- `also` = one more key that goes with it (without one, the emptied list of DSN records).
local function drop_content(id, also)
  local dictionary = call('GETRANGE', P .. 'm:' .. id, 2, 9)
  if #dictionary == 8 and dictionary ~= '\0\0\0\0\0\0\0\0' then
    if call('HINCRBY', P .. 'dr', dictionary, -1) <= 0 then
      call('HDEL', P .. 'dr', dictionary)
      call('PEXPIRE', P .. 'd:' .. dictionary, 3600000)
    end
  end
  call('UNLINK', P .. 'm:' .. id, P .. 'n:' .. id, also or P .. 'b:' .. id)
end

-- The flow's books after `closed` of its items ended; an empty flow is forgotten.
local function flow_closed(flow, closed)
  if closed == 0 then return end
  if call('HINCRBY', P .. 'f:' .. flow, 'open', -closed) > 0 then
    call('HINCRBY', P .. 'f:' .. flow, 'done', closed)
    return
  end
  local facts = call('HMGET', P .. 'f:' .. flow, 'name', 'class')
  if facts[1] then call('HDEL', P .. 'flow', facts[1]) end
  call('DEL', P .. 'f:' .. flow)
  for _, group in ipairs(call('SMEMBERS', P .. 'lanes')) do
    call('HDEL', P .. 'v:' .. (facts[2] or '') .. ':' .. group, flow)
  end
end

-- One recipient is final. The message goes with its last recipient, unless a DSN about it is still to be composed.
local poisoned

local function forget_poison(item)
  if poisoned == nil then poisoned = call('EXISTS', P .. 'poison') == 1 end
  if poisoned then call('HDEL', P .. 'poison', item) end
end

local function close_item(item)
  local id, state = id_of(item), P .. 's:' .. item
  forget_poison(item)
  local open = call('GET', P .. 'n:' .. id)
  if open and call('DECR', P .. 'n:' .. id) > 0 then
    call('UNLINK', state)
    return
  end
  call('ZREM', P .. 'x', id)
  if call('ZSCORE', P .. 'bd', id) then
    call('UNLINK', state)
    call('ZADD', P .. 'bd', now, id)
  else
    drop_content(id, state)
  end
end

-- A record for a DSN about the message, to be composed at `due` at the latest.
local function note(id, record, due)
  if record == '' then return end
  call('RPUSH', P .. 'b:' .. id, record)
  local before = call('ZSCORE', P .. 'bd', id)
  if not before or tonumber(before) > tonumber(due) then call('ZADD', P .. 'bd', due, id) end
end

local known = {}

local function flow_id(name)
  local flow = known[name] or call('HGET', P .. 'flow', name)
  known[name] = flow or nil
  if flow then return flow end
  local class, account, campaign, pool = string.match(name, '^([^\n]*)\n([^\n]*)\n([^\n]*)\n([^\n]*)$')
  local number = call('HGET', P .. 'flow', 'a:' .. account)
  if not number then
    number = call('HINCRBY', P .. 'flow', '#a', 1)
    call('HSET', P .. 'flow', 'a:' .. account, number)
  end
  flow = number .. '.' .. call('HINCRBY', P .. 'flow', '#f', 1)
  call('HSET', P .. 'flow', name, flow)
  call('HSET', P .. 'f:' .. flow, 'name', name, 'class', class, 'account', account, 'campaign', campaign,
    'pool', pool, 'open', 0, 'done', 0, 'since', now)
  known[name] = flow
  return flow
end

-- Puts one message. Returns 'q' (queued), 'q:<n>' (queued, n recipients skipped as duplicates), 'd:<id>' (all
-- duplicates; id of the message that has them), 'n' (its dictionary is not here: send it along) or 'a:<n>' (it costs
-- n recipients and its bag has fewer: have it filled). 'n' and 'a' have changed nothing.
-- recipients = list of {destination, idempotency marker or ''}; due = ms, 0 = now; charge or "" = free.
local function put_message(id, value, name, due, check_at, dictionary, dictionary_bytes, event, charge, marker_ms,
    recipients)
  if call('EXISTS', P .. 'm:' .. id) == 1 then return 'q' end
  local there = dictionary == '' or call('EXISTS', P .. 'd:' .. dictionary) == 1
  if not there and dictionary_bytes == '' then return 'n' end
  local open, skipped, holder = {}, {}, nil
  for index, recipient in ipairs(recipients) do
    local duplicate = false
    if recipient[2] ~= '' then
      duplicate = not call('SET', P .. 'i:' .. recipient[2], id, 'NX', 'PX', marker_ms)
      if duplicate then holder = holder or call('GET', P .. 'i:' .. recipient[2]) end
    end
    if duplicate then skipped[#skipped + 1] = index - 1 else open[#open + 1] = index end
  end
  if #open == 0 then return 'd:' .. (holder or '') end
  if charge ~= '' and not take(charge, #open) then
    for _, index in ipairs(open) do
      if recipients[index][2] ~= '' then call('DEL', P .. 'i:' .. recipients[index][2]) end
    end
    return 'a:' .. #open
  end
  call('SET', P .. 'm:' .. id, value)
  if #recipients > 1 then call('SET', P .. 'n:' .. id, #open) end
  call('ZADD', P .. 'x', check_at, id)
  if not there then call('SET', P .. 'd:' .. dictionary, dictionary_bytes) end
  if dictionary ~= '' then
    if call('HINCRBY', P .. 'dr', dictionary, 1) == 1 then call('PERSIST', P .. 'd:' .. dictionary) end
  end
  local flow, class = flow_id(name), string.sub(name, 1, 1)
  if due == 0 then due = now end
  local by_destination, destinations = {}, {}
  for _, index in ipairs(open) do
    local destination = recipients[index][1]
    local list = by_destination[destination]
    if not list then
      list = {}
      by_destination[destination] = list
      destinations[#destinations + 1] = destination
    end
    list[#list + 1] = due
    list[#list + 1] = id .. string.char(math.floor((index - 1) / 256), (index - 1) % 256)
  end
  for _, destination in ipairs(destinations) do enqueue(class, flow, destination, by_destination[destination]) end
  opened[flow] = (opened[flow] or 0) + #open
  if event ~= '' then
    if #skipped > 0 then event = string.sub(event, 1, -2) .. ',"skipped":[' .. table.concat(skipped, ',') .. ']}' end
    local at = emit(event)
    if charge ~= '' then
      local bag = tab_of(charge).bag
      if not bag.first then bag.first, bag.opened = at, at end
    end
  end
  if #skipped > 0 then return 'q:' .. #skipped end
  return 'q'
end

local stops

-- nil = runs, 0 = stopped for good, ms = stopped until then.
local function stopped(key)
  if not stops then
    stops = {}
    local all = call('HGETALL', P .. 'stop')
    for index = 1, #all, 2 do stops[all[index]] = tonumber(string.match(all[index + 1], '^%d+')) end
  end
  local till = stops[key]
  if till and (till == 0 or till > now) then return till end
end

local facts_of = {}

-- {account, campaign, pool} of a flow, false where it is none.
local function flow_facts(flow)
  facts_of[flow] = facts_of[flow] or call('HMGET', P .. 'f:' .. flow, 'account', 'campaign', 'pool')
  return facts_of[flow]
end

-- The same of a flow, by its id, account and campaign, and by its pool where that is a smarthost route ("route:<name>"),
-- but not for destinations of a group that is one: by recipient beats by sender.
local function flow_stop(flow, group)
  local own = stopped('flow:' .. flow)
  if own or not next(stops) then return own end
  local facts = flow_facts(flow)
  if not facts[1] then return nil end
  return stopped('account:' .. facts[1]) or stopped('campaign:' .. facts[1] .. '/' .. facts[2])
    or (string.sub(group, 1, 6) ~= 'route:' and stopped(facts[3] or '') or nil)
end

-- Reads one message's fields from ARGV at `at`; returns the verdict and the next position.
local function put_from(at, marker_ms)
  local recipients, total = {}, tonumber(ARGV[at + 9])
  for number = 1, total do
    recipients[number] = { ARGV[at + 8 + number * 2], ARGV[at + 9 + number * 2] }
  end
  local verdict = put_message(ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3]), ARGV[at + 4], ARGV[at + 5],
    ARGV[at + 6], ARGV[at + 7], ARGV[at + 8], marker_ms, recipients)
  return verdict, at + 10 + total * 2
end

-- Into hold, with since when; note = "<who>\n<why>".
local function hold(item, class, flow, destination, note)
  local words = { class, flow, destination, string.format('%.0f', now), note }
  call('HSET', P .. 'hold', item, table.concat(words, '\n'))
end

-- Takes an item out of the queue or out of hold. Returns true if it lay there (an item in flight does not).
local function take_out(class, flow, destination, item)
  if call('ZREM', queue_key(flow, destination), item) == 1 then
    local lane = class .. ':' .. group_of(destination)
    local ready = ready_key(lane, flow)
    local head = call('ZRANGE', queue_key(flow, destination), 0, 0, 'WITHSCORES')
    local score = call('ZSCORE', ready, destination)
    if not head[1] then call('ZREM', ready, destination)
    elseif score and tonumber(score) < tonumber(head[2]) then call('ZADD', ready, head[2], destination) end
    touch(lane, flow)
    return true
  end
  return call('HDEL', P .. 'hold', item) == 1
end
