-- notices: messages about which a DSN is due, with what is to be said; leased to the asker for `pause`.
-- KEYS: prefix, events. ARGV: most, pause ms. Returns n × {id, token, stored message, record, record, …}.
local answer = {}
for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'bd', '-inf', now, 'LIMIT', 0, tonumber(ARGV[1]))) do
  local token = string.format('%.0f', now + tonumber(ARGV[2]))
  call('ZADD', P .. 'bd', token, id)
  local row = { id, token, call('GET', P .. 'm:' .. id) or '' }
  for _, record in ipairs(call('LRANGE', P .. 'b:' .. id, 0, 999)) do row[#row + 1] = record end
  answer[#answer + 1] = row
end
return answer
