"""``python -m delivery``."""

from delivery.main import run, serve

run("delivery", "takes due mail to its next hops and says what became of it", serve)
