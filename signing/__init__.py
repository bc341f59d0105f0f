"""signing: DKIM signatures and signed return paths (floor 1: imports config only; knows neither queue nor sockets)."""
