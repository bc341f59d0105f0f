-- behind: how far readers are from the end of the event stream. Changes nothing.
-- KEYS: prefix, events. ARGV: most to count, n × id behind which a reader goes on.
-- Returns length, first id, last id, id of the last entry that was trimmed ("" = none), then per reader: entries behind
-- its id (at most `most`), id of the first of them ("" = none).
local function end_of(command, from, to)
  local row = call(command, EVENTS, from, to, 'COUNT', 1)[1]
  return row and row[1] or ''
end

local answer = {
  call('XLEN', EVENTS), end_of('XRANGE', '-', '+'), end_of('XREVRANGE', '+', '-'),
  call('HGET', P .. 'meta', 'trimmed') or '',
}
for at = 2, #ARGV do
  local rows = call('XRANGE', EVENTS, '(' .. ARGV[at], '+', 'COUNT', ARGV[1])
  answer[#answer + 1] = #rows
  answer[#answer + 1] = rows[1] and rows[1][1] or ''
end
return answer
