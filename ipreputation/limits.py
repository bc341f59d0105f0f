"""The nouns of limits, pure: what holds for one source at one site, each limit with the name it is shared under.

The name alone is the key of the shared state: two sources that name the same ceiling fill the same slots, and a
changed number keeps the slots taken and the bucket as full as it was. All limits of a ``Limits`` apply together; the
effective limit is the smallest, and refusals name it.
"""

from __future__ import annotations

from dataclasses import dataclass

from config.durations import Rate as ConfiguredRate
from config.providers import ProviderRule
from ipreputation.throttle import Rate

# A grant takes a varying time to become a message at the other end, so grants that keep a rate may arrive closer
# together than they were given. Each period is longer by what that may be: the rate holds as the receiver counts it.
GUARD_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Ceiling:
    """At most ``most`` connections at once under one name. 0 = none."""

    name: str
    most: int


@dataclass(frozen=True, slots=True)
class Pace:
    """A rate under one name."""

    name: str
    rate: Rate


@dataclass(frozen=True, slots=True)
class Limits:
    """What one source may do at one site. Empty tuples = no limit of that kind."""

    connections: tuple[Ceiling, ...] = ()
    opening: tuple[Pace, ...] = ()  # new connections
    messages: tuple[Pace, ...] = ()
    per_connection: int = 100  # messages, then the session is closed

    def __post_init__(self) -> None:
        if self.per_connection < 1:
            raise ValueError("per_connection: at least 1 message")


def limits_for(rule: ProviderRule, site: str, source: str) -> Limits:
    """The limits of ``source`` ("" = the kernel's choice) at ``site``, from the rule of the site's provider.

    A provider's name is its site, so its limits span all its hosts. Ceilings and paces have separate namespaces;
    opening and messages are told apart by ``#opening`` and ``#messages``.
    """
    own = f"{site}/{'any' if rule.together else source or 'any'}"
    mine = rule.for_source(source)
    return Limits(
        connections=(Ceiling(own, mine.connections),),
        opening=_pace(f"{own}#opening", mine.connection_rate),
        messages=_pace(f"{own}#messages", mine.message_rate),
        per_connection=mine.messages_per_connection,
    )


def _pace(name: str, rate: ConfiguredRate | None) -> tuple[Pace, ...]:
    return (Pace(name, Rate(rate.count, rate.period_seconds + GUARD_SECONDS, rate.burst)),) if rate else ()
