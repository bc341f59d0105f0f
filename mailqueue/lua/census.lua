-- census: how much of one flow is queued in one lane. Reads only.
-- KEYS: prefix, events. ARGV: lane, flow, most destinations. Returns {items, destinations looked at}.
local items, looked = 0, 0
for _, destination in ipairs(call('ZRANGE', ready_key(ARGV[1], ARGV[2]), 0, tonumber(ARGV[3]) - 1)) do
  items = items + call('ZCARD', queue_key(ARGV[2], destination))
  looked = looked + 1
end
return { items, looked }
