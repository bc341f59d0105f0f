"""OpenDKIM, with a resolver of its own in a namespace, verifies what we sign and refuses what was changed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks import opendkim
from benchmarks.bench_dkim import message
from signing import record
from signing.dkim import COVERED, SEALED, Signer
from tests.conftest import lacking
from tests.dkim_kit import DOMAIN, both


@pytest.fixture(autouse=True)
def opendkim_runs() -> None:
    if why := opendkim.hindrance():
        lacking(why)


HEAD = b"From: Entidad <a@entidad.test>\r\nDate: Wed, 25 Nov 2026 10:00:00 -0500\r\n"  # OpenDKIM wants both
GOOD = {
    "plain": message(10_240, tidy=True),
    "indented": message(10_240, tidy=False),
    "no body": HEAD + b"\r\n",
    "empty lines": HEAD + b"\r\n\r\n\r\n\r\n",
    "blanks only": HEAD + b"\r\n \t\r\n \r\n",
    "trailing lines": HEAD + b"\r\na \t b \r\n\r\n \r\n",
    "folded": HEAD + b"To: a@in.test,\r\n\t b@in.test\r\nSubject:\r\n  uno \t dos \r\n\r\nHola.\r\n",
    "doubled": HEAD + b"Resent-To: a@in.test\r\nResent-To: b@in.test\r\nCc: \r\n\r\nHola.\r\n",
    "8 bit": HEAD + "Subject: Mañana\r\n\r\nCañón \xa0 fin\r\n".encode(),
    "every field": HEAD
    + "".join(f"{name}: value of  {name}\r\n" for name in SEALED + COVERED if name not in ("From", "Date")).encode()
    + b"\r\nHola.\r\n",
}


def signed(content: bytes, *selectors: str) -> bytes:
    keys = [key for key in both() if key.selector in selectors]
    return Signer(keys).sign(content, DOMAIN, time.time()) + content


def test_opendkim_verifies(tmp_path: Path) -> None:
    good = [signed(content, *way) for content in GOOD.values() for way in (["r1"], ["e1"], ["r1", "e1"])]
    plain = signed(GOOD["plain"], "r1")
    bad = [plain.replace(b"Lorem", b"lorem", 1), b"Reply-To: x@x.test\r\n" + plain, plain.replace(b"s=r1", b"s=r2")]
    records = {key.name: record.strings(record.text(key)) for key in both()}
    verdicts = opendkim.verdicts(tmp_path, [*good, *bad, GOOD["plain"]], records)
    wrong = {number: verdict for number, verdict in enumerate(verdicts[: len(good)]) if verdict}
    assert wrong == {}
    assert all(verdicts[len(good) :]), verdicts
