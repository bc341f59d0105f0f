"""What arrived waits in one file: it survives a kill, a torn end is cut, and reading and writing meet."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import mailbox
from sandbox.maildir import Store, trace
from sandbox.spool import Spool


def spooled(spool: Spool) -> list[tuple[str, str, bytes]]:
    found = []
    while (record := spool.first()) is not None:
        found.append(record)
        spool.drop()
    return found


RECORDS = st.lists(
    st.tuples(st.text("ab.", min_size=1, max_size=9), st.text("12.", min_size=1, max_size=9), st.binary())
)


@given(RECORDS, st.integers(0, 400))
def test_whole_records_come_back_in_order_whatever_was_torn(records: list[tuple[str, str, bytes]], cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "spool"
        first = Spool(path)
        ends = []
        for record in records:
            first.add(*record)
            first.flush()
            ends.append(path.stat().st_size)
        first.close()
        os.truncate(path, max(path.stat().st_size - cut, 0))
        whole = sum(end <= path.stat().st_size for end in ends)
        again = Spool(path)
        again.add("x", "y", b"later")
        assert spooled(again) == records[:whole]  # what is not flushed is not there yet
        again.flush()
        assert spooled(again) == [("x", "y", b"later")] and path.stat().st_size == 0 and again.empty
        again.close()


@pytest.mark.parametrize("damage", [b"{}\n", b"[]\n", b"no json\n", b"x" * 5000])
def test_what_is_no_record_is_cut_off(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "spool"
    path.write_bytes(b'{"folder":"a","name":"b","size":3}\nxyz' + damage)
    spool = Spool(path)
    assert spooled(spool) == [("a", "b", b"xyz")]
    spool.close()


def test_one_accepts_while_another_looks(tmp_path: Path) -> None:
    """Every mail is found once, and a store that was never unpacked is found by the next one."""
    store, seen = Store(tmp_path), set[str]()

    def look() -> None:
        while len(seen) < 300:
            seen.update(mailbox.mail_id(path) for path in store.messages("gob.test"))

    looking = threading.Thread(target=look)
    looking.start()
    received = trace("relay (x)", "127.0.1.1", "mx1.gob.test", False)
    for number in range(300):
        store.keep("s@x.test", ["a@gob.test"], received, b"Subject: %d\r\n\r\nx\r\n" % number)
        store.flush()
    looking.join(30)
    assert len(seen) == 300 and store.unpacked
    store.keep("s@x.test", ["a@gob.test", "B@GOB.test", "c@d/../e.test"], received, b"Subject: last\r\n\r\n")
    store.flush()
    store.close()

    again = Store(tmp_path)
    assert len(again.messages("gob.test")) == 301 and len(list(again.all())) == 302
    mail = mailbox.read(again.messages("gob.test")[-1])
    assert (mail.subject, mail.recipients, mail.helo, mail.host) == (
        "last",
        ("a@gob.test", "B@GOB.test"),
        "relay??x?",
        "mx1.gob.test",
    )
    (odd,) = again.messages("d/../e.test")
    assert odd.parent.parent.parent == tmp_path and not mail.spf
    again.close()
