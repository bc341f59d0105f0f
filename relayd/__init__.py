"""relayd: the door of the relay (floor 2). It ends at ``250 2.0.0 queued as <id>``.

``listener/`` speaks SMTP with a client, verb by verb; ``policy`` decides, ``replies`` holds every word we say,
``handler`` turns an accepted transaction into a queue message: ``headers`` reads what the sender asks for,
``trace`` makes the content final. ``accounts`` and ``auth`` know who the client is. ``doors`` opens listeners, admits and drains, ``sockets`` is what
they stand on. ``inbound`` is a process of its own, for mail that comes back (``returning``): it can send nothing.
Knows the queue, never delivery: what becomes of a message afterwards is none of its business.
"""
