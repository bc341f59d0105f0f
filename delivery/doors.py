"""Opening a session at a site: every host in order, every address, with TLS or without, until one lets us in."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from config.replies import Rules
from config.settings import TimeoutSettings
from delivery.connect import SessionFailed
from delivery.opening import Opening
from delivery.outcome import Outcome, Via, at_site, login_failed, lost, not_connected, replied, timed_out, tls_failed
from delivery.overhear import Overheard
from delivery.pool import Source
from delivery.reply import Ear, Phase
from delivery.router import Host
from delivery.session import Session
from delivery.smarthost import Smarthost, SmarthostSession
from delivery.tls import BrokenTls, TlsMode, opportunistic_context
from delivery.wire import deadlines
from mailqueue.traces import Tap

AnySession = Session | SmarthostSession
OnLost = Callable[[AnySession, str], None]

SHUN_SECONDS = 60.0  # a host that could not be reached is tried last for so long
MOST_TRIED = 6  # addresses in one attempt: it must end before the ticket does


class NoSession(Exception):
    """``blame``: the site (no host lets us in) · the source (our address is refused or gone) · us (no port left)."""

    def __init__(self, outcome: Outcome, blame: Literal["site", "source", "us"], kind: str) -> None:
        super().__init__(outcome.diagnostic)
        self.outcome = outcome
        self.blame = blame
        self.kind = kind


@dataclass(slots=True)
class Doors:
    """One per process. Remembers hosts and addresses that were shut, and hosts whose TLS is broken."""

    timeouts: TimeoutSettings
    port: int
    rules: Rules
    broken_tls: BrokenTls = field(default_factory=BrokenTls)
    context: ssl.SSLContext = field(default_factory=opportunistic_context)
    shut: dict[str, float] = field(default_factory=dict)
    tap: Tap = field(default_factory=Tap)

    async def open(
        self,
        hosts: Iterable[Host],
        source: Source,
        tls: TlsMode,
        on_lost: OnLost,
        opening: Opening,
        smarthost: Smarthost | None = None,
        waiting: Callable[[], Collection[str]] = tuple,
    ) -> AnySession:
        """Raises NoSession when nobody lets us in. ``opening`` follows how far it comes. ``smarthost``: whose addresses the
        hosts are; then ``tls`` is its. ``waiting``: the domains whose mail the session is for, where somebody listens."""
        failed: NoSession | None = None
        for host, address in self._order(hosts, source):
            ear = Overheard(self.tap, f"{host}[{address}]", source.address, waiting()) if self.tap.on else None
            opening.tries(host, address, ear)
            try:
                session: AnySession
                if smarthost is not None:
                    session = await self._open_smarthost(smarthost, address, source, on_lost, opening)
                else:
                    session = await self._open_one(host, address, source, tls, on_lost, opening)
                session.ear = ear
                self.shut.pop(host, None)
                self.shut.pop(address, None)
                return session
            except NoSession as refusal:
                if ear is not None:
                    ear("*", Phase.CONNECT, f"no session: {refusal.outcome.diagnostic}")
                if refusal.blame != "site":
                    raise
                failed = refusal
                if refusal.kind == "auth":  # another address knows no other users; too many tries lock one out
                    break
                self.shun(host)
        if failed is None:
            text = f"no mail host has an address of the family of {source.address}"
            failed = NoSession(not_connected(text, Via(source=source.address)), "source", "family")
        raise NoSession(at_site(failed.outcome), failed.blame, failed.kind)

    def _order(self, hosts: Iterable[Host], source: Source) -> Iterator[tuple[str, str]]:
        """(host, address) in order of preference, those shut or silent lately behind the others."""
        now = asyncio.get_running_loop().time()
        pairs = [
            (host.name, address)
            for host in hosts
            for address in host.addresses
            if not source.address or ipaddress.ip_address(address).version == source.version
        ]
        pairs.sort(key=lambda pair: any(self.shut.get(name, 0.0) > now for name in pair))
        return iter(pairs[:MOST_TRIED])

    def shun(self, host: str) -> None:
        """A host, or one address: tried last for a while."""
        now = asyncio.get_running_loop().time()
        if len(self.shut) > 10_000:
            self.shut = {name: until for name, until in self.shut.items() if until > now}
        self.shut[host] = now + SHUN_SECONDS

    async def _open_smarthost(
        self, smarthost: Smarthost, address: str, source: Source, on_lost: OnLost, ear: Ear
    ) -> SmarthostSession:
        try:
            return await SmarthostSession.open(
                smarthost,
                address,
                source=source.address or None,
                hostname=source.hostname,
                timeouts=self.timeouts,
                on_lost=on_lost,
                ear=ear,
            )
        except SessionFailed as failed:
            raise self._refusal(failed, smarthost.settings.host, address, source) from failed

    async def _open_one(
        self, host: str, address: str, source: Source, tls: TlsMode, on_lost: OnLost, ear: Ear
    ) -> Session:
        clock = asyncio.get_running_loop().time
        mode = self.broken_tls.mode(host, tls, clock())
        try:
            return await self._session(host, address, source, mode, on_lost, ear)
        except SessionFailed as failed:
            if failed.kind != "tls" or mode is not TlsMode.OPPORTUNISTIC:
                raise self._refusal(failed, host, address, source) from failed
            ear("*", failed.phase, f"{failed.text}; again without TLS")
        self.broken_tls.remember(host, clock())
        try:
            return await self._session(host, address, source, TlsMode.NONE, on_lost, ear)
        except SessionFailed as failed:
            raise self._refusal(failed, host, address, source) from failed

    async def _session(
        self, host: str, address: str, source: Source, mode: TlsMode, on_lost: OnLost, ear: Ear
    ) -> Session:
        return await Session.open(
            host,
            address,
            self.port,
            source=source.address or None,
            hostname=source.hostname,
            timeouts=self.timeouts,
            tls=mode,
            context=self.context if mode is not TlsMode.NONE else None,
            on_lost=on_lost,
            ear=ear,
        )

    def _refusal(self, failed: SessionFailed, host: str, address: str, source: Source) -> NoSession:
        via = Via(f"{host} [{address}]", source.address)
        match failed.kind:
            case "address_gone":
                return NoSession(not_connected(failed.text, via, our_fault=True), "source", failed.kind)
            case "address_in_use":
                return NoSession(not_connected(failed.text, via, our_fault=True), "us", failed.kind)
            case "reply" if failed.reply is not None:
                outcome = replied(failed.reply, failed.phase, self.rules, via)
                return NoSession(outcome, "source" if outcome.another_source else "site", failed.kind)
            case "auth":
                return NoSession(login_failed(failed.text, via, failed.reply), "site", failed.kind)
            case "tls":
                return NoSession(tls_failed(failed.text, via, failed.phase), "site", failed.kind)
            case "refused" | "dns":
                return NoSession(not_connected(failed.text, via), "site", failed.kind)
            case "timeout" if failed.phase == "connect":
                return NoSession(not_connected(failed.text, via), "site", failed.kind)
            case "timeout":
                seconds = deadlines(self.timeouts)
                return NoSession(timed_out(failed.phase, seconds[failed.phase], via), "site", failed.kind)
            case _:
                return NoSession(lost(failed.phase, failed.text, via), "site", failed.kind)
