"""Long lines: the same input through a real Postfix and through us has the same breaks."""

from __future__ import annotations

import asyncio
import smtplib
import tempfile
from functools import partial
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.postfix import Postfix, hindrance
from relayd import lines
from tests.conftest import lacking
from tests.queue_kit import eventually
from tests.smtp_peer import peer

DIGITS = b"0123456789" * 600
HEAD = b"From: a@b.example\r\nMessage-ID: <x@b>\r\nDate: Sat, 21 Nov 2026 01:25:26 +0000\r\n"
LENGTHS = (997, 998, 999, 1994, 1995, 1996, 2047, 2048, 2049, 3000)
CASES = [
    *(HEAD + b"Subject: x\r\n\r\nhello\r\n" + DIGITS[:size] + b"\r\nend\r\n" for size in LENGTHS),
    *(HEAD + b"X-Long: " + DIGITS[: size - 8] + b"\r\nSubject: x\r\n\r\nhello\r\n" for size in LENGTHS),
    HEAD + b"X-Long: a\r\n " + b"z" * 3000 + b"\r\n\tmore\r\n\r\nhello\r\n",
    HEAD + b"X-Long: a" + b" " * 1500 + b"z" * 1500 + b"\r\n\r\nhello\r\n",
    HEAD + b"\r\n" + b"." * 3000 + b"\r\n" + b" " * 2000 + b"x\r\n",
    HEAD + b"\r\n" + "ñ".encode() * 2000 + b"\r\n",
]


async def _all_of(messages: list[bytes]) -> bool:
    return len(messages) == len(CASES)


def test_broken_where_postfix_breaks() -> None:
    if why := hindrance():
        lacking(why)

    async def scenario(directory: Path) -> list[bytes]:
        async with peer({}) as next_hop:
            with Postfix(directory / "postfix", f"127.0.0.1:{next_hop.port}") as postfix:

                def submit() -> None:
                    with smtplib.SMTP("127.0.0.1", postfix.submission, timeout=20) as client:
                        for case in CASES:
                            client.sendmail("a@b.example", ["c@d.example"], case)

                await asyncio.to_thread(submit)
                await eventually(partial(_all_of, next_hop.messages), 60)
                return next_hop.messages

    with tempfile.TemporaryDirectory() as directory:  # pytest's own is closed to Postfix's user
        relayed = asyncio.run(scenario(Path(directory)))
    # Without what Postfix puts on top; mail may arrive in another order.
    bodies = {message[message.index(b"From: a@b") :].replace(b"\r\n.", b"\r\n") for message in relayed}
    assert bodies == {lines.broken(case) for case in CASES}


@given(st.integers(0, 4000), st.integers(0, 255).filter(lambda octet: octet not in b"\r\n"), st.integers(0, 3))
def test_breaks_come_off_again(size: int, octet: int, around: int) -> None:
    line, other = bytes([octet]) * size, (b"y" * 998 + b"\r\n") * around
    final = lines.broken(other + line + b"\r\n" + other)
    assert final.startswith(other) and final.endswith(other)
    pieces = final[len(other) : len(final) - len(other)].split(b"\r\n")
    assert max(map(len, pieces)) <= lines.LIMIT and pieces.pop() == b""
    assert all(piece.startswith(b" ") for piece in pieces[1:])
    assert pieces[0] + b"".join(piece[1:] for piece in pieces[1:]) == line
    assert lines.broken(final) is final
