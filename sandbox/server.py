"""The sandbox as an object: start, steer, read, stop. Composition of world, DNS, mail hosts, ledger and control."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Self

from config.settings import SandboxSettings
from sandbox.assessor import Assessor
from sandbox.certificate import Certificates
from sandbox.connection import Reception
from sandbox.control import ControlSocket
from sandbox.dmarc import Suffixes
from sandbox.dns import DnsServer
from sandbox.ledger import Ledger
from sandbox.loopback import require_loopback
from sandbox.maildir import Store
from sandbox.mailer import Door, Mailer
from sandbox.mx import MailHosts
from sandbox.published import Published
from sandbox.scenario import DnsMode, Scenario, TimelineEntry, load
from sandbox.world import World
from sandbox.zones import Zones

UNPACK_SECONDS = 5.0  # at the end; what is still in the spool then is unpacked at the next start


class Sandbox:
    """``async with Sandbox(directory) as sandbox: …``; ports are free ones unless given.

    Raises ValueError for addresses that are not loopback and for an impossible scenario, OSError for taken ports.
    """

    def __init__(
        self,
        directory: Path,
        scenario: Scenario | None = None,
        *,
        dns: str = "127.0.0.1:0",
        first_address: str = "127.0.2.1",
        port: int = 0,
        store: bool = False,
        control: Path | None = None,
        keys: Path | None = None,
        door: Door | None = None,
    ) -> None:
        """``keys``: a signing directory, whose public keys are in the DNS; ``door``: where mail goes back to."""
        dns_host, _, dns_port = dns.rpartition(":")
        require_loopback(dns_host.strip("[]"))
        self.world = World(scenario or load(), first_address)
        self.directory = directory
        self.ledger: Ledger = Ledger(directory / "ledger.jsonl")
        self.authority = directory / "authority.pem"
        self.store = Store(directory / "mail") if store else None
        self.zones = Zones(self.world, Published(keys))
        self.dns = DnsServer(self.world, dns_host.strip("[]"), int(dns_port), self.zones)
        self.mailer = Mailer(self.ledger, door)
        suffixes = Suffixes(self.world.scenario.dns.public_suffixes)
        self.assessor = Assessor(self.store, self.ledger, self.zones.lookup, suffixes)
        self.certificates = Certificates(tuple(self.world.hosts))
        reception = Reception(self.world, self.ledger, self.certificates, self.assessor, self.mailer, self.store)
        self.mail_hosts = MailHosts(reception, port)
        self._control = ControlSocket(self, control) if control else None
        self._stopped = False
        self._timeline: set[asyncio.Task[None]] = set()
        self._changes: dict[tuple[str, bool, tuple[str, ...]], TimelineEntry] = {}  # those that will be undone

    @classmethod
    def from_settings(cls, settings: SandboxSettings, scenario: Scenario | None = None, **options: Any) -> Self:
        """With the addresses of the configuration."""
        chosen = {"dns": settings.dns, "first_address": settings.address, "port": settings.port, **options}
        return cls(Path(settings.directory), scenario, **chosen)

    @property
    def dns_address(self) -> str:
        """``"127.0.0.1:5353"``: the name server for delivery."""
        return self.dns.address

    @property
    def port(self) -> int:
        """The port of every mail host."""
        return self.mail_hosts.port

    async def start(self) -> None:
        self.authority.write_bytes(self.certificates.authority)
        try:
            await self.mail_hosts.start()
            await self.dns.start()
            if self._control is not None:
                await self._control.start()
        except BaseException:
            await self.stop()
            raise
        for entry in self.world.scenario.timeline:
            self._timeline.add(asyncio.get_running_loop().create_task(self._play(entry)))

    async def stop(self) -> None:
        """Timeline and control first, what goes back and verdicts, then names, then hosts (421 to open sessions); the ledger is closed last."""
        for task in self._timeline:
            task.cancel()
        await asyncio.gather(*self._timeline, return_exceptions=True)
        if self._control is not None:
            await self._control.stop()
        await self.mailer.stop()
        await self.assessor.stop()
        await self.dns.stop()
        await self.mail_hosts.stop()
        if self.store is not None and not self._stopped:
            await asyncio.to_thread(self.store.unpack, seconds=UNPACK_SECONDS)
            self.store.close()
        self._stopped = True
        self.ledger.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def set_behaviour(self, name: str, behaviour: str, sources: tuple[str, ...] = (), share: float = 1.0) -> None:
        """A domain's behaviour from now on, for all or some sources, ``share`` of the time; ``down`` works on a single
        host's name too.

        ``normal`` = as the scenario has it. Raises ValueError for unknown names.
        """
        if name in self.world.domains:
            self.world.behave(name, behaviour, sources, share)
            down = self.world.domains[name].behaviour.down
        elif behaviour in ("down", "normal", "accept"):
            down = behaviour == "down"
        else:
            raise ValueError(f"{name!r} is no domain; a host can only be down or normal")
        self.ledger.change(name, behaviour, sources)
        for host in self.world.hosts_of(name):
            await (self.mail_hosts.lower(host) if down else self.mail_hosts.lift(host))

    def pause_dns(self, mode: DnsMode = "servfail", name: str = "") -> None:
        """DNS outage, of everything or of one name and those below it."""
        self.ledger.change(f"dns {name}".strip(), mode)
        self.dns.pause(mode, name)

    def resume_dns(self, name: str = "") -> None:
        self.pause_dns("normal", name)

    async def timeline_over(self) -> None:
        """Wait until all the scenario's changes have been made; raises what one of them raised."""
        await asyncio.gather(*self._timeline)

    def host_address(self, name: str) -> str:
        return self.world.hosts[name].address

    def endpoints(self) -> dict[str, Any]:
        """What another process needs: addresses, port, files; JSON-able."""
        return {
            "dns": self.dns_address,
            "port": self.port,
            "hosts": {host.name: host.address for host in self.world.hosts.values() if host.listen},
            "absent": self.mail_hosts.absent,
            "providers": self.world.providers(),
            "domains": sorted(self.world.domains),
            "ledger": str(self.ledger.path),
            "mail": str(self.store.directory) if self.store else "",
            "authority": str(self.authority),
            "control": str(self._control.path) if self._control else "",
        }

    async def change(self, entry: TimelineEntry) -> None:
        """One change now, undone after its ``for_seconds`` unless another of the same thing came between."""
        if entry.dns is not None:
            self.pause_dns(entry.dns, entry.domain)
        if entry.set:
            await self.set_behaviour(entry.domain, entry.set, entry.sources, entry.share)
        if entry.for_seconds is not None:
            self._changes[_what(entry)] = entry
            self._timeline.add(asyncio.get_running_loop().create_task(self._undo(entry, entry.for_seconds)))
        else:
            self._changes.pop(_what(entry), None)

    async def _play(self, entry: TimelineEntry) -> None:
        await asyncio.sleep(entry.after_seconds)
        await self.change(entry.model_copy(update={"for_seconds": None}))
        if entry.for_seconds is not None:
            self._changes[_what(entry)] = entry
            await self._undo(entry, entry.for_seconds)

    async def _undo(self, entry: TimelineEntry, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if self._changes.get(_what(entry)) is not entry:
            return
        del self._changes[_what(entry)]
        if entry.dns is not None:
            self.resume_dns(entry.domain)
        if entry.set:
            await self.set_behaviour(entry.domain, "normal", entry.sources)


def _what(entry: TimelineEntry) -> tuple[str, bool, tuple[str, ...]]:
    """What a change is of: a later one of the same takes its place."""
    return entry.domain, entry.dns is not None, entry.sources
