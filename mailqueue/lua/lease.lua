-- lease: which one of several processes does a work that only one may do.
-- KEYS: prefix, events. ARGV: the work's name, the process's token, ms (0 = it gives the lease back).
-- Returns 1 when the lease is the token's now (0 ms: was), else 0. Invariant: at any time at most one token has it.
local key = P .. 'lease:' .. ARGV[1]
local holder = call('GET', key)
if holder and holder ~= ARGV[2] then return 0 end
local had = call('DEL', key) -- also so that a server without memory, where archiving must go on, lets us set
if ARGV[3] == '0' then return had end
call('SET', key, ARGV[2], 'PX', ARGV[3])
return 1
