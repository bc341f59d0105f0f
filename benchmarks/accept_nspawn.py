"""A machine with systemd from installation to removal: start, reload, kill -9, watchdog, stop, upgrade; nothing lost.

A Debian 12 is booted by systemd-nspawn (benchmarks/machine.py), Tambo is installed on it from this checkout and from
wheels, without a network, and lives through what an operator does and suffers. After each chapter every recipient with
a 250 must be on a next hop's file; more than once only where a process was killed. As root.

    python -m benchmarks.accept_nspawn [--messages 2000] [--only start,reload,…]
"""

from __future__ import annotations

import re
import shutil
import smtplib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from signal import SIGKILL, SIGSTOP

from benchmarks.books import await_that
from benchmarks.harness import REPOSITORY
from benchmarks.installed import (
    DELIVERY,
    PORT,
    QUEUE,
    RELAYD,
    ROLES,
    SLOW,
    SOCKETS,
    UNITS,
    VPN,
    Installed,
    books,
    seconds_of,
)
from benchmarks.installed_changes import full_disk, uninstall, upgrade
from benchmarks.machine import Machine, tree
from benchmarks.outcome import Outcome, arguments, console, show

MESSAGES = 2000
MOST_EXPOSED = 2.0
ORDER = (RELAYD, DELIVERY, ("maintenance.service",), (QUEUE,))  # of stopping


def start(world: Installed, outcome: Outcome, messages: int) -> None:
    """Install twice, configure, boot without the VPN's address; then it comes."""
    machine = world.machine
    outcome.figures["install_seconds"] = seconds_of(lambda: world.make("install"))
    again = world.make("install")
    outcome.check("start: a second install is only a look", "is there already" in again)
    world.configure()
    machine.off()
    outcome.figures["boot_seconds"] = machine.boot()
    outcome.check("start: all units and sockets are active after a boot", world.all_active(), world.states())
    absent = VPN not in machine.run("ip", "address").stdout
    listening = machine.run("ss", "-Hltn", "src", f"{VPN}:{PORT}").stdout.splitlines()
    seen = f"address {'absent' if absent else 'there'}, {len(listening)} sockets at {VPN}:{PORT}"
    outcome.check(
        "start: an address that is absent is listened at, once an instance", absent and len(listening) == 2, seen
    )
    world.give_address()
    world.load(messages).result()
    books(world, outcome, "start", killed=False)
    outcome.figures["exposure"] = machine.exposure(UNITS)
    worst = max(outcome.figures["exposure"].values())
    outcome.check(
        f"start: exposure of each unit at most {MOST_EXPOSED}", worst <= MOST_EXPOSED, outcome.figures["exposure"]
    )
    confined(world, outcome)


def confined(world: Installed, outcome: Outcome) -> None:
    """The sandbox is not only written down: what the kernel knows of each process, and what it may touch."""
    machine, loose = world.machine, []
    for unit in UNITS:
        status = machine.path(f"/proc/{machine.pid(unit)}/status").read_text()
        facts = dict(re.findall(r"^(Seccomp|NoNewPrivs|CapBnd|CapEff):\s*(\S+)", status, re.MULTILINE))
        if facts != {"Seccomp": "2", "NoNewPrivs": "1", "CapBnd": "0" * 16, "CapEff": "0" * 16}:
            loose.append(f"{unit}: {facts}")
        touched = machine.run("nsenter", "-m", "-t", str(machine.pid(unit)), "touch", "/etc/tambo/x", check=False)
        if touched.returncode == 0:
            loose.append(f"{unit}: /etc/tambo can be written to")
    outcome.check(
        "start: each process is filtered, without capabilities, its files read-only", not loose, loose or "all"
    )
    denied = machine.run("runuser", "-u", "tambo", "--", "ls", "/var/lib/tambo/queue", check=False).returncode
    outcome.check("start: the queue's files are not the roles' to read", denied != 0, f"exit {denied}")


def reload(world: Installed, outcome: Outcome, messages: int) -> None:
    """A good file is taken over while connections stay; a bad one is refused by systemctl."""
    machine, load = world.machine, world.load(messages)
    before = {unit: (machine.pid(unit), world.metrics(unit)["tambo_config_generation"]) for unit in ROLES}

    def talk() -> tuple[bool, bool]:
        with smtplib.SMTP(VPN, PORT, timeout=30, source_address=(VPN, 0)) as session:
            session.ehlo("client.entidad.test")
            world.tree["relayd"]["max_recipients"] = 7
            world.save()
            for unit in ROLES:
                machine.systemctl("reload", unit)
            alive = session.noop()[0] == 250
            world.tree["relayd"]["max_recipients"] = "many"
            world.save()
            refused = "Job for" in machine.run("systemctl", "reload", RELAYD[0], check=False).stderr
            world.tree["relayd"]["max_recipients"] = 1000
            world.save()
            return alive and session.noop()[0] == 250, refused

    alive, refused = machine.network(talk)
    after = {unit: (machine.pid(unit), world.metrics(unit)["tambo_config_generation"]) for unit in ROLES}
    risen = {unit: (pid == before[unit][0], generation - before[unit][1]) for unit, (pid, generation) in after.items()}
    outcome.check(
        "reload: same process, generation one higher when systemctl returns",
        set(risen.values()) == {(True, 1.0)},
        risen,
    )
    all_over = machine.run("relayctl", "config", "reload", "--reason", "tried", check=False)
    said = (all_over.stdout + all_over.stderr).strip()[-300:]
    outcome.check("reload: relayctl config reload sees all of them take it over", all_over.returncode == 0, said)
    outcome.check("reload: a session that is open stays open", alive)
    outcome.check("reload: systemctl fails for a bad file, nothing is taken over", refused)
    troubles = world.client.troubles
    load.result()
    outcome.check(
        "reload: no connection of the load fails", world.client.troubles == troubles, world.client.last_trouble
    )
    books(world, outcome, "reload", killed=False)


def restart(world: Installed, outcome: Outcome, messages: int) -> None:
    """relayd is started anew under load: what connects meanwhile waits in systemd's socket."""
    load, waited = world.load(messages), {}
    for unit in RELAYD:
        knocking = [Knocking(world) for _ in range(4)]
        waited[unit] = seconds_of(partial(world.machine.systemctl, "restart", unit))
        told = [one.end() for one in knocking]
        greeted, again = sum(one.greeted for one in told), sum(one.told for one in told)
        refused = [each for one in told for each in one.refused]
        seen = f"{greeted} greeted, {again} told to come again, refused: {refused or 'none'}"
        outcome.check(f"restart: no connection is refused while {unit} starts again", greeted > 0 and not refused, seen)
    load.result()
    outcome.figures["restart_seconds"] = waited
    books(world, outcome, "restart", killed=False)


class Knocking:
    """One connection after the other until told to end: how many were greeted, told 421, and refused."""

    def __init__(self, world: Installed) -> None:
        self.greeted = self.told = 0
        self.refused: list[str] = []
        self._ended = threading.Event()
        self._work = world.inside(self._knock)

    def end(self) -> Knocking:
        self._ended.set()
        self._work.result()
        return self

    def _knock(self) -> None:
        while not self._ended.wait(0.05):
            try:
                with smtplib.SMTP(VPN, PORT, timeout=60, source_address=(VPN, 0)) as session:
                    self.greeted += session.noop()[0] == 250
            except (smtplib.SMTPConnectError, smtplib.SMTPServerDisconnected):
                self.told += 1  # by an instance that is leaving
            except OSError as error:
                self.refused.append(f"{type(error).__name__}: {error}")


def kill(world: Installed, outcome: Outcome, messages: int) -> None:
    """SIGKILL to every process in turn, under load."""
    machine, rows = world.machine, []
    for unit in UNITS:
        load, pid = world.load(max(1, messages // 4)), machine.pid(unit)
        machine.signal(unit, SIGKILL)
        back = world.comes_back(unit, pid, 60)
        load.result()
        rows.append({"killed": unit, "seconds until active": back, "restarts": int(machine.show(unit, "NRestarts"))})
    show("kill -9", rows)
    outcome.figures["killed"] = rows
    outcome.check("kill: every process is back", all(float(str(row["seconds until active"])) >= 0 for row in rows))
    outcome.check("kill: the others went on", world.all_active(), world.states())
    books(world, outcome, "kill", killed=True)


def watchdog(world: Installed, outcome: Outcome, messages: int) -> None:
    """A process that stands still is ended by systemd and started again."""
    machine, rows = world.machine, []
    for unit in (RELAYD[0], DELIVERY[0], "maintenance.service"):
        load, pid = world.load(max(1, messages // 4)), machine.pid(unit)
        machine.signal(unit, SIGSTOP)
        back = world.comes_back(unit, pid, 150)
        said = "Watchdog timeout" in machine.journal(unit, 60)
        load.result()
        rows.append({"stood still": unit, "seconds until active": back, "watchdog said so": said})
    show("watchdog", rows)
    outcome.figures["watchdog"] = rows
    good = all(float(str(row["seconds until active"])) >= 0 and row["watchdog said so"] for row in rows)
    outcome.check("watchdog: who stands still is ended and started again", good)
    books(world, outcome, "watchdog", killed=True)


def stop(world: Installed, outcome: Outcome, messages: int) -> None:
    """The target is stopped while next hops think about mail behind the final dot; then the queue alone starts again."""
    machine = world.machine
    world.client.domains = (*world.client.domains, SLOW, SLOW, SLOW, SLOW)
    load = world.load(messages)
    await_that(lambda: world.metrics(DELIVERY[0]).get("tambo_delivery_in_flight", 1) > 0, 10)
    time.sleep(1)
    queued = world.queued()
    outcome.figures["stop_seconds"] = seconds_of(
        lambda: machine.systemctl("stop", "tambo.target", "tambo.slice", seconds=700)
    )
    left, order = world.queue_file_bytes(), world.stopped_in_order()
    ranks = [
        next(rank for rank, group in enumerate(ORDER) if unit in group) for unit in order if unit != "inbound.service"
    ]
    outcome.check("stop: relayd, delivery, maintenance, the queue last", ranks == sorted(ranks), " → ".join(order))
    outcome.check(
        "stop: mail was under way when it was asked for", queued > 0 and not load.done, f"{queued} messages queued"
    )
    ends = {unit: machine.show(unit, "Result") for unit in UNITS}
    outcome.check("stop: nobody had to be killed", set(ends.values()) == {"success"}, ends)
    outcome.check(
        "stop: sockets are closed", set(world.states(*SOCKETS).values()) == {"inactive"}, world.states(*SOCKETS)
    )
    outcome.figures["start_seconds"] = seconds_of(lambda: machine.systemctl("start", "tambo.target"))
    outcome.check("stop: all are active after a start", world.all_active(), world.states())
    load.result()
    outcome.figures["queue_file_bytes"] = left
    books(world, outcome, "stop", killed=False)
    load = world.load(messages)
    machine.systemctl("restart", QUEUE)
    outcome.check("stop: the queue started again alone, the roles went on", world.all_active(), world.states())
    load.result()
    books(world, outcome, "queue restarted", killed=True)


def explain(world: Installed) -> None:
    """What the journal says of units that are not as they should be."""
    for unit, state in world.states().items():
        if state != "active":
            console.rule(f"{unit}: {state}")
            console.print(world.machine.journal(unit), markup=False)


CHAPTERS: dict[str, Callable[[Installed, Outcome, int], None]] = {
    "start": start,
    "reload": reload,
    "restart": restart,
    "kill": kill,
    "watchdog": watchdog,
    "stop": stop,
    "full_disk": full_disk,
    "upgrade": upgrade,
    "uninstall": uninstall,
}


def checkout(directory: Path) -> Path:
    """What is installed: this tree as it stands, without what git ignores."""
    copy = directory / "src"
    copy.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    ).stdout
    for name in listed.decode().split("\0"):
        if name and (REPOSITORY / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, copy / name)
    return copy


def wheels(directory: Path) -> Path:
    """The dependencies, fetched here."""
    made = directory / "wheels"
    subprocess.run(["make", "-s", "wheels", f"WHEELS={made}"], cwd=REPOSITORY, check=True, capture_output=True)
    return made


def main() -> int:
    parser = arguments(__doc__, MESSAGES)
    parser.add_argument("--only", default=",".join(CHAPTERS), help="chapters; start is always played")
    given = parser.parse_args()
    wanted = {"start", *given.only.split(",")}
    outcome = Outcome("nspawn", full=given.messages >= MESSAGES and wanted == set(CHAPTERS))
    try:
        tree()
    except RuntimeError as error:
        console.print(str(error), style="red", markup=False)
        return 1
    with tempfile.TemporaryDirectory(prefix="tambo-nspawn-", dir="/var/tmp") as name:
        top = Path(name)
        binds = {"/src": checkout(top), "/wheels": wheels(top)}
        with Machine(top / "machine", binds) as machine:
            world = Installed(machine, top / "ledger.jsonl")
            for chapter, play in CHAPTERS.items():
                if chapter in wanted:
                    began = time.monotonic()
                    console.rule(chapter)
                    if chapter != "start":  # what one chapter starts and kills is not counted in the next
                        machine.systemctl("reset-failed", QUEUE)
                    try:
                        play(world, outcome, given.messages)
                    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
                        outcome.check(f"{chapter}: ends", False, f"{type(error).__name__}: {error}")
                        explain(world)
                        break
                    outcome.figures.setdefault("seconds", {})[chapter] = round(time.monotonic() - began, 1)
    return outcome.close()


if __name__ == "__main__":
    sys.exit(main())
