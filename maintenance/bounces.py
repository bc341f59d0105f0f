"""The share of an account's, or a campaign's, recipients that bounce: a list gone bad hurts everybody's reputation.

Mail with the null reverse-path does not count: for each bounce the sender gets a DSN (RFC 3464), which is delivered.
The last hour in twelve parts; memory of one process, filled again by what comes after a restart.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from maintenance.tail import Said

PART_MS = 300_000
PARTS = 12
LEAST = 200  # recipients settled within the hour, fewer say nothing
SHARE = 0.10
MOST = 2000  # accounts and campaigns of one part

Whom = str  # "<account>" or "<account>/<campaign>"


class Bounces:
    def __init__(self) -> None:
        self._began = 0
        self._parts: OrderedDict[int, tuple[Counter[Whom], Counter[Whom]]] = OrderedDict()  # settled, bounced

    def note(self, said: Said) -> None:
        event = said.event
        if event.kind not in ("delivered", "bounced") or not event.account or event.reverse_path == "":
            return
        settled, bounced = self._parts.setdefault(said.at // PART_MS, (Counter(), Counter()))
        whoms = [event.account, f"{event.account}/{event.campaign}"] if event.campaign else [event.account]
        for whom in whoms:
            if whom in settled or len(settled) < MOST:
                settled[whom] += 1
                bounced[whom] += event.kind == "bounced"

    def whole(self, now: int) -> bool:
        """Whether this process has seen the whole hour; before, it cannot say that somebody is below the share."""
        self._began = self._began or now
        return now - self._began >= PART_MS * PARTS

    def judge(self, now: int) -> dict[Whom, tuple[str, int]]:
        """Whom → reason and number of bounces, of those above the share."""
        for part in [part for part in self._parts if part <= now // PART_MS - PARTS]:
            del self._parts[part]
        settled: Counter[Whom] = Counter()
        bounced: Counter[Whom] = Counter()
        for one, other in self._parts.values():
            settled += one
            bounced += other
        return {
            whom: (f"{count / settled[whom]:.0%} of its recipients bounced within an hour", count)
            for whom, count in bounced.items()
            if settled[whom] >= LEAST and count >= SHARE * settled[whom]
        }
