"""The gate between the limit store and its server: Lua from package data, one exception, a named time-out.

Every foreign exception of a call ends here as ``LimitsDown``. Scripts are called by digest and sent whole when the
server does not know them (NOSCRIPT: a restart, SCRIPT FLUSH); they use only what Redis 6.2, 7 and Valkey share.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.exceptions import BusyLoadingError, ConnectionError, NoScriptError, RedisError

from ipreputation.plans import Plan

_PARTS = {  # script → the files it is put together from
    "connect": ("gcra", "wake", "connect"),
    "take": ("gcra", "take"),
    "give_back": ("gcra", "give_back"),
    "release": ("wake", "release"),
    "pass_on": ("wake", "pass_on"),
    "extend": ("extend",),
}


class LimitsDown(Exception):
    """The server of the limits gave no usable answer; nothing is known to be granted. The caller pauses."""


@dataclass(frozen=True, slots=True)
class _Script:
    text: str
    digest: str


def _load(name: str) -> _Script:
    folder = resources.files("ipreputation").joinpath("lua")
    text = "\n".join(folder.joinpath(f"{part}.lua").read_text("utf-8") for part in _PARTS[name])
    return _Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


class Scripts:
    """``run(name, plan)`` → the script's reply (lists of integers)."""

    def __init__(self, redis: Redis, answer_seconds: float) -> None:
        """``redis`` must leave repeating and waiting to this gate, else ValueError. Reads the Lua files.

        redis-py repeats ten times by default. Its own socket time-out runs under ``asyncio.wait_for``, which before
        Python 3.12 may swallow a cancellation: a task that is told to stop would go on.
        """
        settings = redis.connection_pool.connection_kwargs
        retry = settings.get("retry")
        if retry is None or retry.get_retries() != 0 or settings.get("socket_timeout", 5) is not None:
            raise ValueError("the limit store needs a client with retry=Retry(NoBackoff(), 0) and socket_timeout=None")
        self._redis = redis
        self._answer_seconds = answer_seconds
        self._scripts = {name: _load(name) for name in _PARTS}

    async def run(self, name: str, plan: Plan, *, repeat: bool = False) -> Any:
        """``repeat`` (only for scripts that may run twice): once more, with ``again`` set, if the connection broke.

        A time-out is never repeated: the first call may still be under way.
        """
        try:
            async with asyncio.timeout(self._answer_seconds):
                try:
                    return await self._evaluate(self._scripts[name], plan.keys, orjson.dumps(plan.body))
                except ConnectionError as error:
                    if not repeat or isinstance(error, BusyLoadingError):
                        raise
                return await self._evaluate(self._scripts[name], plan.keys, orjson.dumps({**plan.body, "again": True}))
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            reason = str(error) or f"no answer within {self._answer_seconds:g} s"
            raise LimitsDown(f"{name}: {type(error).__name__}: {reason}") from error

    async def _evaluate(self, script: _Script, keys: list[str], plan: bytes) -> Any:
        arguments = (len(keys), *keys, plan)
        try:
            return await self._redis.execute_command("EVALSHA", script.digest, *arguments)  # type: ignore[no-untyped-call]
        except NoScriptError:
            return await self._redis.execute_command("EVAL", script.text, *arguments)  # type: ignore[no-untyped-call]
