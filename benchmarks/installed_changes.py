"""What changes under an installed relay: its disk fills up, another version comes, it goes. Chapters of accept_nspawn."""

from __future__ import annotations

import re
import time

from benchmarks.books import await_that
from benchmarks.harness import REPOSITORY
from benchmarks.installed import QUEUE, Installed, books
from benchmarks.outcome import Outcome


def full_disk(world: Installed, outcome: Outcome, messages: int) -> None:
    """The queue's disk fills up under load: its server ends, waits for room, is not started in circles, comes back by itself."""
    machine = world.machine
    machine.systemctl("stop", "tambo.target", "tambo.slice", seconds=700)
    machine.run("mount", "-t", "tmpfs", "-o", "size=500m", "tmpfs", "/mnt")
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
    old, before = set(world.versions().values()), set(world.client.refused)  # the full disk has refused some
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
    mixed: list[int] = []
    with world.steady_load():
        work = world.inside(lambda: world.make("upgrade", source="/root/next"))
        while not work.done:
            if len(found := set(world.versions().values())) > 1:
                mixed.append(len(found))
            time.sleep(0.2)
    outcome.figures["upgrade"] = [line for line in str(work.result()).splitlines() if " is " in line]
    new, link = set(world.versions().values()), world.machine.run("readlink", "/opt/tambo/current").stdout.strip()
    outcome.check(
        "upgrade: all run the new version", new == {link} and not new & old, f"{old} → {new}, current is {link}"
    )
    outcome.check("upgrade: both versions worked on one queue under load", bool(mixed), f"{len(mixed)} looks saw both")
    world.load(messages).result()
    refusals = [reply for message_id, reply in world.client.refused.items() if message_id not in before]
    lost = [reply for reply in refusals if not reply.startswith("421")]
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
