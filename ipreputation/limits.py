"""The nouns of limits, pure: what holds for one source at one site, each limit with the name it is shared under.

The name alone is the key of the shared state: two sources that name the same ceiling fill the same slots, and a
changed number keeps the slots taken and the bucket as full as it was. All limits of a ``Limits`` apply together; the
effective limit is the smallest, and refusals name it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ipreputation.throttle import Rate


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


class ProviderRules(Protocol):
    """What ``limits_for`` reads of a provider's entry. None = no such limit."""

    @property
    def connections(self) -> int | None:
        """Per source."""

    @property
    def connections_total(self) -> int | None:
        """All sources together."""

    @property
    def opening(self) -> Rate | None:
        """New connections per source."""

    @property
    def messages(self) -> Rate | None:
        """Messages per source."""

    @property
    def messages_total(self) -> Rate | None:
        """Messages of all sources together."""

    @property
    def messages_per_connection(self) -> int: ...


def limits_for(provider_rules: ProviderRules, site: str, source: str) -> Limits:
    """The limits of ``source`` at ``site``: ``<site>/<source>`` for its own, ``<site>`` for what all sources share.

    A provider's name is its site, so a limit per provider spans all its hosts. Ceilings and paces have separate
    namespaces; opening and messages are told apart by ``#opening`` and ``#messages``.
    """
    own, rules = f"{site}/{source}", provider_rules
    connections = ((own, rules.connections), (site, rules.connections_total))
    messages = ((f"{own}#messages", rules.messages), (f"{site}#messages", rules.messages_total))
    return Limits(
        connections=tuple(Ceiling(name, most) for name, most in connections if most is not None),
        opening=(Pace(f"{own}#opening", rules.opening),) if rules.opening else (),
        messages=tuple(Pace(name, rate) for name, rate in messages if rate is not None),
        per_connection=rules.messages_per_connection,
    )
