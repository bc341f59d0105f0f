-- put: a writer's batch of messages, each with a verdict of its own; and voids of earlier ones whose client was
-- told 451 because no answer came.
-- KEYS: prefix, events. ARGV: writer, number, marker ms, v, v × void, m, m × message.
--   void    = id, flow name, charge or "", n, n × (destination, idempotency marker or ""): a marker goes with its item,
--             or the client's repetition would pass for a duplicate; what was taken from the quota goes back
--   message = id, value, flow name, due ms (0 = now), first look ms, dictionary id or "", its bytes or "", received
--             event, charge or "", n, n × (destination, idempotency marker or "")
-- Returns the verdicts (see put_message in the prelude), then "v:<items taken back>" per void.
-- Invariant: number n of a writer is carried out once; the same number again gets the first answer; a lower one,
-- arriving late, does nothing ("STALE"). So a repeated call is harmless and a voided message cannot come back.
local writer, number = ARGV[1], tonumber(ARGV[2])
local seen = call('HGET', P .. 'put', writer)
if seen then
  local last, answer = string.match(seen, '^(%d+) %d+ (.*)$')
  if tonumber(last) == number then return cjson.decode(answer) end
  if tonumber(last) > number then return redis.error_reply('STALE a later batch of this writer was carried out') end
end
local marker_ms = ARGV[3]
local at, voids, answers, verdicts = 5, tonumber(ARGV[4]), {}, {}

for _ = 1, voids do
  local id, name, charge, total = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  local flow, taken = call('HGET', P .. 'flow', name), 0
  if flow then
    for index = 0, total - 1 do
      local item = id .. string.char(math.floor(index / 256), index % 256)
      if take_out(string.sub(name, 1, 1), flow, ARGV[at + 4 + index * 2], item) then
        close_item(item)
        taken = taken + 1
        local marker = ARGV[at + 5 + index * 2]
        if marker ~= '' and call('GET', P .. 'i:' .. marker) == id then call('DEL', P .. 'i:' .. marker) end
      end
    end
    flow_closed(flow, taken)
    if taken > 0 then
      local event = '{"kind":"removed","at":' .. string.format('%.0f', now) .. ',"id":"' .. id
        .. '","reason":"voided: the client was told 451","v":1}'
      if charge ~= '' then
        event = string.sub(event, 1, -2) .. ',"account":"' .. tab_of(charge).bag.account .. '"}'
        event = refund(charge, taken, event)
      end
      emit(event)
    end
  end
  answers[#answers + 1] = 'v:' .. taken
  at = at + 4 + total * 2
end

local messages = tonumber(ARGV[at])
at = at + 1
for _ = 1, messages do
  local verdict
  verdict, at = put_from(at, marker_ms)
  verdicts[#verdicts + 1] = verdict
end
for _, answer in ipairs(answers) do verdicts[#verdicts + 1] = answer end
finish()
call('HSET', P .. 'put', writer, string.format('%d %.0f %s', number, now, cjson.encode(verdicts)))
return verdicts
