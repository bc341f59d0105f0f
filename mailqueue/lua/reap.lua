-- reap: finds workers whose lease has ended, buries them (they can't claim or extend any more) and lists what they
-- held; the reaper then settles each item in the dead worker's name.
-- KEYS: prefix, events. ARGV: most items. Returns {epoch, name, n, n × (item, class letter, stamp, poison count, stored
-- message or "", state or "")} for the first dead worker that holds something, or {} when there is none. A stamp is
-- "<claim number>\n<flow>\n<destination>[\n<outcome-unknown policy>]"; message and state come along only where an
-- event will be needed (marked before the final dot, or about to be held).
local most = tonumber(ARGV[1])
for _, epoch in ipairs(call('ZRANGEBYSCORE', P .. 'w', '-inf', '(' .. now, 'LIMIT', 0, 100)) do
  call('ZREM', P .. 'w', epoch)
  call('ZADD', P .. 'dead', now, epoch)
end
for _, epoch in ipairs(call('ZRANGE', P .. 'dead', 0, -1)) do
  local held = P .. 'w:' .. epoch
  local answer = { epoch, call('HGET', P .. 'workers', epoch) or '', 0 }
  local cursor, items = '0', 0
  repeat
    local page = call('HSCAN', held, cursor, 'COUNT', 100)
    cursor = page[1]
    for index = 1, #page[2], 2 do
      local item, stamp = page[2][index], page[2][index + 1]
      if item ~= '#' and items < most then
        items = items + 1
        local poison = tonumber(call('HGET', P .. 'poison', item) or 0)
        local marked = string.match(stamp, '^%d+\n[^\n]*\n[^\n]*\n')
        local flow = string.match(stamp, '^%d+\n([^\n]*)')
        answer[#answer + 1] = item
        answer[#answer + 1] = call('HGET', P .. 'f:' .. flow, 'class') or 'b'
        answer[#answer + 1] = stamp
        answer[#answer + 1] = poison
        local told = marked or poison >= 4
        answer[#answer + 1] = told and call('GET', P .. 'm:' .. id_of(item)) or ''
        answer[#answer + 1] = told and call('GET', P .. 's:' .. item) or ''
      end
    end
  until cursor == '0' or items >= most
  if items > 0 then
    answer[3] = items
    return answer
  end
  call('DEL', held)
  call('ZREM', P .. 'dead', epoch)
  call('HDEL', P .. 'workers', epoch)
end
return {}
