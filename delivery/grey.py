"""Sites that greylist (RFC 6647): they know the address that tried before, so their mail takes one source as long as it can."""

from __future__ import annotations

from collections import OrderedDict

RULE = "greylisted"  # of config/replies.toml
SECONDS = 86_400.0  # after the last time that it did
MOST = 50_000


class Greylisters:
    """Memory of one process, bounded. Times are seconds of the loop's clock."""

    def __init__(self, most: int = MOST) -> None:
        self._until: OrderedDict[str, float] = OrderedDict()
        self._most = most

    def note(self, site: str, now: float) -> None:
        self._until[site] = now + SECONDS
        self._until.move_to_end(site)
        if len(self._until) > self._most:
            self._until.popitem(last=False)

    def has(self, site: str, now: float) -> bool:
        return self._until.get(site, 0.0) > now
