"""An fdatasync between the commit and every 250: strace on relayd and the queue server, under load.

For each "250 2.0.0 queued as <id>" that relayd writes, on one clock: the server wrote the record that keeps this id
to its append-only file, then an fdatasync of that file began and ended, and only then relayd began to write the 250.
The counter-test runs the same with ``appendfsync everysec``, where the check must find 250s that came too early.

    python -m benchmarks.accept_sync [--messages 300]
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import Relay, scratch
from benchmarks.load import Submission, submit
from benchmarks.outcome import Outcome, arguments, show
from benchmarks.strace import Call, Strace, calls

MESSAGES = 300
SESSIONS = 5
TRACED = ("write", "writev", "sendto", "sendmsg", "fdatasync", "fsync")
RELAXED = {"queue": {"durability": "relaxed"}}
_KEPT = re.compile(r"\{q\d+\}:m:([a-z0-9]{20})")  # the message's own key, in the record that keeps it
_SAID = re.compile(r"250 2\.0\.0 queued as ([a-z0-9]{20})")


@dataclass(slots=True)
class Order:
    """When things happened, by message id (Unix seconds)."""

    written: dict[str, float] = field(default_factory=dict)  # write to the append-only file ended
    synced: dict[str, float] = field(default_factory=dict)  # first fdatasync that began after that ended
    said: dict[str, float] = field(default_factory=dict)  # write of the 250 began

    def early(self) -> list[str]:
        """Ids whose 250 did not wait for the disk."""
        return [id for id, at in self.said.items() if self.synced.get(id, at + 1.0) > at]


def order(traced: Iterable[Call]) -> Order:
    """What the trace says of every message. Only the server writes to files named ``*.aof``."""
    found, waiting = Order(), dict[str, str]()
    for call in sorted(traced, key=lambda call: call.ended):
        if call.file.endswith(".aof"):
            _file_call(found, waiting, call)
        elif not call.file.endswith(".log"):
            for id in _SAID.findall(call.text):
                found.said.setdefault(id, call.began)
    return found


def _file_call(found: Order, waiting: dict[str, str], call: Call) -> None:
    """``waiting``: ids not yet synced, with their file."""
    if call.name.endswith("sync"):
        done = [id for id, file in waiting.items() if file == call.file and found.written[id] <= call.began]
        if call.result == 0:
            for id in done:
                found.synced[id] = call.ended
                del waiting[id]
    else:
        for id in _KEPT.findall(call.text):
            if id not in found.written:
                found.written[id] = call.ended
                waiting[id] = call.file


def traced_run(load: Submission, *, relaxed: bool) -> Order:
    with (
        scratch("sync") as directory,
        Relay(
            directory,
            settings=RELAXED if relaxed else None,
            server_settings="appendfsync everysec\n" if relaxed else "",
        ) as relay,
    ):
        trace = directory / "trace"
        with Strace(trace, [relay.server.pid, relay.processes["relayd"].pid], TRACED):
            submit(load, f"127.0.0.1:{relay.submission}")
        return read(trace)


def read(trace: Path) -> Order:
    with trace.open(encoding="utf-8", errors="replace") as lines:
        return order(calls(lines))


def figures(found: Order) -> dict[str, Any]:
    """Milliseconds are of a traced process, so several times what they are without strace."""
    ids = [id for id in found.said if id in found.synced]
    to_disk = [1000 * (found.synced[id] - found.written[id]) for id in ids]
    to_reply = [1000 * (found.said[id] - found.synced[id]) for id in ids]
    return {
        "replies_250": len(found.said),
        "too_early": len(found.early()),
        "written_to_synced_ms_median": round(median(to_disk), 3) if ids else None,
        "synced_to_250_ms_least": round(min(to_reply), 3) if ids else None,
        "synced_to_250_ms_median": round(median(to_reply), 3) if ids else None,
    }


def run(messages: int) -> Outcome:
    load = Submission(messages, "u@gob.test", sessions=SESSIONS, octets=2000)
    outcome = Outcome("sync", full=messages >= MESSAGES)
    always, everysec = (figures(traced_run(load, relaxed=relaxed)) for relaxed in (False, True))
    outcome.figures = {"always": always, "everysec": everysec}
    seen = always["replies_250"]
    outcome.check("every 250 of the load is in the trace", seen == messages, f"{seen} of {messages}")
    early = always["too_early"]
    outcome.check("an fdatasync ended between the commit and each 250", seen > 0 == early, f"{seen - early} of {seen}")
    caught = everysec["too_early"]
    outcome.check(
        "the check can fail: with everysec it finds early 250s", caught > 0, f"{caught} of {everysec['replies_250']}"
    )
    show("commit, disk, 250", [{"appendfsync": name, **row} for name, row in outcome.figures.items()])
    return outcome


def main() -> int:
    return run(arguments(__doc__, MESSAGES).parse_args().messages).close()


if __name__ == "__main__":
    sys.exit(main())
