"""What one delivery process does at this moment, for who looks at all of them at once (``relayctl top``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from heapq import nlargest
from itertools import islice
from operator import itemgetter

from delivery.pool import Source
from delivery.site import Site
from mailqueue.paces import Paces

MOST_SOURCES = 500
MOST_RESTS = 100  # sites
MOST_OPENING, MOST_DOMAINS = 30, 10  # a word every few seconds must stay small
WORTH_TELLING_SECONDS = 2.0  # since a word was heard


def figures(
    sites: Iterable[Site],
    pools: Mapping[str, Sequence[Source]],
    paces: Paces,
    rests: Mapping[str, Mapping[str, float]],
    now: float,
) -> dict[str, object]:
    """Recipients a second by what became of them; of each source the open sessions, the sites where it rests and what it
    delivered a second, and how many seconds it still rests at which site; of each provider what it took a second; of the
    sessions that are being opened the longest waits. ``now``: the loop's clock."""
    sites = list(sites)
    rates = paces.rates()
    sessions = Counter(address for site in sites for address in site.lines.sources_open())
    resting = Counter(address for here in rests.values() for address in here)
    known = {source.address for pool in pools.values() for source in pool}
    return {
        "rates": {name: rate for name, rate in rates.items() if isinstance(name, str)},
        "sources": {
            one: [sessions[one], resting[one], rates.get(("source", one), (0.0, 0.0))[0]]
            for one in sorted(known | sessions.keys())[:MOST_SOURCES]
        },
        "rests": {
            site: {address: round(left) for address, left in here.items()}
            for site, here in islice(rests.items(), MOST_RESTS)
        },
        "opening": _opening(sites, now),
        "providers": {name[1]: rate[0] for name, rate in rates.items() if name[0] == "provider"},
    }


def _opening(sites: Iterable[Site], now: float) -> list[dict[str, object]]:
    found = [
        (now - one.since, {"site": site.name, "domains": domains, "again": again, **one.plain(now)})
        for site in sites
        if site.lines.openings
        for domains, again in [(site.domains(MOST_DOMAINS), _again(site, now))]
        for one in site.lines.openings
        if now - one.since >= WORTH_TELLING_SECONDS
    ]
    return [said for _, said in nlargest(MOST_OPENING, found, key=itemgetter(0))]


def _again(site: Site, now: float) -> int:
    """Seconds until one more session is tried, -1 = none is planned."""
    at = site.lines.one_more_at() if site.tickets else None
    return -1 if at is None else max(round(at - now), 0)
