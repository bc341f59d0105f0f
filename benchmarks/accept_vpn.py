"""Submission through a real site-to-site tunnel, by the strongSwan profiles as documented, and by no other way.

Two network namespaces, charon on both sides, relayd bound to the tunnel's device. Seen must be: no tunnel, no mail, but
relayd runs all the same; with the tunnel mail is queued; nothing of it is on the wire in clear; from outside the tunnel
the listener's address does not answer, though a route leads there; the tunnel goes and comes back without a touch to
relayd. Needs root and apt-get.
"""

from __future__ import annotations

import argparse
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
from rich.console import Console

from benchmarks.harness import REPOSITORY, Relay, scratch
from benchmarks.strongswan import Gateway, certify, link, run, unlink

MARK = "nadie-debe-leer-esto"
console = Console()

CLIENT = """
import smtplib, sys
with smtplib.SMTP(sys.argv[1], int(sys.argv[2]), timeout=float(sys.argv[4]), source_address=(sys.argv[3], 0)) as smtp:
    smtp.sendmail("a@agency.example", ["b@example.org"], "From: a@agency.example\\r\\nSubject: x\\r\\n\\r\\n%s\\r\\n")
print("queued")
""" % (MARK * 20)


def relay_side(directory: Path) -> int:
    """Inside the relay's namespace: server and relayd; a line when ready, the count of queued messages at the end."""
    device = {"name": "vpn", "address": "10.20.0.5", "port": 587, "tls": "none", "interface": "ipsec0"}
    settings = {"relayd": {"listeners": [device]}}
    accounts = [{"name": "agency", "networks": ["10.21.0.0/16"], "senders": ["agency.example"]}]
    with Relay(directory, roles=("relayd",), settings=settings, accounts=accounts) as relay:
        print("ready", flush=True)
        sys.stdin.read()
        print(relay.queued(), flush=True)
    return 0


@contextmanager
def relayd(gateway: Gateway, directory: Path) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-m", "benchmarks.accept_vpn", "--inside", directory]
    pipe = subprocess.PIPE
    child = subprocess.Popen(gateway.within(*words), stdin=pipe, stdout=pipe, text=True, cwd=REPOSITORY)
    try:
        assert child.stdout is not None
        if child.stdout.readline() != "ready\n":
            raise RuntimeError("relayd did not start")
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
        child.wait(60)


def submit(gateway: Gateway, target: str, source: str, seconds: float = 20.0) -> str:
    """ "queued", or the last line of what went wrong."""
    words = gateway.within(sys.executable, "-c", CLIENT, target, "587", source, str(seconds))
    done = subprocess.run(words, capture_output=True, text=True, timeout=seconds + 30, check=False)
    return (done.stdout.strip() or done.stderr.strip().splitlines()[-1]) if done.returncode == 0 or done.stderr else "?"


class Wire:
    """Everything that passes the outer device of a namespace."""

    def __init__(self, gateway: Gateway) -> None:
        words = [sys.executable, "-c", _SNIFFER]
        self._child = subprocess.Popen(gateway.within(*words), stdout=subprocess.PIPE, stdin=subprocess.PIPE)
        assert self._child.stdout is not None
        self._child.stdout.readline()  # it listens

    def end(self) -> dict[str, int]:
        """Packets by kind: esp (in UDP 4500), ike, clear (the mark was readable), port587, other."""
        out, _ = self._child.communicate(b"", timeout=20)
        found: dict[str, int] = orjson.loads(out)
        return found


_SNIFFER = f"""
import json, select, socket, sys
tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
tap.bind(("wan", 0))
print("listening", flush=True)
seen = dict.fromkeys(("esp", "ike", "clear", "port587", "other"), 0)
while True:
    ready, _, _ = select.select([tap, sys.stdin], [], [])
    if sys.stdin in ready:
        break
    frame = tap.recv(65536)
    if {MARK!r}.encode() in frame:
        seen["clear"] += 1
    if frame[12:14] != b"\\x08\\x00":
        continue
    head = 14 + (frame[14] & 15) * 4
    ports = int.from_bytes(frame[head:head+2], "big"), int.from_bytes(frame[head+2:head+4], "big")
    if frame[23] == 17 and 4500 in ports:
        seen["ike" if frame[head+8:head+12] == bytes(4) else "esp"] += 1
    elif frame[23] == 17 and 500 in ports:
        seen["ike"] += 1
    elif 587 in ports:
        seen["port587"] += 1
    else:
        seen["other"] += 1
print(json.dumps(seen))
"""


_DATAGRAM = f"""
import socket, sys
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto({MARK!r}.encode(), (sys.argv[1], 9))
"""


def established(agency: Gateway, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if re.search(r"submission: .*INSTALLED", agency.swanctl("--list-sas", check=False)):
            return True
        time.sleep(0.2)
    return False


def story(directory: Path) -> dict[str, object]:
    suffix = str(time.time_ns() % 100_000)
    relay = Gateway(f"tambo-relay-{suffix}", "203.0.113.5", "10.20.0.5", directory / "relay")
    agency = Gateway(f"tambo-agency-{suffix}", "203.0.113.7", "10.21.0.10", directory / "agency")
    seen: dict[str, object] = {}
    try:
        for gateway in (relay, agency):
            gateway.directory.mkdir()
        link(relay, agency)
        certify(relay, agency)
        relay.prepare("relay.conf")
        agency.prepare("agency.conf")
        relay.start()
        with relayd(relay, directory / "queue") as child:
            # a neighbour with a route to the inner address, which is what an address alone would let in
            run(*agency.within("ip", "route", "add", "10.20.0.5/32", "via", relay.outer))
            run(*relay.within("ip", "route", "add", "10.21.0.0/16", "via", agency.outer))
            seen["without tunnel"] = submit(agency, "10.20.0.5", agency.inner, 4)
            agency.start()
            seen["established"] = established(agency)
            wire = Wire(agency)
            seen["through the tunnel"] = submit(agency, "10.20.0.5", agency.inner)
            seen["wire"] = wire.end()
            control = Wire(agency)  # it would be seen
            run(*agency.within(sys.executable, "-c", _DATAGRAM, relay.outer))
            seen["wire, in clear"] = control.end()
            seen["outer address"] = submit(agency, relay.outer, agency.outer, 4)
            seen["beside the tunnel"] = submit(agency, "10.20.0.5", agency.outer, 4)
            agency.stop()
            seen["tunnel gone"] = submit(agency, "10.20.0.5", agency.inner, 4)
            agency.start()
            seen["established again"] = established(agency)
            seen["through it again"] = submit(agency, "10.20.0.5", agency.inner)
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.close()
            seen["queued"] = int(child.stdout.readline())
    finally:
        unlink(relay, agency)
        if seen.get("through the tunnel") != "queued":
            console.print(relay.log[-1500:], agency.log[-1500:], markup=False)
    return seen


def holds(seen: dict[str, object]) -> bool:
    wire, control = seen["wire"], seen["wire, in clear"]
    assert isinstance(wire, dict)
    assert isinstance(control, dict)
    refused = ("without tunnel", "outer address", "beside the tunnel", "tunnel gone")
    return (
        all(seen[name] == "queued" for name in ("through the tunnel", "through it again"))
        and all(seen[name] != "queued" for name in refused)
        and wire["esp"] > 0
        and wire["clear"] == 0
        and wire["port587"] == 0
        and control["clear"] == 1
        and seen["queued"] == 2
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    given, _ = parser.parse_known_args()
    if given.inside:
        return relay_side(given.inside)
    with scratch("vpn") as directory:
        seen = story(directory)
    for name, value in seen.items():
        console.print(f"{name:20} {value}", markup=False)
    good = holds(seen)
    (REPOSITORY / "benchmarks" / "results" / "vpn.json").write_bytes(
        orjson.dumps({"holds": good, "seen": seen}, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    )
    return 0 if good else 1


if __name__ == "__main__":
    socket.setdefaulttimeout(30)
    sys.exit(main())
