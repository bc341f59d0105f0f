-- restore: puts messages of a copy on hold, with the events that say so. For a queue that is being restored.
-- KEYS: prefix, events. ARGV: n, n × (id, value, flow name, look at ms, dictionary id or "", its bytes or "", recipients,
-- m, m × (item, destination, state or "", held event), r, r × DSN record, records due ms).
-- A dictionary's bytes come with the first message that refers to it.
-- m of the message's recipients are still open; with none of them it is kept for its DSN alone.
-- Returns how many messages were not there yet; a message that is there is passed over, so a repetition is harmless.
local at, done = 2, 0
for _ = 1, tonumber(ARGV[1]) do
  local id, value, name, look_at, dictionary = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local open = tonumber(ARGV[at + 7])
  local new = call('EXISTS', P .. 'm:' .. id) == 0
  if new then
    done = done + 1
    call('SET', P .. 'm:' .. id, value)
    if tonumber(ARGV[at + 6]) > 1 and open > 0 then call('SET', P .. 'n:' .. id, open) end
    if open > 0 then call('ZADD', P .. 'x', look_at, id) end
    if dictionary ~= '' then
      if ARGV[at + 5] ~= '' then call('SET', P .. 'd:' .. dictionary, ARGV[at + 5]) end
      call('HINCRBY', P .. 'dr', dictionary, 1)
    end
  end
  local flow = new and open > 0 and flow_id(name)
  at = at + 8
  for _ = 1, open do
    if new then
      local item = ARGV[at]
      local said = cjson.decode(ARGV[at + 3])
      hold(item, string.sub(name, 1, 1), flow, ARGV[at + 1], (said.actor or '') .. '\n' .. (said.reason or ''))
      if ARGV[at + 2] ~= '' then call('SET', P .. 's:' .. item, ARGV[at + 2]) end
      emit(ARGV[at + 3])
    end
    at = at + 4
  end
  if new and open > 0 then opened[flow] = (opened[flow] or 0) + open end
  local records = tonumber(ARGV[at])
  for index = 1, records do
    if new then note(id, ARGV[at + index], ARGV[at + records + 1]) end
  end
  at = at + records + 2
end
finish()
return done
