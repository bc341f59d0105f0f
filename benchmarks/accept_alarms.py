"""What makes the no-progress alarm and its neighbours ring, on a relay of real processes, and what does not.

empty, later, suspended, full   nothing queued; mail due in a minute; everything suspended; all connections in use: silence
killed, stopped                 delivery gets SIGKILL, SIGSTOP: no-progress and no-workers
hung                            mail hosts take connections and never say a word: no-progress, though delivery works
gone                            no mail hosts and no DNS: unreachable

The five minutes are two seconds here (alarms.no_progress_seconds). Each alarm must end by itself, and be one event on
and one event off.

python -m benchmarks.accept_alarms [case …]
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import smtplib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson

from benchmarks.books import await_that
from benchmarks.harness import REPOSITORY, Relay, scratch
from benchmarks.outcome import Outcome

STILL_SECONDS = 2
QUIET_SECONDS = 3 * STILL_SECONDS  # so long a case must be silent
PATIENCE_SECONDS = 30.0
# Of gmail.test the relay knows the limits by its provider; luego.test defers, lleno.test takes its time at the dot.
SCENARIO = f"""\
behaviours.lento.steps.end_of_data.delay_seconds = {QUIET_SECONDS + 2}
behaviours.luego.steps.rcpt.reply = "451 4.7.1 later"
[[domains]]
name = "lleno.test"
mx = ["mx.lleno.test"]
behaviour = "lento"
[[domains]]
name = "luego.test"
mx = ["mx.luego.test"]
behaviour = "luego"
"""
PROVIDERS = """\
[default]
connections = 10
messages_per_connection = 100
tls = "opportunistic"
[providers.google]
domains = ["gmail.test"]
[providers.google.samples]
recipients = ["a@gmail.test"]
[providers.lleno]
domains = ["lleno.test"]
connections = 1
[providers.lleno.samples]
recipients = ["a@lleno.test"]
"""


class World:
    """A relay and what is seen of its alarms."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.told = 0  # events of alarms that belong to earlier cases

    def send(self, *recipients: str) -> None:
        with smtplib.SMTP("127.0.0.1", self.relay.submission, timeout=30) as client:
            for recipient in recipients:
                client.sendmail(
                    "aviso@entidad.test", [recipient], b"From: aviso@entidad.test\r\nSubject: alarma\r\n\r\nhola\r\n"
                )

    def on(self) -> set[str]:
        found = self.relay.metrics("maintenance")
        return {name.split('"')[1] for name, value in found.items() if name.startswith("tambo_alarm{") and value == 1}

    def relayctl(self, *words: str) -> str:
        command = [sys.executable, "-m", "relayctl.main", *words, "--config", str(self.relay.config)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    def said(self) -> list[tuple[str, str]]:
        """(alarm, on or off) of all events so far."""
        rows = self.relayctl("events", "tail", "--from", "0", "--end", "--json").splitlines()
        found = [orjson.loads(row) for row in rows]
        return [(event["subject"], event["after"]) for event in found if event["kind"] == "alarm"]

    def silent(self) -> set[str]:
        """What rang within the time in which all would have had to."""
        rang: set[str] = set()
        until = time.monotonic() + QUIET_SECONDS
        while time.monotonic() < until:
            rang |= self.on()
            time.sleep(0.2)
        return rang

    def rings(self, *names: str) -> float:
        return await_that(lambda: set(names) <= self.on(), PATIENCE_SECONDS)

    def ends(self) -> float:
        """Seconds until no alarm is on and nothing is queued; -1 = not in time."""
        return await_that(lambda: not self.on() and self.relay.queued() == 0, 2 * PATIENCE_SECONDS)


@contextlib.contextmanager
def world(directory: Path) -> Iterator[World]:
    settings = {
        "alarms": {"no_progress_seconds": STILL_SECONDS},
        "queue": {"url": f"unix://{directory}/s", "lease_seconds": 1},
        "delivery": {
            "retry": {"steps_seconds": [60]},
            "pools": [{"name": "default", "sources": [{"address": "127.0.1.1"}]}],
        },
    }
    with Relay(directory, settings=settings, providers=PROVIDERS, scenario=SCENARIO) as relay:
        made = World(relay)
        made.send("a@gmail.test", "a@outlook.test")  # DNS and groups are known from here on
        await_that(lambda: relay.queued() == 0, PATIENCE_SECONDS)
        yield made


# ── cases ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def empty(it: World, outcome: Outcome) -> None:
    rang = it.silent()
    outcome.check("empty: no alarm", not rang, rang or "silent")


def later(it: World, outcome: Outcome) -> None:
    it.send("a@luego.test")
    rang = it.silent()
    outcome.check("later: mail due in a minute is no alarm", not rang and it.relay.queued() > 0, rang or "silent")


def suspended(it: World, outcome: Outcome) -> None:
    it.relayctl("queue", "suspend", "account:carga", "--reason", "acceptance")
    it.send("a@gmail.test", *(f"a@d{n}.gob.test" for n in range(4)))
    rang = it.silent()
    outcome.check("suspended: no alarm", not rang and it.relay.queued() == 5, rang or "silent")
    it.relayctl("queue", "resume", "account:carga", "--reason", "acceptance")
    outcome.check("suspended: goes on when resumed", it.ends() >= 0, f"{it.relay.queued()} queued")


def full(it: World, outcome: Outcome) -> None:
    it.send("a@lleno.test", "b@lleno.test")
    rang = it.silent()
    outcome.check("full: all connections in use is no alarm", not rang, rang or "silent")
    outcome.check("full: all is delivered", it.ends() >= 0, f"{it.relay.queued()} queued")


def killed(it: World, outcome: Outcome) -> None:
    it.relay.processes["delivery"].kill()
    it.send("b@gmail.test")
    _rings(it, outcome, "killed", lambda: it.relay.start("delivery"), "no-progress", "no-workers")


def stopped(it: World, outcome: Outcome) -> None:
    delivery = it.relay.processes["delivery"]
    delivery.signal(signal.SIGSTOP)
    it.send("c@gmail.test")
    _rings(it, outcome, "stopped", lambda: delivery.signal(signal.SIGCONT), "no-progress", "no-workers")


def hung(it: World, outcome: Outcome) -> None:
    hosts = it.relay.processes["sandbox"]
    await_that(lambda: not any("connection_count" in n and v for n, v in it.relay.metrics("delivery").items()), 10)
    hosts.signal(signal.SIGSTOP)
    it.send("d@gmail.test")
    _rings(it, outcome, "hung", lambda: hosts.signal(signal.SIGCONT), "no-progress")


def gone(it: World, outcome: Outcome) -> None:
    it.relay.processes["sandbox"].kill()
    it.relay.control.unlink(missing_ok=True)
    it.send("e@gmail.test")

    def back() -> None:
        it.relay.start("sandbox")
        it.relayctl("queue", "resume", "destination:gmail.test", "--reason", "acceptance")
        it.send("f@outlook.test")  # somebody answers again; what was deferred waits for its time

    seconds = it.rings("unreachable")
    outcome.check("gone: rings", seconds >= 0, f"unreachable after {seconds:.1f} s")
    back()
    ended = await_that(lambda: "unreachable" not in it.on(), PATIENCE_SECONDS)
    outcome.check("gone: ends by itself", ended >= 0, f"after {ended:.1f} s")
    outcome.figures["gone"] = {"seconds_to_ring": round(seconds, 1), "seconds_to_end": round(ended, 1)}


def _rings(it: World, outcome: Outcome, case: str, mend: Callable[[], None], *names: str) -> None:
    seconds = it.rings(*names)
    outcome.check(f"{case}: rings", seconds >= 0, f"{', '.join(names)} after {seconds:.1f} s")
    time.sleep(2 * STILL_SECONDS)
    mend()
    ended = it.ends()
    outcome.check(f"{case}: ends by itself", ended >= 0, f"after {ended:.1f} s, {it.relay.queued()} queued")
    said = it.said()
    told, it.told = said[it.told :], len(said)
    once = all(told.count((name, word)) == 1 for name in names for word in ("on", "off"))
    outcome.check(f"{case}: each told once on, once off", once, told)
    outcome.figures[case] = {"seconds_to_ring": round(seconds, 1), "seconds_to_end": round(ended, 1)}


CASES = {case.__name__: case for case in (empty, suspended, full, killed, stopped, hung, gone, later)}


def run(names: list[str]) -> Outcome:
    outcome = Outcome("alarms", full=set(names) == set(CASES))
    with scratch("alarms") as directory, world(directory) as it:
        for name in names:
            CASES[name](it, outcome)
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="case", help=f"of {', '.join(CASES)}; all without")
    chosen = parser.parse_known_args()[0].cases or list(CASES)
    if unknown := [name for name in chosen if name not in CASES]:
        parser.error(f"no case {unknown[0]}; there are {', '.join(CASES)}")
    return run(chosen).close()


if __name__ == "__main__":
    sys.exit(main())
