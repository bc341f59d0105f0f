-- bag: what a shard holds of an account's quota; the other half of lua/ledger.lua, which lives in another slot.
-- KEYS: prefix, events. ARGV: mode, account; for fund and recall also total, total at the period's begin, period.
--   fund   = as much as the ledger ever allotted to this shard is here now, and of this period
--   recall = fund, then what is left is on its way back
--   look   = changes nothing
-- All figures are cumulative, so a call may be lost, late or repeated: what the ledger counted and the bag has not is in
-- transit, and so is what the bag gave back and the ledger has not counted. What an older period left lapses.
-- Returns the bag (names and values); look: {bag, place of its first paid event or "", of the stream's last one or ""}.
-- Invariant: left = funded - returned - lapsed - used >= 0; used = the sum of its use by day and origin ("u:…").
local mode, account = ARGV[1], ARGV[2]
local key = P .. 'bag:' .. account

if mode == 'look' then
  local last = call('XREVRANGE', EVENTS, '+', '-', 'COUNT', 1)
  return { call('HGETALL', key), call('HGET', key, 'first') or '', last[1] and last[1][1] or '' }
end

local total, begin, period = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local facts = call('HMGET', key, 'funded', 'returned', 'lapsed', 'used', 'period', 'before')
local funded, returned, lapsed = tonumber(facts[1] or 0), tonumber(facts[2] or 0), tonumber(facts[3] or 0)
local used, current, before = tonumber(facts[4] or 0), facts[5] or '', tonumber(facts[6] or 0)
if period > current then
  funded = math.max(funded, begin)
  lapsed = funded - returned - used
  current, before = period, returned
end
funded = math.max(funded, total)
local left = funded - returned - lapsed - used
if mode == 'recall' then returned = returned + left end
local bag = { 'funded', funded, 'returned', returned, 'lapsed', lapsed, 'period', current, 'before', before }
call('HSET', key, unpack(bag))
call('SADD', P .. 'bags', account)
bag[11], bag[12] = 'used', used
return bag
