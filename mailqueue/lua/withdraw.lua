-- withdraw: ends, marks as delayed, holds, releases or makes due items that are not in a worker's hands.
-- KEYS: prefix, events. ARGV: verb, next look ms or "", message id, flow name, charge or "", n,
-- n × (item, destination, event, record).
--   verb close = out of queue or hold, event, DSN record · suppress = close, and back to the quota that paid · delay =
--   event and record only, where the item is still open (in a worker's hands, too) · hold = out of the queue into hold,
--   record = "<who>\n<why>" · release = out of hold, due now · retry = due now, where it was due later
-- Returns the entries it applied to, by their place from 0. Next look: the message's place in the expiry index afterwards.
local verb, next_look_at, id, name, charge = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local function in_flight(item)
  for _, index in ipairs({ 'w', 'dead' }) do
    for _, epoch in ipairs(call('ZRANGE', P .. index, 0, -1)) do
      if call('HEXISTS', P .. 'w:' .. epoch, item) == 1 then return true end
    end
  end
  return false
end

local flow, class, done = call('HGET', P .. 'flow', name), string.sub(name, 1, 1), {}
if not flow then return done end
for entry = 0, tonumber(ARGV[6]) - 1 do
  local base = 7 + entry * 4
  local item, destination, event, record = ARGV[base], ARGV[base + 1], ARGV[base + 2], ARGV[base + 3]
  local applied = false
  if verb == 'close' or verb == 'suppress' then
    applied = take_out(class, flow, destination, item)
    if applied then
      note(id, record, now)
      close_item(item)
      if verb == 'suppress' and charge ~= '' then event = refund(charge, 1, event) end
    end
  elseif verb == 'delay' then
    applied = call('ZSCORE', queue_key(flow, destination), item) or call('HEXISTS', P .. 'hold', item) == 1
      or in_flight(item)
    if applied then note(id, record, now) end
  elseif verb == 'hold' then
    applied = call('ZSCORE', queue_key(flow, destination), item) and take_out(class, flow, destination, item)
    if applied then hold(item, class, flow, destination, record) end
  elseif verb == 'release' then
    applied = call('HDEL', P .. 'hold', item) == 1
    if applied then enqueue(class, flow, destination, { now, item }) end
  elseif verb == 'retry' then
    local due = call('ZSCORE', queue_key(flow, destination), item)
    applied = due and tonumber(due) > now and take_out(class, flow, destination, item)
    if applied then enqueue(class, flow, destination, { now, item }) end
  end
  if applied then
    done[#done + 1] = entry
    emit(event)
  end
end
if next_look_at ~= '' and call('ZSCORE', P .. 'x', id) then call('ZADD', P .. 'x', next_look_at, id) end
if verb == 'close' or verb == 'suppress' then flow_closed(flow, #done) end
finish()
return done
