"""delivery: takes what is due from the queue to its next hops and says what became of it (floor 2).

Capacity first, work second: a ticket says that a flow has mail for a destination; a route says where that goes; a
grant says from which source and how much; only then are items claimed, as many as can be sent now. Start reading at
:mod:`delivery.engine`. Knows nothing of how mail was accepted.
"""
