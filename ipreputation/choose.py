"""Which source sends next, pure: deficit round robin over weighted sources where much is sent, an order of the site's own
where little is.

``served`` holds what each source has sent in units of the caller's choice (messages). The level of a source is what it
has served divided by its weight; the lowest level comes first. Serving at most a quantum per turn keeps the levels of
sources that can always send within one quantum (divided by the weight) of each other, for ever.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from hashlib import blake2b


def order(sources: Sequence[tuple[str, int]], served: Mapping[str, float]) -> list[str]:
    """Addresses of ``sources`` (address, weight), least served per weight first; equals keep the order given.

    Weight 0 turns a source off: it is left out. A source that ``served`` does not know has served nothing.
    """
    turn = [(served.get(address, 0.0) / weight, address) for address, weight in sources if weight > 0]
    turn.sort(key=lambda entry: entry[0])
    return [address for _, address in turn]


def levelled(sources: Sequence[tuple[str, int]], served: Mapping[str, float]) -> dict[str, float]:
    """``served`` for another round: only present sources, less what all of them have, newcomers at the lowest level.

    Called when the sources change and now and then (numbers stay small). Without it a new or returned source would be
    given everything until it had caught up with the history of the others.
    """
    weights = {address: weight for address, weight in sources if weight > 0}
    known = [served[address] / weight for address, weight in weights.items() if address in served]
    floor = min(known, default=0.0)
    return {
        address: max(0.0, served.get(address, floor * weight) - floor * weight) for address, weight in weights.items()
    }


def steadfast(site: str, sources: Sequence[tuple[str, int]]) -> list[str]:
    """Addresses of ``sources`` (address, weight) in an order that is the site's own: the same in every process, and a source
    that comes or goes moves no other (weighted rendezvous hashing). Over many sites each is the first as often as its
    weight says. Weight 0 is left out.
    """
    turn = []
    for address, weight in sources:
        if weight > 0:
            hashed = int.from_bytes(blake2b(f"{site} {address}".encode(), digest_size=8).digest(), "big")
            turn.append((-math.log((hashed + 1) / 2**64) / weight, address))
    return [address for _, address in sorted(turn)]
