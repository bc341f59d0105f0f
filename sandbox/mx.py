"""The mail hosts: one listening socket per host, all on the same port; a host that is down has none."""

from __future__ import annotations

import asyncio
import errno
import socket

from sandbox.connection import Reception
from sandbox.loopback import EphemeralPort, bound
from sandbox.receiver import Receiver
from sandbox.world import Host

_BACKLOG = 1024


class MailHosts:
    """Listeners by host; ``port`` is known after :meth:`start`."""

    def __init__(self, reception: Reception, port: int = 0) -> None:
        self._reception = reception
        self._servers: dict[str, asyncio.Server] = {}
        self.port = port
        self.absent: list[str] = []  # hosts whose address this machine does not have (::1)

    async def start(self) -> None:
        """Bind all hosts that listen to one port; OSError when a fixed port is taken anywhere."""
        hosts = [host for host in self._reception.world.hosts.values() if host.listen]
        sockets: list[tuple[Host, socket.socket]] = []
        for attempt in EphemeralPort(self.port):
            with attempt:
                self.absent.clear()
                sockets.clear()
                port = attempt.port
                for host in hosts:
                    made = self._bound(host, port)
                    if made is not None:
                        attempt.hold(made)
                        port = int(made.getsockname()[1])
                        sockets.append((host, made))
        self.port = port
        for host, made in sockets:
            if not host.owner.behaviour.down:
                await self._serve(host, made)
            else:
                made.close()

    async def stop(self) -> None:
        """Nobody listens; open sessions get 421."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()
        for session in tuple(self._reception.sessions):
            session.shut(b"421 4.3.2 The sandbox is closing\r\n")

    async def lower(self, host: Host) -> None:
        """The host goes down: nobody listens, open sessions are cut."""
        server = self._servers.pop(host.name, None)
        if server is None:
            return
        server.close()
        for session in tuple(self._reception.sessions):
            if session.host is host:
                session.shut()

    async def lift(self, host: Host) -> None:
        """The host is up again, on the same address and port."""
        if host.listen and host.name not in self._servers:
            made = self._bound(host, self.port)
            if made is not None:
                await self._serve(host, made)

    def _bound(self, host: Host, port: int) -> socket.socket | None:
        try:
            return bound(host.address, port, socket.SOCK_STREAM)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
            self.absent.append(host.name)
            return None

    async def _serve(self, host: Host, made: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._servers[host.name] = await loop.create_server(
            lambda: Receiver(self._reception, host), sock=made, backlog=_BACKLOG
        )
