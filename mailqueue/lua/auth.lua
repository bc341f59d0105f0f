-- auth: what relayd processes tell each other of authentications that failed or succeeded.
-- KEYS: prefix, events. ARGV: window ms, most failures by address, by user, known ms, n × (verb, address, user)
--   ask  = how they stand · fail = one more failure of both · good = the pair has succeeded · clear = failures of both
--   are forgotten ("" = not this one)
-- Returns n × {ms for which the address is refused, ms for the user, 1 when the pair has succeeded before}.
-- Invariant: a counter lives for one window from its first failure; the one that fills it begins the window anew, and
-- for its length address or user are refused.
local window, most_address, most_user = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local function count(key, most)
  local failures = call('INCR', key)
  if failures == 1 or failures == most then call('PEXPIRE', key, window) end
end

local function refused(key, most)
  if tonumber(call('GET', key) or 0) < most then return 0 end
  return math.max(call('PTTL', key), 1)
end

local answers = {}
for at = 5, #ARGV, 3 do
  local verb, address, user = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local by_address, by_user, known = P .. 'fa:' .. address, P .. 'fu:' .. user, P .. 'fk:' .. user .. ':' .. address
  if verb == 'fail' then
    count(by_address, most_address)
    count(by_user, most_user)
  elseif verb == 'good' then
    call('SET', known, '1', 'PX', ARGV[4])
  elseif verb == 'clear' then
    if address ~= '' then call('DEL', by_address) end
    if user ~= '' then call('DEL', by_user) end
  end
  answers[#answers + 1] = { refused(by_address, most_address), refused(by_user, most_user), call('EXISTS', known) }
end
return answers
