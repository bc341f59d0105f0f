-- claim: turns tickets into items, leased to the worker; a ticket is kept while more is due and the worker asks so,
-- else it is given back (claiming 0 gives a ticket back). A ticket of a flow or provider stopped meanwhile brings
-- nothing and is given back.
-- KEYS: prefix, events. ARGV: epoch, number, lease ms of a kept ticket, bytes of content the worker has room for (one
-- message is given all the same), r, r × (class letter, flow, destination, transactions wanted, most recipients per
-- transaction, keep 0|1). A message marked so by content.py (first bit of its size) has one recipient per transaction.
-- Returns: {answers, contents}; answers = per request {items left due, item, state or "", item, state or "", …};
-- contents = {id, stored message, …} once per message with a single recipient (the others are fetched and cached by
-- the worker).
-- Error LOST: the worker has no lease any more. Invariant: an item is in a queue, in one worker's hash, or in hold.
-- The same number again gives the same items.
local epoch, number, lease = ARGV[1], ARGV[2], tonumber(ARGV[3])
local held = P .. 'w:' .. epoch
local expiry = call('ZSCORE', P .. 'w', epoch)
if not expiry or tonumber(expiry) < now then return redis.error_reply('LOST the lease of this worker has ended') end

local room, brought = tonumber(ARGV[4]), 0
local answers, contents = {}, {}
local claimed = {} -- items in order, with their answers: {item, answer, place of its state}

local function add(answer, item)
  answer[#answer + 1] = item
  answer[#answer + 1] = ''
  claimed[#claimed + 1] = { item, answer, #answer }
end

local function values(keys)
  local found = {}
  for first = 1, #keys, 1000 do
    for _, value in ipairs(call('MGET', unpack(keys, first, math.min(first + 999, #keys)))) do found[#found + 1] = value end
  end
  return found
end

-- States and contents of all that was claimed, read together.
local function fill()
  local states, ids, several, sent = {}, {}, {}, {}
  for at, one in ipairs(claimed) do
    local id = id_of(one[1])
    states[at] = P .. 's:' .. one[1]
    if not sent[id] then
      sent[id] = true
      ids[#ids + 1] = id
      several[#several + 1] = P .. 'n:' .. id
    end
  end
  for at, state in ipairs(values(states)) do claimed[at][2][claimed[at][3]] = state or '' end
  local single, messages = {}, {}
  for at, count in ipairs(values(several)) do
    if not count then
      single[#single + 1] = ids[at]
      messages[#messages + 1] = P .. 'm:' .. ids[at]
    end
  end
  for at, message in ipairs(values(messages)) do
    contents[#contents + 1] = single[at]
    contents[#contents + 1] = message or ''
  end
end

local function claim(class, flow, destination, wanted, most, keep)
  local queue = queue_key(flow, destination)
  local lane = class .. ':' .. group_of(destination)
  local halted = wanted > 0 and (flow_stop(flow, group_of(destination))
    or stopped('provider:' .. group_of(destination)) or stopped(group_of(destination)))
  if halted then wanted, keep = 0, false end
  local items, messages, last = {}, 0, nil
  local offset, chunk = 0, wanted
  local in_message, most_here = 0, most -- of the message under way
  while wanted > 0 do
    local found = call('ZRANGEBYSCORE', queue, '-inf', now, 'LIMIT', offset, chunk)
    for _, item in ipairs(found) do
      local id = id_of(item)
      if id ~= last or in_message >= most_here then
        if id ~= last then
          local size = call('GETRANGE', P .. 'm:' .. id, 10, 13)
          size = #size == 4 and struct.unpack('>I4', size) or 0
          most_here = size >= 2147483648 and 1 or most
          size = size % 2147483648
          if brought > 0 and brought + size > room then
            messages = wanted + 1
            break
          end
          brought = brought + size
        end
        messages = messages + 1
        last, in_message = id, 0
        if messages > wanted then break end
      end
      in_message = in_message + 1
      items[#items + 1] = item
    end
    if #found < chunk or messages > wanted or (messages == wanted and most_here == 1) then break end
    offset, chunk = offset + #found, messages == wanted and 16 or math.min(chunk * 2, 1000)
  end
  local stamp = number .. '\n' .. flow .. '\n' .. destination
  local fields = {}
  for index, item in ipairs(items) do
    fields[index * 2 - 1] = item
    fields[index * 2] = stamp
  end
  for first = 1, #items, 2000 do
    call('ZREM', queue, unpack(items, first, math.min(first + 1999, #items)))
    call('HSET', held, unpack(fields, first * 2 - 1, math.min(first + 1999, #items) * 2))
  end
  local left = halted and 0 or call('ZCOUNT', queue, '-inf', now)
  if keep and left > 0 then
    call('ZADD', ready_key(lane, flow), now + lease, destination)
    touch(lane, flow)
  else
    settle_head(lane, flow, destination)
  end
  local answer = { left }
  for _, item in ipairs(items) do add(answer, item) end
  return answer
end

local total = tonumber(ARGV[5])
if call('HGET', held, '#') == number then
  local mine = {}
  local all = call('HGETALL', held)
  for index = 1, #all, 2 do
    local stamp, place_ = string.match(all[index + 1], '^(%d+)\n(.*)$')
    if stamp == number then
      mine[place_] = mine[place_] or {}
      table.insert(mine[place_], all[index])
    end
  end
  for request = 0, total - 1 do
    local base = 6 + request * 6
    local key = ARGV[base + 1] .. '\n' .. ARGV[base + 2]
    local answer = { call('ZCOUNT', queue_key(ARGV[base + 1], ARGV[base + 2]), '-inf', now) }
    for _, item in ipairs(mine[key] or {}) do add(answer, item) end
    mine[key] = nil
    answers[#answers + 1] = answer
  end
  fill()
  return { answers, contents }
end

for request = 0, total - 1 do
  local base = 6 + request * 6
  answers[#answers + 1] = claim(ARGV[base], ARGV[base + 1], ARGV[base + 2], tonumber(ARGV[base + 3]),
    tonumber(ARGV[base + 4]), ARGV[base + 5] == '1')
end
call('HSET', held, '#', number)
finish()
fill()
return { answers, contents }
