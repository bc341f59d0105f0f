"""sandbox: an internet in a box on loopback (floor 3): names, mail hosts with manners of their own, and a ledger.

``dns`` answers for the simulated domains, ``mx`` and ``receiver`` take the mail, ``behaviour`` says how each domain
or recipient treats it, ``ledger`` writes down what arrived and which hidden limits were broken. What exists is data:
``world.toml``, and a scenario file laid over it. ``server.Sandbox`` starts it all in a process of yours,
``python -m sandbox`` in one of its own. It binds loopback addresses only and knows nothing of the relay's inside.
"""
