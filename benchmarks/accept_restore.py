"""A copy of the queue, made while mail flows, comes back after the server's data is lost: nothing goes out twice.

Mail is submitted and delivered; in the midst of it ``relayctl queue backup`` takes a copy. The relay goes on: what was
deferred is delivered, addresses bounce, new mail comes, some is removed by hand. Then the server's data is destroyed. An
empty server, ``relayctl queue restore --hold``, a look, ``queue release --all``: the next hops' ledger has every recipient
once, all that was accepted before the copy arrived or has its final event, and what was accepted after it and was not
final is exactly what the list says. The counter-check restores the same copy without the archive: mail goes out twice.

With --crash the server is killed in the midst of delivery and nothing is archived any more: only what was settled in the
archive's last moments may come twice.

    python -m benchmarks.accept_restore [--messages 2000] [--crash]
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from benchmarks.books import FINAL, Load, Pair, await_that
from benchmarks.harness import REPOSITORY, Relay, scratch
from benchmarks.outcome import Outcome, arguments, show
from benchmarks.submit import Accepted, Client
from mailqueue.events import Event
from sandbox.control import tell
from sandbox.receipts import Receipts
from streams.archive import Archive

MESSAGES = 2000
ACCOUNTS = {"carga": "127.0.0.1", "nunca": "127.0.7.1"}
# luego.test takes mail from some time after the copy on and rebota.test bounces it, tarde.test takes it only after the
# restore, basura.test is removed by hand.
DOMAINS = (
    "gmail.test",
    "gob.test",
    "a.many.test",
    "b.many.test",
    "unknown.test",
    "luego.test",
    "tarde.test",
    "rebota.test",
    "basura.test",
)
WAITING = ("luego.test", "tarde.test", "rebota.test", "basura.test")
SCENARIO = "".join(f'[[domains]]\nname = "{name}"\nmx = ["mx.{name}"]\n' for name in WAITING)
LEAST_SECONDS = 1.0  # with new mail on hold and nothing sent, before anything is released


@dataclass(slots=True)
class Seen:
    """Times are Unix seconds. ``report``: what relayctl queue restore said."""

    began: float = 0.0
    copied: float = 0.0
    size: int = 0
    report: dict[str, Any] | None = None
    listed: dict[str, set[str]] | None = None  # message id → recipients


def relay(directory: Path) -> Relay:
    return Relay(
        directory,
        settings={
            "archive": {"directory": str(directory / "archive")},
            "queue": {"url": f"unix://{directory}/s", "disk_mark_mb": 0},
            "delivery": {"retry": {"steps_seconds": [1, 2], "jitter": 0.0}},
        },
        accounts=[
            {"name": "carga", "networks": ["127.0.0.0/24"]},
            {"name": "nunca", "networks": ["127.0.7.0/24"], "unknown": "never"},
        ],
        server_settings="repl-diskless-sync-delay 0\n",
        scenario=SCENARIO,
    )


def relayctl(world: Relay, *words: str) -> str:
    """Standard output; RuntimeError with what it said when it failed."""
    command = [sys.executable, "-m", "relayctl.main", *words, "--config", str(world.config)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=600, check=False)
    if done.returncode:
        raise RuntimeError(f"relayctl {' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout


def behave(world: Relay, domain: str, behaviour: str) -> None:
    tell(world.control, cmd="behaviour", domain=domain, set=behaviour)


def remove(world: Relay, domain: str) -> None:
    """All of it: what a worker has in its hands is left out, and comes back."""
    for _ in range(5):
        try:
            relayctl(world, "queue", "remove", "--destination", domain, "--reason", "prueba", "--yes")
        except RuntimeError as nothing:
            if "nothing is selected" not in str(nothing):
                raise
            return


# ── the story ──────────────────────────────────────────────────────────────────────────────────────────────────────


def live(world: Relay, client: Client, messages: int, copy: Path, crash: bool) -> tuple[Seen, Load]:
    """Up to the loss of the server's data; in a crash the client is still at work."""
    third = messages // 3
    for domain in WAITING:
        behave(world, domain, "defer")
    Load(client, third).wait()
    load = Load(client, third)
    before = len(client.accepted)
    await_that(lambda: len(client.accepted) > before + third // 3 or load.done, 120)
    seen = Seen(began=time.time())
    seen.size = orjson.loads(relayctl(world, "queue", "backup", str(copy), "--json"))["bytes"]
    seen.copied = time.time()
    load.wait()
    behave(world, "luego.test", "normal")
    behave(world, "rebota.test", "unknown")
    load = Load(client, messages - 2 * third)
    load.wait()
    remove(world, "basura.test")
    if crash:
        await_that(lambda: archived_at(world) > seen.copied, 90)
        before = len(client.accepted)
        load = Load(client, third)
        await_that(lambda: len(client.accepted) > before + third // 2 or load.done, 120)
        return seen, load
    await_that(lambda: received(world, "luego.test") >= expected(client, "luego.test"), 120)
    await_that(lambda: world.queued() <= waiting(client, "tarde.test"), 120)
    return seen, load


def expected(client: Client, domain: str) -> int:
    return sum(recipient.endswith("@" + domain) for one in client.accepted.values() for recipient in one.recipients)


def received(world: Relay, domain: str = "") -> int:
    tell(world.control, cmd="flush")
    found = receipts(world)
    return sum(count for (_, to), count in found.items() if to.endswith("@" + domain)) if domain else found.total()


def receipts(world: Relay) -> Counter[Pair]:
    return Receipts(world.directory / "sandbox" / "ledger.jsonl").deliveries()


def archived_at(world: Relay) -> float:
    """Unix seconds of the archive's last entry."""
    return int((Archive(world.directory / "archive").newest(0) or "0").split("-")[0]) / 1000


def waiting(client: Client, domain: str) -> int:
    """Messages with a recipient there."""
    return sum(any(to.endswith("@" + domain) for to in one.recipients) for one in client.accepted.values())


def lose(world: Relay, crash: bool) -> None:
    """The server's data. Without a crash the relay was stopped in its order, so the archive has everything."""
    order = ("relayd", "delivery", "maintenance")
    if crash:
        world.server.kill()
        for role in order:
            world.processes[role].kill()
    else:
        for role in order:
            world.processes[role].stop()
        world.server.stop()
    shutil.rmtree(world.directory / "appendonlydir")


def come_back(world: Relay, copy: Path, listed: Path, *words: str) -> dict[str, Any]:
    """An empty server, the copy on hold, and the roles."""
    world.start_server()
    said = relayctl(world, "queue", "restore", str(copy), "--hold", "--lost", str(listed), "--json", *words)
    roles = ("relayd", "delivery", "maintenance")
    for role in roles:
        world.start(role, wait=False)
    for role in roles:
        world.await_ready(role)
    report: dict[str, Any] = orjson.loads(said)
    return report


def release(world: Relay, report: dict[str, Any]) -> None:
    behave(world, "tarde.test", "normal")
    behave(world, "basura.test", "normal")
    if report["held"]:
        relayctl(world, "queue", "release", "--all", "--yes", "--reason", "seen")
    await_that(lambda: world.queued() == 0, 240)
    tell(world.control, cmd="flush")


# ── the books ──────────────────────────────────────────────────────────────────────────────────────────────────────


def fates(world: Relay) -> dict[tuple[str, str], list[str]]:
    """(message id, recipient) → kinds of the final events, by the archive; all stopped before."""
    found: dict[tuple[str, str], list[str]] = {}
    for _, text in Archive(world.directory / "archive").read(0):
        event = Event.from_json(text)
        if event.kind in (*FINAL, "late") and not event.next_at:
            found.setdefault((event.id, event.recipient), []).append(event.kind)
    return found


def promised(client: Client) -> dict[tuple[str, str], Accepted]:
    return {(one.queue_id, recipient): one for one in client.accepted.values() for recipient in one.recipients}


def read_list(path: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in path.read_bytes().splitlines():
        said = orjson.loads(line)
        if said["what"] == "lost" and said["reverse_path"]:  # else a DSN of ours
            found.setdefault(said["id"], set()).update(said["recipients"])
    return found


def judge(
    outcome: Outcome, world: Relay, client: Client, seen: Seen, then: dict[tuple[str, str], list[str]], crash: bool
) -> None:
    """``then``: the final events by the archive when the data was lost."""
    assert seen.report is not None and seen.listed is not None
    got, all_, now = receipts(world), promised(client), fates(world)
    twice = {pair for pair, count in got.items() if count > 1}
    early = {key: one for key, one in all_.items() if one.at < seen.began}
    late = {key for key, one in all_.items() if one.at > seen.copied}
    listed = {(identity, recipient) for identity, recipients in seen.listed.items() for recipient in recipients}
    unfinished = {key for key in late if key not in then}
    lost = {k for k, one in early.items() if (one.message_id, k[1]) not in got and not now.get(k)}
    neither = {k for k, one in all_.items() if (one.message_id, k[1]) not in got and not now.get(k) and k not in listed}
    went = {k for k in listed if (all_[k].message_id, k[1]) in got} if listed <= all_.keys() else set()
    show(
        "restored", [{**{k: seen.report[k] for k in ("messages", "held", "lost", "notices")}, **seen.report["closed"]}]
    )
    outcome.figures["crash" if crash else "stop"] = {
        "accepted": len(client.accepted),
        "copy_bytes": seen.size,
        "copy_seconds": seen.copied - seen.began,
        "accepted_per_second_during": rate(client, seen.began, seen.copied),
        "accepted_per_second_before": rate(client, seen.began - 1.0, seen.began),
        "report": seen.report,
        "listed": len(listed),
        "twice": len(twice),
    }
    held = f"{seen.report['held']} held, {sum(seen.report['closed'].values())} over since"
    if crash:
        # Without the archive's last moments nobody can know: bounded by what was delivered in them.
        unknown = sum(1 for pair in got if pair not in known_pairs(then, all_))
        outcome.check(
            "crash: what came twice was settled in the archive's last moments",
            len(twice) <= unknown,
            f"{len(twice)} of {unknown}",
        )
        ends = seen.report["ends"] / 1000
        silent = {key for key in neither if all_[key].at < ends}
        claim = "crash: what is in no list was accepted after the archive's last entry"
        outcome.check(claim, not silent, f"{len(silent)} before, {len(neither)} after it; {held}")
        return
    outcome.check("no recipient got a message twice", not twice, f"{len(twice)} of {len(got):,}; {held}")
    outcome.check(
        "all that was accepted before the copy arrived or ended", not lost, f"{len(lost)} of {len(early):,} not"
    )
    outcome.check(
        "what was accepted after it and not final is listed",
        unfinished <= listed,
        f"{len(unfinished)} of {len(listed)}",
    )
    wrong = {k for k in listed if k in then}
    outcome.check("the list has nothing that was final", not wrong, f"{len(wrong)} wrong")
    outcome.check("what is listed did not go out", not went, f"{len(went)}")
    outcome.check("nobody is lost in silence", not neither, f"{len(neither)} of {len(all_):,}")
    outcome.check(
        "there was something to tell apart", bool(seen.report["held"] and seen.report["closed"] and listed), held
    )


def known_pairs(then: dict[tuple[str, str], list[str]], all_: dict[tuple[str, str], Accepted]) -> set[Pair]:
    return {(all_[key].message_id, key[1]) for key in then if key in all_}


def rate(client: Client, since: float, until: float) -> float:
    return sum(since <= one.at < until for one in client.accepted.values()) / max(until - since, 0.001)


# ── the run ────────────────────────────────────────────────────────────────────────────────────────────────────────


def run(messages: int, directory: Path, crash: bool = False, counter: bool = True) -> Outcome:
    outcome = Outcome("restore", full=messages >= MESSAGES and not crash)
    copy = directory / "day.backup"
    client = Client((world := relay(directory)).submission, directory / "client.jsonl", ACCOUNTS, DOMAINS, seed=7)
    with world:
        seen, load = live(world, client, messages, copy, crash)
        lose(world, crash)
        then = fates(world)
        seen.report = come_back(world, copy, directory / "lost.jsonl")
        seen.listed = read_list(directory / "lost.jsonl")
        load.wait()
        if not crash:  # else new mail goes out
            held_back(world, outcome, client)
        release(world, seen.report)
        for role in ("relayd", "delivery", "maintenance"):
            world.processes[role].stop()
        judge(outcome, world, client, seen, then, crash)
        if counter and not crash:
            outcome.check(*counter_check(world, client, copy, directory))
    return outcome


def held_back(world: Relay, outcome: Outcome, client: Client) -> None:
    """All of it waits though delivery runs. DSNs that were due do go out, to the senders."""
    before = mine(world, client)
    time.sleep(LEAST_SECONDS)
    more = mine(world, client) - before
    outcome.check("delivery runs and sends nothing that is on hold", more == 0, f"{before:,} received, {more} more")


def mine(world: Relay, client: Client) -> int:
    """How many recipients the next hops took the client's messages for."""
    tell(world.control, cmd="flush")
    names = {one.message_id for one in client.accepted.values()}
    return sum(count for (name, _), count in receipts(world).items() if name in names)


def counter_check(world: Relay, client: Client, copy: Path, directory: Path) -> tuple[str, bool, str]:
    """The same copy without the archive's word: it must show as duplicates, or the checks above see nothing."""
    before = receipts(world)
    world.server.stop()
    shutil.rmtree(world.directory / "appendonlydir")
    shutil.rmtree(world.directory / "archive")
    words = ("--i-know-mail-may-go-out-twice",)
    release(world, come_back(world, copy, directory / "lost-2.jsonl", *words))
    names = {one.message_id for one in client.accepted.values()}
    after = receipts(world)
    twice = sum(count > before[pair] > 0 and pair[0] in names for pair, count in after.items())
    return "counter-check: without reconciling, mail goes out twice", twice > 0, f"{twice} recipients"


def main() -> int:
    parser = arguments(__doc__, MESSAGES)
    parser.add_argument("--crash", action="store_true", help="the server is killed in the midst of delivery")
    asked = parser.parse_args()
    with scratch("restore") as directory:
        return run(asked.messages, directory, asked.crash).close()


if __name__ == "__main__":
    sys.exit(main())
