"""Composition root of the inbound process: ``python -m relayd.inbound --config PATH``.

Takes returned mail at the listeners of kind inbound. It has no signing key but that of return paths, and no queue: of
what it takes nothing can go out again. Exit codes as relayd's.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections.abc import Iterable, Sequence

import structlog
from prometheus_client import CollectorRegistry

from config.activation import inherited_sockets
from config.load import Loaded
from config.settings import ListenerSettings, RelaydSettings, Settings
from config.start import Start, run
from mailqueue.errors import QueueDown, QueueRefused
from mailqueue.inbound import InboundStore
from mailqueue.processes import presence
from mailqueue.traces import Tap, tapped
from relayd.accounts import Accounts
from relayd.doors import Build, Doors
from relayd.listener.connection import Surroundings, mould
from relayd.listener.inbound import InboundSession
from relayd.metrics import ListenerMetrics
from relayd.returning import Addresses, InboundHandler, Store
from relayd.volume import Volume

log = structlog.get_logger()


class Inbound:
    """Everything of one inbound process but its signals, its metrics port and the store's life."""

    def __init__(self, settings: Settings, store: Store, registry: CollectorRegistry, tap: Tap | None = None) -> None:
        """OSError or ValueError: the key of return paths does not serve."""
        self._settings = settings
        self._metrics = ListenerMetrics(registry)
        self._handler = InboundHandler(store, _addresses(settings), settings.relayd.hostname, self._metrics)
        self._volume = Volume()
        self._tap = tap or Tap()
        self.doors = Doors(_limits(settings), self._furnish, self._metrics, registry, tap=self._tap)

    async def start(self, handed: Iterable[tuple[str, socket.socket]] = ()) -> None:
        """Listen, all or nothing; OSError or ValueError says why not."""
        await self.doors.open(_own(self._settings), handed)

    def check(self, settings: Settings) -> list[str]:
        """What a reload would fail of: OSError or ValueError."""
        _addresses(settings)
        self.doors.check(_own(settings))
        return []

    def reload(self, settings: Settings) -> None:
        """Addresses, keys, limits and certificates for what comes next; nothing is changed when anything is wrong."""
        addresses = _addresses(settings)
        self.doors.reload(_limits(settings), _own(settings))
        self._handler.addresses, self._handler.hostname = addresses, settings.relayd.hostname
        self._settings = settings

    async def drain(self) -> None:
        await self.doors.drain()
        if not await self._handler.settle(self._settings.queue.put_deadline_seconds):
            log.warning("mail is still being kept", action="left to the queue's deadline")

    async def stop(self) -> None:
        """End without waiting for anybody."""
        await self.doors.stop()

    def _furnish(self, settings: RelaydSettings, listener: ListenerSettings, context: ssl.SSLContext | None) -> Build:
        loop = asyncio.get_running_loop()
        around = Surroundings(
            listener=listener.name,
            settings=settings,
            handler=self._handler,
            accounts=Accounts(),  # nobody's
            authenticator=None,
            metrics=self._metrics,
            register=self.doors,
            volume=self._volume,
            mould=mould(self._handler, settings, context, loop),
            tap=self._tap,
        )
        return lambda arrival: InboundSession(around, arrival, loop)


def _own(settings: Settings) -> list[ListenerSettings]:
    return [listener for listener in settings.relayd.listeners if listener.kind == "inbound"]


def _addresses(settings: Settings) -> Addresses:
    return Addresses.load(settings.inbound, settings.signing.return_path_key)


def _limits(settings: Settings) -> RelaydSettings:
    """relayd's, with the size that returned mail may have."""
    return settings.relayd.model_copy(update={"max_message_bytes": settings.inbound.max_message_bytes})


def main(arguments: Sequence[str] | None = None) -> int:
    return run("inbound", "takes returned mail and keeps it", serve, (QueueDown, QueueRefused), arguments)


async def serve(start: Start) -> None:
    """Store, listeners, status port; until SIGTERM; then the drain, and the store last."""
    settings = start.settings
    registry = CollectorRegistry()
    reloader = start.reloader(registry)
    store = await InboundStore.open(settings.queue, settings.inbound.keep)
    try:
        store.watch()
        tap = Tap()
        inbound = Inbound(settings, store, registry, tap)

        def ready() -> list[str]:
            return store.refusals

        def take_over(_old: Loaded, new: Loaded) -> None:
            inbound.reload(new.settings)
            store.most = new.settings.inbound.keep

        reloader.guard(lambda new: inbound.check(new.settings))
        reloader.subscribe(take_over)
        async with (
            start.service(registry, reloader, ready) as service,
            presence(store.shard, start, reloader, service, lambda: {"sessions": inbound.doors.sessions}),
            tapped(store.shard, tap, "inbound"),
        ):
            await inbound.start(handed=inherited_sockets())
            service.started()
            await service.stop.wait()
            await inbound.drain()
    finally:
        await store.close()


if __name__ == "__main__":
    sys.exit(main())
