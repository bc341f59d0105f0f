"""SIGHUP: read again, validate, swap one reference, say the difference. A bad file leaves the old one in force."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge

from config.digest import digest_of
from config.load import ConfigError, Loaded, load
from config.providers import Providers
from config.schema import leaves
from config.settings import Settings

Guard = Callable[[Loaded], Sequence[str]]  # problems that only this process can see, for instance a lost certificate
Subscriber = Callable[[Loaded, Loaded], None]  # (old, new): sets what it took from the old one

# Read once, when a process starts; all other keys are taken over at once.
NEEDS_RESTART = re.compile(
    r"queue\..*"
    r"|relayd\.auth_.*"
    r"|relayd\.listeners(\[\d+\]\.(name|kind|address|port|tls|interface|allow_public))?"
    r"|delivery\.(sandbox|port|hostname|nameservers|ipv6|allow_private)"
    r"|accounts\[\d+\]\.weight"
    r"|quota\..*"
    r"|metrics\..*|log\..*|sandbox\..*|archive\.directory"
)


class Reloader:
    """Holds the configuration in force. ``generation`` starts at 1, also as metric tambo_config_generation; ``asked``
    counts reloads, ``refused`` has the problems of the last one, none when it was taken over, and ``changes`` what it
    changed. ``restart``: keys that differ from what the process started with and are read only then."""

    def __init__(
        self, path: str | Path, environ: Mapping[str, str], loaded: Loaded, log: Any, registry: CollectorRegistry | None
    ) -> None:
        self._path = path
        self._environ = environ
        self._log = log
        self._guards: list[Guard] = []
        self._subscribers: list[Subscriber] = []
        self._watchers: list[Callable[[], None]] = []
        self.loaded = loaded
        self.digest = digest_of(loaded)
        self.generation = 1
        self.asked = 0
        self.refused: tuple[str, ...] = ()
        self.changes: dict[str, str] = {}
        self.restart: tuple[str, ...] = ()
        self._first = loaded
        self._metric = Gauge("tambo_config_generation", "Configurations taken over since the start", registry=registry)
        self._metric.set(1)

    @property
    def settings(self) -> Settings:
        return self.loaded.settings

    @property
    def providers(self) -> Providers:
        return self.loaded.providers

    def guard(self, guard: Guard) -> None:
        """Asked before each swap; any problem it names, and any OSError or ValueError, keeps the old one in force."""
        self._guards.append(guard)

    def subscribe(self, subscriber: Subscriber) -> None:
        """Called after each good reload, in order of subscription, from the loop's thread; must not block."""
        self._subscribers.append(subscriber)

    def watch(self, watcher: Callable[[], None]) -> None:
        """Called when a reload is over, whatever came of it."""
        self._watchers.append(watcher)

    def reload(self) -> bool:
        """True when a new configuration is in force (also one without a difference)."""
        try:
            new = load(self._path, self._environ)
            self._ask_guards(new)
        except ConfigError as error:
            self._log.error("configuration refused", path=str(self._path), problems=list(error.problems))
            self._end(error.problems, {})
            return False
        old, self.loaded = self.loaded, new
        self.digest = digest_of(new)
        self.generation += 1
        self._metric.set(self.generation)
        changes = differences(old, new)
        self._say(new, changes)
        for subscriber in self._subscribers:
            self._tell(subscriber, old, new)
        self.restart = tuple(key for key in differences(self._first, new) if NEEDS_RESTART.fullmatch(key))
        self._end((), changes)
        return True

    def _end(self, problems: tuple[str, ...], changes: dict[str, str]) -> None:
        self.asked += 1
        self.refused, self.changes = problems, changes
        for watcher in self._watchers:
            watcher()

    def _ask_guards(self, new: Loaded) -> None:
        problems: list[str] = []
        for guard in self._guards:
            try:
                problems += guard(new)
            except (OSError, ValueError) as error:
                problems.append(f"{type(error).__name__}: {error}")
        if problems:
            raise ConfigError(problems)

    def _say(self, new: Loaded, changes: dict[str, str]) -> None:
        self._log.info("configuration reloaded", path=str(self._path), generation=self.generation, changes=changes)
        if later := [key for key in changes if NEEDS_RESTART.fullmatch(key)]:
            self._log.warning("configuration needs restart", keys=later)
        for warning in new.warnings:
            self._log.warning("configuration warning", text=warning)

    def _tell(self, subscriber: Subscriber, old: Loaded, new: Loaded) -> None:
        """One subscriber's fault must not keep the others on the old configuration."""
        try:
            subscriber(old, new)
        except Exception:
            self._log.exception("configuration subscriber failed", subscriber=getattr(subscriber, "__qualname__", "?"))


def differences(old: Loaded, new: Loaded) -> dict[str, str]:
    """Dotted key → "before → after"; secrets masked, a changed secret is "changed"."""
    before, after = dict(leaves(old.settings)), dict(leaves(new.settings))
    changes = {
        key: f"{before.get(key, 'absent')} → {after.get(key, 'absent')}"
        for key in [*after, *(key for key in before if key not in after)]
        if (key in before, before.get(key)) != (key in after, after.get(key)) and not _spelled_out(key, before, after)
    }
    changes |= dict.fromkeys(_changed_secrets(old.settings, new.settings, before, after), "changed")
    for name in sorted({*old.passwords, *new.passwords}):
        if old.passwords.get(name) != new.passwords.get(name):
            changes[f"routes.{name}.password"] = "changed"
    rules = old.providers.rules, new.providers.rules
    for name in sorted({*rules[0], *rules[1]}):
        if rules[0].get(name) != rules[1].get(name):
            state = "changed" if name in rules[0] and name in rules[1] else ("new" if name in rules[1] else "removed")
            changes[f"providers.{name}"] = state
    return changes


def _spelled_out(key: str, before: Mapping[str, object], after: Mapping[str, object]) -> bool:
    """An empty list that has entries now, or had: they are named one by one."""
    return any(other.startswith(f"{key}[") for other in (before if key in after else after))


def _changed_secrets(old: Settings, new: Settings, before: dict[str, object], after: dict[str, object]) -> list[str]:
    """Keys that look the same once masked and are not."""
    plain = dict(leaves(old, mask=False)), dict(leaves(new, mask=False))
    return [
        key for key in before if key in after and before[key] == after[key] and plain[0].get(key) != plain[1].get(key)
    ]
