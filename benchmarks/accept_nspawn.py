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
from benchmarks.installed import DELIVERY, PORT, QUEUE, RELAYD, ROLES, SLOW, SOCKETS, UNITS, VPN, Installed, seconds_of
from benchmarks.machine import Machine
from benchmarks.outcome import Outcome, arguments, console, show

MESSAGES = 2000
MOST_EXPOSED = 2.0
ORDER = (RELAYD, DELIVERY, ("maintenance.service",), (QUEUE,))  # of stopping


def books(world: Installed, outcome: Outcome, chapter: str, *, killed: bool) -> None:
    """Waits until the queue is empty; the check that ends a chapter."""
    empty = world.drained()
    promised, lost, twice = world.books()
    seen = f"{promised} promised, {lost} lost, {twice} twice" + ("" if empty else f", {world.queued()} still queued")
    outcome.check(f"{chapter}: every recipient with a 250 has arrived", empty and not lost and promised > 0, seen)
    if not killed:
        again = twice - int(outcome.figures.get("twice", 0))
        outcome.check(f"{chapter}: none twice", again == 0, again)
    outcome.figures["twice"] = twice
    outcome.figures["promised"] = promised


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


def full_disk(world: Installed, outcome: Outcome, messages: int) -> None:
    """The queue's disk fills up under load: its server ends, waits for room, is not started in circles, comes back by itself."""
    machine = world.machine
    machine.systemctl("stop", "tambo.target", "tambo.slice", seconds=700)
    machine.run("mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", "/mnt")
    machine.run("sh", "-c", "cp -a /var/lib/tambo/queue/. /mnt/ && chown tambo-queue:tambo /mnt && chmod 700 /mnt")
    machine.run("mount", "--bind", "/mnt", "/var/lib/tambo/queue")
    machine.systemctl("start", "tambo.target")
    outcome.check("full disk: all are active on a small disk", world.all_active(), world.states())
    load, died = world.load(messages), machine.pid(QUEUE)
    machine.run("dd", "if=/dev/zero", "of=/var/lib/tambo/queue/ballast", "bs=64k", check=False)
    ended = await_that(lambda: machine.pid(QUEUE) != died, 30) >= 0
    time.sleep(20)
    seen = {"ended": ended, "state": world.states(QUEUE)[QUEUE], "starts": int(machine.show(QUEUE, "NRestarts"))}
    said = "the queue's server starts once there are 64" in machine.journal(QUEUE)
    waits = ended and seen["state"] == "activating" and seen["starts"] == 1 and said
    outcome.check("full disk: the queue's server waits for room, once, and says so", waits, seen | {"said": said})
    machine.run("rm", "/var/lib/tambo/queue/ballast")
    outcome.check("full disk: it starts by itself once there is room", world.all_active(90), world.states())
    load.result()
    books(world, outcome, "full disk", killed=True)
    machine.systemctl("stop", "tambo.target", "tambo.slice", seconds=700)
    machine.run("cp", "-a", "/mnt/.", "/var/tmp/kept")
    machine.run("umount", "/var/lib/tambo/queue")
    machine.run("sh", "-c", "rm -rf /var/lib/tambo/queue/* && cp -a /var/tmp/kept/. /var/lib/tambo/queue/")
    machine.systemctl("start", "tambo.target")


def upgrade(world: Installed, outcome: Outcome, messages: int) -> None:
    """N+1 beside N, its schema tried, then one instance after the other under load; one with another schema is refused."""
    old = set(world.versions().values())
    number = re.search(r'^version = "(.*)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert number is not None
    successor(world, "/root/alien", number[1] + ".9", schema=True)
    try:
        world.make("upgrade", source="/root/alien")
        refused = "it was taken"
    except RuntimeError as error:
        refused = str(error)
    kept = set(world.versions().values()) == old and "nothing was changed" in refused
    outcome.check("upgrade: a version with another schema is refused, the old one goes on", kept, refused[-160:])
    successor(world, "/root/next", number[1] + ".1")
    load, mixed = world.load(messages * 2), []
    work = world.inside(lambda: world.make("upgrade", source="/root/next"))
    while not work.done:
        found = set(world.versions().values())
        if len(found) > 1 and not load.done:
            mixed.append(len(found))
        time.sleep(0.2)
    outcome.figures["upgrade"] = [line for line in str(work.result()).splitlines() if " is " in line]
    under_load = not load.done
    load.result()
    new = set(world.versions().values())
    outcome.check("upgrade: all run the new version", len(new) == 1 and not new & old, f"{old} → {new}")
    outcome.check("upgrade: both versions worked on one queue under load", bool(mixed), f"{len(mixed)} looks saw both")
    outcome.figures["upgrade_under_load"] = under_load
    lost = [reply for reply in world.client.refused.values() if not reply.startswith("421")]
    outcome.check(
        "upgrade: no mail refused", not lost, lost[:1] or f"{world.client.troubles} sessions told to come again"
    )
    books(world, outcome, "upgrade", killed=False)


def successor(world: Installed, path: str, number: str, *, schema: bool = False) -> None:
    """A copy of the checkout under another version, perhaps with another schema of the queue."""
    machine = world.machine
    machine.run(
        "sh",
        "-c",
        f"mkdir -p {path} && cd /src && tar -cf - --exclude=__pycache__ --exclude=.* * | tar -xf - -C {path}",
    )
    machine.run("sed", "-i", f's/^version = ".*"/version = "{number}"/', f"{path}/pyproject.toml")
    if schema:
        machine.run("sed", "-i", "s/^SCHEMA = .*/SCHEMA = 99/", f"{path}/mailqueue/keys.py")


def uninstall(world: Installed, outcome: Outcome, _messages: int) -> None:
    machine = world.machine
    world.make("uninstall")
    gone = [path for path in ("/opt/tambo", "/usr/local/bin/relayctl") if machine.path(path).exists()]
    units = machine.run(
        "sh", "-c", "systemctl list-unit-files | grep -E 'tambo|relayd|delivery' || true"
    ).stdout.strip()
    outcome.check("uninstall: programs and units are gone", not gone and not units, gone or units or "nothing left")
    kept = [path for path in ("/etc/tambo/tambo.toml", "/var/lib/tambo/queue") if machine.path(path).exists()]
    outcome.check("uninstall: configuration and queue stay", len(kept) == 2, kept)
    world.make("uninstall", "PURGE=1")
    left = [path for path in ("/etc/tambo", "/var/lib/tambo") if machine.path(path).exists()]
    outcome.check("uninstall: PURGE=1 takes them too", not left, left or "nothing left")


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
    with tempfile.TemporaryDirectory(prefix="tambo-nspawn-", dir="/var/tmp") as name:
        top = Path(name)
        binds = {"/src": checkout(top), "/wheels": wheels(top)}
        with Machine(top / "machine", binds) as machine:
            world = Installed(machine, top / "ledger.jsonl")
            for chapter, play in CHAPTERS.items():
                if chapter in wanted:
                    began = time.monotonic()
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
