"""Sends mail back to the relay, some time after a message was taken: bounces, complaints, automatic answers.

It goes to one address on loopback, the relay's listener for returned mail, whatever the reverse-path's domain says:
there is no other way out of the sandbox.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import aiosmtplib

from sandbox.behaviour import Later
from sandbox.ledger import Ledger
from sandbox.loopback import require_loopback
from sandbox.shapes import About, Back, named, render

MOST_WAITING = 10_000
TRIES_AFTER = (1.0, 5.0, 15.0, 60.0)  # seconds, where the relay cannot take it now
SECONDS = 30.0  # for one try
NOWHERE = "no listener for returned mail is known to the sandbox"


@dataclass(frozen=True, slots=True)
class Door:
    """Where mail goes back to; ``complaints``: the address that feedback loops know, "" = none."""

    address: str
    port: int
    complaints: str = ""

    def __post_init__(self) -> None:
        require_loopback(self.address)

    @classmethod
    def parse(cls, text: str, complaints: str = "") -> Door:
        """From ``127.0.0.1:2526``; ValueError, also for what is not loopback."""
        host, _, port = text.rpartition(":")
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"{text!r} is no ADDRESS:PORT")
        return cls(host.strip("[]"), int(port), complaints)


class Mailer:
    """One per sandbox. What waits when the sandbox stops is not sent, and the ledger does not have it."""

    def __init__(self, ledger: Ledger, door: Door | None) -> None:
        self._ledger = ledger
        self.door = door
        self._tasks: set[asyncio.Task[str]] = set()

    def later(self, later: Later, about: About) -> None:
        """In so many seconds; at the bound of :data:`MOST_WAITING` it is left."""
        if len(self._tasks) >= MOST_WAITING:
            self._ledger.returned(later.shape, "", about.recipient, "left: too many wait")
            return
        task = asyncio.get_running_loop().create_task(self._in_time(later, about))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def send(self, shape: str, about: About) -> tuple[str, str]:
        """Now; (to whom, the relay's reply). ValueError for an unknown shape or when there is no way."""
        back = self._back(shape, about)
        if isinstance(back, str):
            raise ValueError(back)
        said = await self._try(back)
        self._ledger.returned(shape, back.to, about.recipient, said)
        self._ledger.flush()
        return back.to, said

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _back(self, shape: str, about: About) -> Back | str:
        """The mail, or why there is none."""
        known = named(shape)
        to = self.door.complaints if self.door and known.to == "complaints" else about.reverse_path
        if self.door is None:
            return NOWHERE
        if not to:
            reason = "no address for complaints is known" if about.reverse_path else "the reverse-path is null"
            return f"nothing goes back: {reason}"
        return render(shape, about, to, time.time())

    async def _in_time(self, later: Later, about: About) -> str:
        await asyncio.sleep(later.after_seconds)
        back = self._back(later.shape, about)
        said, to = (back, "") if isinstance(back, str) else ("", back.to)
        if not isinstance(back, str):
            for pause in (*TRIES_AFTER, 0.0):
                said = await self._try(back)
                if said[:1] in "25" or not pause:
                    break
                await asyncio.sleep(pause)
        self._ledger.returned(later.shape, to, about.recipient, said)
        self._ledger.flush()
        return said

    async def _try(self, back: Back) -> str:
        """One attempt; "250 …" when it was taken."""
        assert self.door is not None
        try:
            client = aiosmtplib.SMTP(
                hostname=self.door.address,
                port=self.door.port,
                start_tls=False,
                timeout=SECONDS,
                local_hostname="mx.test",
            )
            async with client:
                _, said = await client.sendmail(back.sender, [back.to], back.content)
            return f"250 {said}"
        except aiosmtplib.SMTPRecipientsRefused as refused:
            first = refused.recipients[0]
            return f"{first.code} {first.message}"
        except aiosmtplib.SMTPResponseException as refused:
            return f"{refused.code} {refused.message}"
        except (aiosmtplib.SMTPException, OSError) as error:
            return f"no answer: {error}"
