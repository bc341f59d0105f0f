"""The gate to Redis: connections without automatic retries, scripts by SHA, foreign exceptions translated.

redis-py repeats a command after a lost answer by default; a script of ours that is not told to be repeated must not
be. So retries are off, and whoever may repeat does so knowingly (:mod:`mailqueue.batch`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

import hiredis
import redis.asyncio as aioredis
from redis import exceptions as redis_errors
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from mailqueue import keys
from mailqueue.errors import LeaseLost, QueueDown, ServerAnswer

VERBS = (
    *("put", "due", "claim", "settle", "worker", "reap", "look_at", "withdraw", "notices", "notified", "stop"),
    *("inbound", "auth", "accounts", "bag", "alarm", "intake", "overdue", "group", "trim", "behind"),
    "lease",
    "census",
    "restore",
    "spend",
)
QUOTA_VERBS = ("ledger", "rate")
Argument = bytes | str | int | float


class _Client(aioredis.Redis):
    """Loses no cancellation. The client sends by asyncio.wait_for, and before Python 3.12 that swallows one which comes
    just as the sending ends (bpo-37658): tasks went on and time-outs around them never came."""

    def __init__(self, *words: Any, **options: Any) -> None:
        super().__init__(*words, **options)
        self._asked: dict[asyncio.Task[Any], int] = {}  # task in a command → cancellations when it began

    async def execute_command(self, *words: Any, **options: Any) -> Any:
        task = asyncio.current_task()
        assert task is not None
        before = self._asked[task] = task.cancelling()
        try:
            return await super().execute_command(*words, **options)  # type: ignore[no-untyped-call]
        finally:
            self._asked.pop(task, None)
            if task.cancelling() > before:
                raise asyncio.CancelledError

    async def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        """What comes between sending and reading: no waiting for an answer that nobody wants."""
        task = asyncio.current_task()
        if task is not None and task.cancelling() > self._asked.get(task, task.cancelling()):
            await connection.disconnect(nowait=True)  # the answer must not be read by the next command
            raise asyncio.CancelledError
        return await super().parse_response(connection, command_name, **options)


class _Packing:
    """A connection that packs in C: the client's asyncio half does it in Python, word by word."""

    def pack_command(self, *words: Any) -> list[bytes]:
        if isinstance(words[0], str) and " " in words[0]:  # of the client's own making: two words in one
            packed: list[bytes] = super().pack_command(*words)  # type: ignore[misc]
            return packed
        return [hiredis.pack_command(words)]


def connect(url: str, password: str | None = None, *, timeout: float | None = 10.0, most: int = 16) -> aioredis.Redis:
    """A client of at most ``most`` connections, for which calls wait in turn; ``timeout`` seconds for each answer, None =
    for ever (blocking commands, callers with a time-out of their own)."""
    pool = aioredis.BlockingConnectionPool.from_url(
        url,
        password=password,
        max_connections=most,
        timeout=timeout,
        socket_timeout=timeout,
        socket_connect_timeout=5.0,
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        health_check_interval=0,
        protocol=2,
    )
    pool.connection_class = type("Connection", (_Packing, pool.connection_class), {})
    client = _Client.from_pool(pool)
    client.response_callbacks.clear()  # answers as the server gives them; this package gives them their meaning
    return client


def translated(error: BaseException) -> Exception:
    """Our exception for one of the client's: down (worth repeating) or an answer (not worth it)."""
    if isinstance(error, redis_errors.ResponseError):
        code = getattr(error, "status_code", None)  # the client takes the codes it knows off the text
        text = f"{code} {error}" if code else str(error)
        if text.startswith("LOST"):
            return LeaseLost(text)
        if text.startswith(("LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MISCONF")):
            return QueueDown(text)
        return ServerAnswer(text)
    return QueueDown(f"{type(error).__name__}: {error}")


FOREIGN = (redis_errors.RedisError, OSError, asyncio.TimeoutError)


class Slot:
    """Keys of one hash slot and the scripts that know them, on one client."""

    def __init__(self, client: aioredis.Redis, prefix: str, events: str, sources: dict[str, str]) -> None:
        self.client = client
        self.prefix = prefix
        self.events = events
        self._sources = sources
        self._sha = {verb: hashlib.sha1(text.encode()).hexdigest() for verb, text in sources.items()}  # noqa: S324

    async def run(self, verb: str, arguments: Sequence[Argument]) -> Any:
        """Runs a verb once. Raises QueueDown (carried out or not: unknown), LeaseLost, ServerAnswer."""
        try:
            try:
                return await self._execute("EVALSHA", self._sha[verb], arguments)
            except redis_errors.NoScriptError:
                return await self._execute("EVAL", self._sources[verb], arguments)
        except FOREIGN as error:
            answer = translated(error)
            # Passes as mail goes; only new mail is refused.
            if verb not in ("put", "inbound") and str(answer).startswith("OOM"):
                answer = QueueDown(str(answer))
            raise answer from error

    async def _execute(self, command: str, script: str, arguments: Sequence[Argument]) -> Any:
        return await self.client.execute_command(command, script, 2, self.prefix, self.events, *arguments)  # type: ignore[no-untyped-call]

    async def run_each(self, verb: str, calls: Sequence[Sequence[Argument]]) -> list[Any]:
        """A verb several times in one round trip; each call is a step of its own. Raises as :meth:`run`: then an unknown
        number of them was carried out."""
        if not calls:
            return []
        first = await self.run(verb, calls[0])  # the server knows the script from now on
        rest = [("EVALSHA", self._sha[verb], 2, self.prefix, self.events, *words) for words in calls[1:]]
        return [first, *await self.commands(rest)]

    async def commands(self, batch: Sequence[Sequence[Argument]]) -> list[Any]:
        """Commands in one round trip, each answered. Raises what the first of them that failed says, or QueueDown."""
        if not batch:
            return []
        async with self.client.pipeline(transaction=False) as pipe:
            for words in batch:
                pipe.execute_command(*words)
            try:
                return list(await pipe.execute())
            except FOREIGN as error:
                raise translated(error) from error

    async def time(self) -> float:
        """Unix seconds by the server's clock. Raises QueueDown."""
        seconds, micros = await self.command("TIME")
        return int(seconds) + int(micros) / 1e6

    async def command(self, *words: Argument) -> Any:
        try:
            return await self.client.execute_command(*words)  # type: ignore[no-untyped-call]
        except FOREIGN as error:
            raise translated(error) from error


class Shard(Slot):
    """One shard of the queue: its number, its keys, its scripts on one client."""

    def __init__(self, client: aioredis.Redis, number: int, sources: dict[str, str]) -> None:
        super().__init__(client, keys.prefix(number), keys.events(number), sources)
        self.number = number


def quota_slot(client: aioredis.Redis) -> Slot:
    """Where ledgers and rates lie; they have no events."""
    return Slot(client, keys.QUOTA, keys.QUOTA, load_sources(QUOTA_VERBS, prelude=""))


def load_sources(verbs: Sequence[str] = VERBS, prelude: str = "prelude") -> dict[str, str]:
    """The verbs' texts, each with the prelude in front; read from package data when a queue is opened."""
    folder = resources.files("mailqueue") / "lua"
    head = (folder / f"{prelude}.lua").read_text(encoding="utf-8") if prelude else ""
    return {verb: head + (folder / f"{verb}.lua").read_text(encoding="utf-8") for verb in verbs}
