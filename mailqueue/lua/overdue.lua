-- overdue: mail that could be sent now as far as the queue knows: due, and neither held nor stopped nor suspended.
-- Reads only. KEYS: prefix, events. ARGV: most rows of a lane, most steps (destinations looked at) in all.
-- Returns {now ms, items in workers' hands, workers with a lease, then n × (class letter, group, pool, destination, due ms,
-- 1 if a worker has a ticket, or items for the destination in its hands)}, of each lane what has been due longest first
-- as far as it was looked at. A ticket hides nothing: whoever holds one and does nothing with it is what is looked for.
local most, steps = tonumber(ARGV[1]), tonumber(ARGV[2])
local in_hand, hands = {}, 0
for _, epoch in ipairs(call('ZRANGE', P .. 'w', 0, -1)) do
  for _, stamp in ipairs(call('HVALS', P .. 'w:' .. epoch)) do
    local destination = string.match(stamp, '^%d+\n[^\n]*\n([^\n]*)')
    if destination then
      in_hand[destination] = true
      hands = hands + 1
    end
  end
end

local function suspended(destination, pool)
  local value = call('HGET', P .. 'sus', destination)
  if not value or tonumber(string.match(value, '^%d+') or 0) <= now then return false end
  return not (string.find(value, '^%d+ mx: ') and string.sub(pool, 1, 6) == 'route:')
end

local answer = { string.format('%.0f', now), hands, call('ZCOUNT', P .. 'w', now, '+inf') }

local function look_at(lane, class, group)
  local found = {}
  for _, flow in ipairs(call('ZRANGE', P .. 'lf:' .. lane, 0, 499)) do
    if not flow_stop(flow, group) then
      local pool, count = flow_facts(flow)[3] or '', 0
      local ready = call('ZRANGE', ready_key(lane, flow), 0, 199, 'WITHSCORES')
      for at = 1, #ready, 2 do
        local destination, ticket = ready[at], tonumber(ready[at + 1]) > now
        if steps <= 0 then return found end
        steps = steps - 1
        local head = call('ZRANGE', queue_key(flow, destination), 0, 0, 'WITHSCORES')
        if head[1] and tonumber(head[2]) <= now and not suspended(destination, pool) then
          found[#found + 1] = { class, group, pool, destination, tonumber(head[2]),
            (ticket or in_hand[destination]) and 1 or 0 }
          count = count + 1
          if count >= most then break end
        end
      end
    end
  end
  return found
end

for _, class in ipairs({ 'e', 't', 'b' }) do
  for _, lane in ipairs(call('ZRANGE', P .. 'g:' .. class, 0, -1)) do
    local group = string.sub(lane, 3)
    if not stopped('provider:' .. group) and not stopped(group) then
      local found = look_at(lane, class, group)
      table.sort(found, function(one, other) return one[5] < other[5] end)
      for at = 1, math.min(most, #found) do
        for field = 1, 6 do
          answer[#answer + 1] = field == 5 and string.format('%.0f', found[at][5]) or found[at][field]
        end
      end
    end
  end
end
return answer
