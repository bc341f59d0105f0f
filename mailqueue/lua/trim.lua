-- trim: takes the oldest entries out of the event stream and remembers how far, so that no reader passes over them.
-- KEYS: prefix, events. ARGV: entries to keep (-1 = any number), id up to which entries may go ("" = any), most at once.
-- Returns how many went. Invariant: meta's field trimmed is the id of the last entry that is gone.
local keep, up_to, most = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local length = call('XLEN', EVENTS)
local count = math.min(most, keep < 0 and length or length - keep)
if count <= 0 then return 0 end
local rows = call('XRANGE', EVENTS, '-', up_to == '' and '+' or up_to, 'COUNT', count)
if #rows == 0 then return 0 end
call('XTRIM', EVENTS, 'MAXLEN', length - #rows)
call('HSET', P .. 'meta', 'trimmed', rows[#rows][1])
return #rows
