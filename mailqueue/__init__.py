"""mailqueue: the durable queue on Redis (floor 1).

The user's plan calls this room ``queue``; a top-level package of that name would shadow the standard library.

What it keeps: every accepted recipient until its event is written; content once per message; the events themselves.
What it promises: a put that was answered is on disk; an item is in a queue, in one worker's hands or in hold, never
in two and never nowhere; state and its event are written by one script.
What it does not know: SMTP, DNS, reputation, why a recipient failed. ``relayd`` puts, ``delivery`` claims and settles,
``relayctl`` looks and suspends.
"""
