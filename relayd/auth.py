"""Checking passwords without stopping the loop, and without letting those who guess get in the way.

A correct password that was checked lately, from there, costs a keyed hash and nothing else. Anything else goes
through: is the client or the user refused for what failed before (:mod:`mailqueue.failures`, shared by all processes) →
a place in the queue before argon2, one for all who bring the same (:mod:`relayd.turns`) → argon2id in one thread. What a
client hears and how long it takes do not depend on whether the user exists. Nothing here logs or keeps a password.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import os
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from config.settings import AccountSettings
from mailqueue.errors import QueueDown, ServerAnswer
from mailqueue.failures import Standing, client_network
from relayd.accounts import Accounts
from relayd.turns import Shared, TooManyWaiting, Turns

CACHE_SECONDS = 600.0  # since the password was last used
CACHE_LIMIT = 4096
GLIMPSES = 20  # passwords a second, of a client that is refused, that are compared with those in use
REFUSED_LIMIT = 20_000  # refusals remembered in this process
BELIEVED_SECONDS = 30.0  # a refusal is asked for again after so long: an operator may have ended it
ASK_SECONDS = 2.0
PASSWORD_OCTETS = 1024
NICE = 5
T = TypeVar("T")

_FALLBACK = "$argon2id$v=19$m=19456,t=2,p=1$salt$output"  # OWASP's figures, when no account has a password


class AuthBusy(Exception):
    """No place before argon2, or the failures of others cannot be asked for: answer 454, let the client come back."""


class AuthRefused(Exception):
    """Too many failures of this client or this user: answer 454 without looking at the password."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"refused for {seconds:.0f} s")
        self.seconds = seconds


class Book(Protocol):
    """Failures as all processes know them; each may raise QueueDown."""

    async def ask(self, address: str, user: str) -> Standing: ...
    async def failed(self, address: str, user: str) -> Standing: ...
    async def succeeded(self, address: str, user: str) -> Standing: ...


class Authenticator:
    """One per process; `clock` is monotonic seconds."""

    def __init__(
        self, accounts: Accounts, book: Book, clock: Callable[[], float] = time.monotonic, turns: Turns | None = None
    ) -> None:
        self._accounts = accounts
        self._book = book
        self._clock = clock
        self._turns = turns or Turns()
        self._checks = Shared()
        self._key = os.urandom(32)
        self._good: OrderedDict[bytes, float] = OrderedDict()  # keyed hash → when it stops counting
        self._matched: dict[object, str] = {}  # the same → the stored hash that matched
        self._refused: OrderedDict[str, float] = OrderedDict()  # client network, alone or with a user → until
        self._welcome: OrderedDict[str, float] = OrderedDict()  # client networks of good passwords → until
        self._glimpsed: tuple[int, Counter[str]] = (0, Counter())  # this second's looks from refused networks
        self._hasher = PasswordHasher()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="argon2", initializer=_yield_to_the_loop)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def shuns(self, address: str) -> bool:
        """Nothing but failures comes from there, and too many: not worth a handshake."""
        network = client_network(address)
        return self._until(self._refused, network) > 0 and self._until(self._welcome, network) <= 0

    async def verify(self, user: str, password: bytes, address: str, *, first: bool = True) -> AccountSettings | None:
        """The user's account, or None; raises AuthBusy and AuthRefused. ``first`` of its session: a client that only
        others know is asked about even when strangers crowd the door."""
        account = self._accounts.by_user(user, address)
        if len(password) > PASSWORD_OCTETS:
            return None
        network = client_network(address)
        ticket = self._ticket(network, user, password)
        if self._may_look(network) and self._is_good(ticket, account):
            self._keep(self._welcome, network, CACHE_SECONDS, CACHE_LIMIT)
            return account
        self._refuse_known(network, user)
        if not first and self._until(self._welcome, network) <= 0 and self._turns.full(network, known=False):
            raise AuthBusy
        standing = await self._ask(address, user)
        stored = self._stored(account, user)
        checking = partial(self._check, network, stored, password, standing.known)
        found = await self._checks.ask(b"\0".join((ticket, *map(str.encode, stored))), checking)
        good = account is not None and account.password_hash is not None and found >= 0
        await self._note(address, user, good)
        if not good:
            return None
        self._matched[ticket] = stored[found]
        self._keep(self._good, ticket, CACHE_SECONDS, CACHE_LIMIT)
        return account

    # ── who is refused ─────────────────────────────────────────────────────────────────────────────────────────

    def _refuse_known(self, network: str, user: str) -> None:
        """What this process has heard already costs no round trip."""
        seconds = max(self._until(self._refused, network), self._until(self._refused, f"{network} {user}"))
        if seconds > 0:
            raise AuthRefused(seconds)

    async def _ask(self, address: str, user: str) -> Standing:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                standing = await self._book.ask(address, user)
        except (QueueDown, ServerAnswer, TimeoutError) as down:
            raise AuthBusy from down
        self._heed(standing, address, user)
        if standing.known:
            self._keep(self._welcome, client_network(address), CACHE_SECONDS, CACHE_LIMIT)
        if standing.address > 0 or (standing.user > 0 and not standing.known):
            raise AuthRefused(max(standing.address, standing.user))
        return standing

    async def _note(self, address: str, user: str, good: bool) -> None:
        """The verdict stands, whether or not the others hear of it."""
        try:
            async with asyncio.timeout(ASK_SECONDS):
                if good:
                    self._keep(self._welcome, client_network(address), CACHE_SECONDS, CACHE_LIMIT)
                    await self._book.succeeded(address, user)
                else:
                    self._heed(await self._book.failed(address, user), address, user)
        except (QueueDown, ServerAnswer, TimeoutError):
            pass

    def _heed(self, standing: Standing, address: str, user: str) -> None:
        """A user is refused to strangers only: else anybody could lock out an account."""
        network = client_network(address)
        if standing.address > 0:
            self._keep(self._refused, network, min(standing.address, BELIEVED_SECONDS), REFUSED_LIMIT)
        if standing.user > 0 and not standing.known:
            self._keep(self._refused, f"{network} {user}", min(standing.user, BELIEVED_SECONDS), REFUSED_LIMIT)

    def _until(self, kept: OrderedDict[T, float], name: T) -> float:
        """Seconds left, ≤ 0 when it does not count (any more)."""
        return kept.get(name, 0.0) - self._clock() if name in kept else 0.0

    def _keep(self, kept: OrderedDict[T, float], name: T, seconds: float, most: int) -> None:
        kept[name] = self._clock() + seconds
        kept.move_to_end(name)
        if len(kept) > most:
            gone, _ = kept.popitem(last=False)
            self._matched.pop(gone, None)

    # ── passwords ──────────────────────────────────────────────────────────────────────────────────────────────

    def _stored(self, account: AccountSettings | None, user: str) -> list[str]:
        """The hashes to try; for a user who has none, as many and as dear as some account's that nobody can match."""
        if account is not None and account.password_hash is not None:
            return list(account.hashes(time.time()))
        return self._dummies(user)

    def _may_look(self, network: str) -> bool:
        """Where good clients and guessers share an address the good ones get in; but nobody guesses at the speed of a
        hash that is not meant to be slow."""
        if self._until(self._refused, network) <= 0:
            return True
        second = int(self._clock())
        if self._glimpsed[0] != second:
            self._glimpsed = (second, Counter())
        self._glimpsed[1][network] += 1
        return self._glimpsed[1][network] <= GLIMPSES

    def _ticket(self, network: str, user: str, password: bytes) -> bytes:
        words = (network.encode("ascii"), user.encode("utf-8", "surrogateescape"), password)
        return hmac.digest(self._key, b"\0".join(words), "sha256")

    def _is_good(self, ticket: bytes, account: AccountSettings | None) -> bool:
        """The password was right, from there, lately, and the hash it was right for still counts."""
        if self._until(self._good, ticket) <= 0 or account is None:
            return False
        if self._matched.get(ticket) not in account.hashes(time.time()):
            return False
        self._keep(self._good, ticket, CACHE_SECONDS, CACHE_LIMIT)
        return True

    async def _check(self, network: str, stored: list[str], password: bytes, known: bool) -> int:
        """Which of the hashes matches, −1 = none. All are tried, whatever comes of the first."""
        found = -1
        try:
            async with self._turns.turn(network, known):
                for index, one in enumerate(stored):
                    loop = asyncio.get_running_loop()
                    if await loop.run_in_executor(self._thread, self._matches, one, password) and found < 0:
                        found = index
        except TooManyWaiting:
            raise AuthBusy from None
        return found

    def _matches(self, stored: str, password: bytes) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (Argon2Error, InvalidHashError):
            return False

    def _dummies(self, user: str) -> list[str]:
        """Hashes nobody's password has, as many and with the cost as some account's: the same each time this user is
        tried."""
        digest = hmac.digest(self._key, user.encode("utf-8", "surrogateescape"), "sha512")
        holders = self._accounts.holders
        like = holders[int.from_bytes(digest[:8], "big") % len(holders)].hashes(time.time()) if holders else [_FALLBACK]
        salt, output = (base64.b64encode(part).decode("ascii").rstrip("=") for part in (digest[8:24], digest[24:56]))
        return [f"{one.rsplit('$', 2)[0]}${salt}${output}" for one in like]


def _yield_to_the_loop() -> None:
    """This thread only: where cores are few, passwords wait for sessions and not the other way round."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
