-- spend: books recipients on charges without a message: what the events say was used after a copy of the queue was made.
-- KEYS: prefix, events. ARGV: n, n × (charge, recipients; fewer than none give back). See tab_of in the prelude.
-- Not harmless to repeat; for a queue that is being restored.
for index = 1, tonumber(ARGV[1]) do
  book(ARGV[index * 2], tonumber(ARGV[index * 2 + 1]))
end
finish()
return 1
