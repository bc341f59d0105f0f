-- look_at: messages whose delay notice or expiry falls due; each is looked at again later unless it is closed.
-- KEYS: prefix, events. ARGV: most messages, pause ms. Returns n × (id, stored message).
local answer = {}
for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'x', '-inf', now, 'LIMIT', 0, tonumber(ARGV[1]))) do
  local value = call('GET', P .. 'm:' .. id)
  if value then
    call('ZADD', P .. 'x', now + tonumber(ARGV[2]), id)
    answer[#answer + 1] = id
    answer[#answer + 1] = value
  else
    call('ZREM', P .. 'x', id)
  end
end
return answer
