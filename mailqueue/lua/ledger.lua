-- ledger: an account's quota as far as no shard has it, and every entry of it.
-- KEYS: prefix "{quota}:", unused. ARGV: verb, token or "", account, period or "", allowance, …
--   enter    kind, amount (less than none: only as much as is there), said: one entry
--   transfer amount, other account, its period, its allowance, said: two entries
--   allot    shard, need, chunk: moves recipients to a shard
--   collect  shard, returned, returned before its period, lapsed, its period: what a shard gave back or let lapse
--   look     nothing
-- said = JSON of what the entry tells besides (origin, who, reason, …). A period later than the account's: what is
-- left lapses, and the allowance is granted, before anything else.
-- Returns the account's book (names and values) or {"short", what is there} or {"seen", ""} (an incident twice).
-- Invariant: sum of the entries = balance + Σ over shards (allotted - counted as returned - counted as lapsed). A token
-- is carried out once and answered alike for eight days; allot and collect go by cumulative totals and need none.
local P, call = KEYS[1], redis.call
local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local TOKEN_MS = 8 * 86400 * 1000
local verb, token, account = ARGV[1], ARGV[2], ARGV[3]

local function book(name) return P .. 'a:' .. name end
local function figure(name, field) return tonumber(call('HGET', book(name), field) or 0) end

local function enter(name, kind, amount, said)
  local entry = {}
  if said ~= '' then entry = cjson.decode(said) end
  entry.kind, entry.at, entry.amount = kind, now, amount
  entry.sum = call('HINCRBY', book(name), 'sum', amount)
  if token ~= '' then entry.token = token end
  call('SADD', P .. 'accounts', name)
  call('XADD', P .. 'e:' .. name, '*', 'e', cjson.encode(entry))
end

local function roll(name, period, allowance)
  local before = call('HGET', book(name), 'period') or ''
  if period <= before then return end
  local left = figure(name, 'balance')
  if left > 0 then enter(name, 'lapse', -left, cjson.encode({ period = before })) end
  local facts = call('HGETALL', book(name))
  for at = 1, #facts, 2 do
    local shard = string.match(facts[at], '^total:(%d+)$')
    if shard then call('HSET', book(name), 'begin:' .. shard, facts[at + 1]) end
  end
  call('HSET', book(name), 'period', period, 'balance', allowance)
  enter(name, 'grant', tonumber(allowance), cjson.encode({ period = period }))
end

if token ~= '' then
  local seen = call('GET', P .. 'k:' .. token)
  if seen then return cjson.decode(seen) end
end
if verb ~= 'look' then roll(account, ARGV[4], ARGV[5]) end

if verb == 'enter' then
  local kind, amount, said = ARGV[6], tonumber(ARGV[7]), ARGV[8]
  local balance = figure(account, 'balance')
  if balance + amount < 0 then return { 'short', tostring(balance) } end
  local incident = kind == 'replenish' and cjson.decode(said).incident
  if incident and call('HSETNX', book(account), 'incident:' .. incident, amount) == 0 then return { 'seen', '' } end
  call('HINCRBY', book(account), 'balance', amount)
  enter(account, kind, amount, said)
elseif verb == 'transfer' then
  local amount, other, said = tonumber(ARGV[6]), ARGV[7], ARGV[10]
  roll(other, ARGV[8], ARGV[9])
  local balance = figure(account, 'balance')
  if balance < amount then return { 'short', tostring(balance) } end
  local out, into = cjson.decode(said), cjson.decode(said)
  out.other, into.other = other, account
  call('HINCRBY', book(account), 'balance', -amount)
  call('HINCRBY', book(other), 'balance', amount)
  enter(account, 'transfer-out', -amount, cjson.encode(out))
  enter(other, 'transfer-in', amount, cjson.encode(into))
elseif verb == 'allot' then
  -- Half of what is there at most, beyond the need: near the end each shard gets what it asks for.
  local shard, need, chunk = ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
  local balance = figure(account, 'balance')
  local amount = math.min(balance, math.max(need, math.min(chunk, math.floor(balance / 2))))
  if amount > 0 then
    call('HINCRBY', book(account), 'balance', -amount)
    call('HINCRBY', book(account), 'total:' .. shard, amount)
  end
elseif verb == 'collect' then
  local shard, returned, before, lapsed, period = ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10]
  local current, counted = call('HGET', book(account), 'period') or '', figure(account, 'returned:' .. shard)
  if returned > counted then
    local old = period < current and returned or math.max(before, counted)
    if returned > old then call('HINCRBY', book(account), 'balance', returned - old) end
    call('HSET', book(account), 'returned:' .. shard, returned)
    if old > counted then enter(account, 'lapse', counted - old, '') end
  end
  counted = figure(account, 'lapsed:' .. shard)
  if lapsed > counted then
    call('HSET', book(account), 'lapsed:' .. shard, lapsed)
    enter(account, 'lapse', counted - lapsed, '')
  end
end

local answer = call('HGETALL', book(account))
if token ~= '' then call('SET', P .. 'k:' .. token, cjson.encode(answer), 'PX', TOKEN_MS) end
return answer
