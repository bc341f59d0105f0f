-- notified: the DSNs about a message are in the queue, and what they said is forgotten, in one step.
-- KEYS: prefix, events. ARGV: id, token, records said, m, m × message (as in put). Returns 1, or 0 when the token is
-- old (somebody else has said it).
-- Invariant: a record is in one DSN exactly; the message is kept until its last DSN is composed.
local id = ARGV[1]
local score = call('ZSCORE', P .. 'bd', id)
if not score or tonumber(score) ~= tonumber(ARGV[2]) then return 0 end
local at = 5
for _ = 1, tonumber(ARGV[4]) do
  local _verdict
  _verdict, at = put_from(at, 0)
end
call('LTRIM', P .. 'b:' .. id, tonumber(ARGV[3]), -1)
if call('EXISTS', P .. 'b:' .. id) == 1 then
  call('ZADD', P .. 'bd', now, id)
else
  call('ZREM', P .. 'bd', id)
  if not call('ZSCORE', P .. 'x', id) then drop_content(id) end
end
finish()
return 1
