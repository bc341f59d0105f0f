-- inbound: one returned mail, with the events that say what it is about.
-- KEYS: prefix, events. ARGV: entries to keep, n, n × event, then fields and values of the entry.
-- Returns the entry's id. Invariant: an entry has its events and they have it.
local key, events = 'inbound:' .. string.sub(P, 1, -2), tonumber(ARGV[2])
local entry = call('XADD', key, 'MAXLEN', '~', ARGV[1], '*', unpack(ARGV, 3 + events))
for number = 1, events do emit(ARGV[2 + number]) end
return entry
