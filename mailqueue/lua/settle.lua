-- settle: what became of claimed items; state, event and DSN record are written together.
-- KEYS: prefix, events. ARGV: epoch, number, s, s × (kind, item, flow, destination, class letter, due ms, state,
-- event, record, record's due ms).
--   kind d = final (delivered, given up, or closed by policy) · s = final, suppressed: as d, and the recipient goes
--   back to the quota (state = its charge, "" = it was free) · r = try again at due, with state · b = back as it was
--   (never attempted) · h = hold, event says why · p = back from a dead worker: counted, five times hold it
--   due may be 0 = now; event and record may be "".
-- Returns one letter per entry: d, s, r, b, h, p = done · l = late and closed (the item lay in the queue again) ·
-- L = late, only said · - = nothing to do.
-- Invariant: an item that is not in this worker's hash was taken from it when its lease ended; only a final result
-- may still touch it, and only if nobody has claimed it again. The same number again changes nothing. Number 0 is the
-- reaper's, who speaks in a dead worker's name: it takes only what still lies in that worker's hash.
local epoch, number = ARGV[1], ARGV[2]
local held = P .. 'w:' .. epoch
local seen = call('HGET', P .. 'settled', epoch)
if seen and number ~= '0' then
  local last, answer = string.match(seen, '^(%d+) %d+ (.*)$')
  if last == number then return answer end
end
local letters, closed, queued = {}, {}, {}

local function final(item, flow)
  close_item(item)
  closed[flow] = (closed[flow] or 0) + 1
end

local function again(class, flow, destination, due, item)
  local key = class .. '\n' .. flow .. '\n' .. destination
  if not queued[key] then queued[key] = { class, flow, destination, {} } end
  local pairs_ = queued[key][4]
  pairs_[#pairs_ + 1] = due > 0 and due or now
  pairs_[#pairs_ + 1] = item
end

local function late_name(event) return (string.gsub(event, '"kind":"%a+"', '"kind":"late"', 1)) end

local total = tonumber(ARGV[3])
for entry = 0, total - 1 do
  local base = 4 + entry * 10
  local kind, item, flow, destination, class = ARGV[base], ARGV[base + 1], ARGV[base + 2], ARGV[base + 3], ARGV[base + 4]
  local due, state, event, record = tonumber(ARGV[base + 5]), ARGV[base + 6], ARGV[base + 7], ARGV[base + 8]
  local letter, final_kind = kind, kind == 'd' or kind == 's'
  if call('HDEL', held, item) == 1 then
    if kind == 'p' then
      if call('HINCRBY', P .. 'poison', item, 1) >= 5 then
        kind = 'h'
      else
        again(class, flow, destination, 0, item)
      end
    elseif kind ~= 'b' and not final_kind then
      forget_poison(item)
    end
    if final_kind then
      if kind == 's' and state ~= '' then event = refund(state, 1, event) end
      note(id_of(item), record, ARGV[base + 9])
      final(item, flow)
    elseif kind == 'r' then
      call('SET', P .. 's:' .. item, state)
      note(id_of(item), record, ARGV[base + 9])
      again(class, flow, destination, due, item)
    elseif kind == 'b' then
      again(class, flow, destination, due, item)
    elseif kind == 'h' then
      if state ~= '' then call('SET', P .. 's:' .. item, state) end
      hold(item, class, flow, destination, '\n' .. (event ~= '' and cjson.decode(event).reason or ''))
      call('HDEL', P .. 'poison', item)
      letter = 'h'
    end
    if kind ~= 'p' then emit(event) end
  elseif final_kind and number ~= '0' then
    if take_out(class, flow, destination, item) then
      if kind == 's' and state ~= '' then event = refund(state, 1, event) end
      note(id_of(item), record, ARGV[base + 9])
      final(item, flow)
      emit(event)
      letter = 'l'
    else
      if event ~= '' then emit(late_name(event)) end
      letter = 'L'
    end
  else
    letter = '-'
  end
  letters[#letters + 1] = letter
end
for _, queue in pairs(queued) do enqueue(queue[1], queue[2], queue[3], queue[4]) end
for flow, items in pairs(closed) do flow_closed(flow, items) end
finish()
local answer = table.concat(letters)
if number ~= '0' then call('HSET', P .. 'settled', epoch, string.format('%s %.0f %s', number, now, answer)) end
return answer
