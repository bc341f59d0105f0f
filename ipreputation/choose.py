"""Which source sends next: deficit round robin over weighted sources, pure.

``served`` holds what each source has sent in units of the caller's choice (messages). The level of a source is what it
has served divided by its weight; the lowest level comes first. Serving at most a quantum per turn keeps the levels of
sources that can always send within one quantum (divided by the weight) of each other, for ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


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
