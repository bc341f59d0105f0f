"""Checking passwords without stopping the loop: argon2id in one thread, a bounded queue before it, a cache behind.

Only successes are cached, under a keyed hash that includes the stored hash: a changed password is a miss at once.
An unknown user costs what a known one costs. Nothing here logs or keeps a password.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from config.settings import AccountSettings
from relayd.accounts import Accounts

QUEUE_LIMIT = 32  # verifications waiting; at 20–100 ms each the last one waits a few seconds
CACHE_SECONDS = 300.0
CACHE_LIMIT = 1024
PASSWORD_OCTETS = 1024
_FALLBACK = "$argon2id$v=19$m=19456,t=2,p=1$"  # OWASP's figures, when no account has a password


class AuthBusy(Exception):
    """The queue before argon2 is full: answer 454 and let the client come back."""


class Authenticator:
    """One per process; `clock` is monotonic seconds."""

    def __init__(self, accounts: Accounts, clock: Callable[[], float] = time.monotonic) -> None:
        self._accounts = accounts
        self._clock = clock
        self._key = os.urandom(32)
        self._good: OrderedDict[bytes, float] = OrderedDict()  # keyed hash → when it stops counting
        self._hasher = PasswordHasher()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="argon2")
        self._waiting = 0

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def verify(self, user: str, password: bytes) -> AccountSettings | None:
        """The user's account, or None; raises AuthBusy."""
        account = self._accounts.by_user(user)
        if len(password) > PASSWORD_OCTETS:
            return None
        if account is None or account.password_hash is None:
            await self._argon2(self._dummy(user), password)
            return None
        stored = account.password_hash.get_secret_value()
        ticket = self._ticket(user, password, stored)
        if self._is_good(ticket):
            return account
        if not await self._argon2(stored, password):
            return None
        self._remember(ticket)
        return account

    def _ticket(self, user: str, password: bytes, stored: str) -> bytes:
        text = b"\0".join((user.encode("utf-8", "surrogateescape"), password, stored.encode("ascii", "replace")))
        return hmac.digest(self._key, text, "sha256")

    def _is_good(self, ticket: bytes) -> bool:
        until = self._good.get(ticket)
        if until is None:
            return False
        if until <= self._clock():
            del self._good[ticket]
            return False
        self._good.move_to_end(ticket)
        return True

    def _remember(self, ticket: bytes) -> None:
        self._good[ticket] = self._clock() + CACHE_SECONDS
        if len(self._good) > CACHE_LIMIT:
            self._good.popitem(last=False)

    async def _argon2(self, stored: str, password: bytes) -> bool:
        if self._waiting >= QUEUE_LIMIT:
            raise AuthBusy
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._matches, stored, password)
        finally:
            self._waiting -= 1

    def _matches(self, stored: str, password: bytes) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (Argon2Error, InvalidHashError):
            return False

    def _dummy(self, user: str) -> str:
        """A hash nobody's password has, with the cost of some account's: the same one each time this user is tried."""
        digest = hmac.digest(self._key, user.encode("utf-8", "surrogateescape"), "sha512")
        hashes = self._accounts.password_hashes
        cost = hashes[int.from_bytes(digest[:8], "big") % len(hashes)].rsplit("$", 2)[0] + "$" if hashes else _FALLBACK
        salt, output = (base64.b64encode(part).decode("ascii").rstrip("=") for part in (digest[8:24], digest[24:56]))
        return f"{cost}{salt}${output}"
