"""Submission: what the sessions of all its listeners share, and what a reload changes of it.

Going (SIGTERM): the doors drain their sessions; commits whose clients have gone are waited for; the queue is closed by
its owner.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterable

import structlog
from prometheus_client import CollectorRegistry, Gauge

from config.settings import ListenerSettings, RelaydSettings, Settings
from mailqueue.accounts import Stored
from mailqueue.traces import Tap
from relayd import replies
from relayd.accounts import Accounts
from relayd.auth import Authenticator, Book
from relayd.doors import Build, Doors
from relayd.handler import Submission, SubmissionHandler
from relayd.listener.connection import Surroundings, mould
from relayd.listener.submission import SubmissionSession
from relayd.metrics import ListenerMetrics
from relayd.prepare import Keys, Preparation, Terms
from relayd.replies import Reply
from relayd.volume import Volume
from signing import keys
from signing.return_path import ReturnPaths

log = structlog.get_logger()


def terms(settings: Settings) -> Terms:
    retry = settings.delivery.retry
    return Terms(
        hostname=settings.relayd.hostname,
        max_recipients=settings.relayd.max_recipients,
        max_hops=settings.relayd.max_hops,
        expire_seconds=retry.expire_seconds,
        notice_seconds=retry.delay_notice_seconds,
        feedback_id=settings.signing.feedback_id,
        routes=settings.routes,
    )


def read_keys(settings: Settings) -> Keys:
    """DKIM keys and the key of return paths; OSError or ValueError names the file that does not serve."""
    signing = settings.signing
    return_paths = ReturnPaths.load(signing.return_path_key) if signing.return_path_key else None
    return Keys(keys.load(signing.directory), return_paths)


class Relayd:
    """Everything of one relayd process but its signals, its metrics port and the queue's life."""

    def __init__(
        self, settings: Settings, queue: Submission, registry: CollectorRegistry, book: Book, tap: Tap | None = None
    ) -> None:
        """ValueError: accounts that contradict each other. OSError or ValueError: a key file that does not serve."""
        self._settings = settings
        self._queue = queue
        self._metrics = ListenerMetrics(registry)
        self._accounts = Accounts(settings.accounts)
        self._authenticator = Authenticator(self._accounts, book)
        self._checked = settings, read_keys(settings)
        self._handler = SubmissionHandler(queue, self._preparation(*self._checked), self._metrics)
        self._volume = Volume()
        self._tap = tap or Tap()
        self.doors = Doors(settings.relayd, self._furnish, self._metrics, registry, self._shun, self._closed, self._tap)
        Gauge("tambo_intake_stopped", "1 while an operator's word keeps new mail out", registry=registry).set_function(
            lambda: bool(queue.stopped)
        )

    # -- life -----------------------------------------------------------------------------------------------------

    async def start(
        self,
        listeners: Iterable[ListenerSettings] | None = None,
        handed: Iterable[tuple[str, socket.socket]] = (),
    ) -> None:
        """Listen, all or nothing; `handed` = sockets of the service manager. OSError or ValueError says why not."""
        await self.doors.open(_own(self._settings) if listeners is None else listeners, handed)

    def check(self, settings: Settings) -> list[str]:
        """What a reload would fail of, said before anything is swapped: OSError or ValueError."""
        Accounts(settings.accounts)
        self.doors.check(_own(settings))
        self._checked = settings, read_keys(settings)
        return []

    def reload(self, settings: Settings) -> None:
        """Accounts, limits, keys and certificates for what comes next; nothing is changed when anything is wrong."""
        self.doors.check(_own(settings))
        checked, held = self._checked
        preparation = self._preparation(settings, held if checked is settings else read_keys(settings))
        self._accounts.swap(settings.accounts)
        self._handler.preparation = preparation
        self.doors.reload(settings.relayd, _own(settings))
        self._settings = settings

    def keep(self, stored: Stored) -> None:
        """The queue's accounts, as they are now."""
        self._accounts.keep(stored.accounts)
        for name, why in stored.unread:
            log.error("account cannot be read", account=name, why=why)
        log.info("accounts taken over", version=stored.version, count=len(stored.accounts))

    async def drain(self) -> None:
        """The written order of going; returns when no session is left."""
        await self.doors.drain()
        if not await self._handler.settle(self._settings.queue.put_deadline_seconds):
            log.warning("commits still under way", action="left to the queue's deadline")
        self._authenticator.close()

    async def stop(self) -> None:
        """End without waiting for anybody."""
        await self.doors.stop()
        self._authenticator.close()

    # -- sessions -------------------------------------------------------------------------------------------------

    def _preparation(self, settings: Settings, held: Keys) -> Preparation:
        return Preparation(terms(settings), held, self._queue.new_id)

    def _furnish(self, settings: RelaydSettings, listener: ListenerSettings, context: ssl.SSLContext | None) -> Build:
        loop = asyncio.get_running_loop()
        around = Surroundings(
            listener=listener.name,
            settings=settings,
            handler=self._handler,
            accounts=self._accounts,
            authenticator=self._authenticator,
            metrics=self._metrics,
            register=self.doors,
            volume=self._volume,
            mould=mould(self._handler, settings, context, loop),
            tap=self._tap,
        )
        return lambda arrival: SubmissionSession(around, arrival, loop)

    def _shun(self, address: str) -> Reply | None:
        shunned = self._authenticator.shuns(address) and self._accounts.by_address(address) is None
        return replies.TOO_MANY_FAILED_AUTH if shunned else None

    def live(self) -> dict[str, object]:
        """For who looks at all processes at once: recipients accepted a second, open sessions."""
        return {"rates": self._metrics.paces.rates(), "sessions": self.sessions}

    def _closed(self) -> Reply | None:
        return replies.INTAKE_STOPPED if self._queue.stopped else None

    @property
    def addresses(self) -> dict[str, tuple[str, int]]:
        """Listener → bound address and port."""
        return self.doors.addresses

    @property
    def sessions(self) -> int:
        """Open sessions."""
        return self.doors.sessions


def _own(settings: Settings) -> list[ListenerSettings]:
    """The listeners of this process; those of kind inbound have one of their own."""
    return [listener for listener in settings.relayd.listeners if listener.kind == "submission"]
