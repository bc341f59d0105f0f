"""Inside the namespaces of :func:`benchmarks.opendkim.verdicts`: a resolver, then opendkim-testmsg for every message.

    unshare --net --mount python -m benchmarks.opendkim_namespace FOLDER

FOLDER holds resolv.conf, records.json and 0.eml, 1.eml, …; printed is a JSON list of verdicts, "" = verifies.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson

from benchmarks.harness import TOOLS
from tests.dns_server import DnsServer, Zone

_SIOCSIFFLAGS, _IFF_UP_RUNNING = 0x8914, 0x41


def enclose(folder: Path) -> None:
    """Loopback up; the resolver's configuration replaced, for this mount namespace only."""
    outside = [name for _, name in socket.if_nameindex() if name != "lo"]
    if outside:
        raise SystemExit(f"this is no namespace of its own: it has {', '.join(outside)}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh", b"lo", _IFF_UP_RUNNING))
    target = os.path.realpath("/etc/resolv.conf")
    subprocess.run(["mount", "--bind", str(folder / "resolv.conf"), target], check=True)


def verdict(message: Path) -> str:
    """Of all signatures together, as opendkim-testmsg gives it; a message without any is no good either."""
    content = message.read_bytes()
    if b"DKIM-Signature:" not in content:
        return "no signature"
    ended = subprocess.run([TOOLS / "opendkim-testmsg"], input=content, capture_output=True, timeout=60, check=False)
    return ended.stderr.decode().strip() or f"status {ended.returncode}" if ended.returncode else ""


async def main(records: Mapping[str, Sequence[str]], files: Sequence[Path]) -> None:
    zone: Zone = {(name, "TXT"): [" ".join(f'"{part}"' for part in parts)] for name, parts in records.items()}
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: DnsServer(zone), local_addr=("127.0.0.1", 53))
    found = [await asyncio.to_thread(verdict, path) for path in files]
    transport.close()
    sys.stdout.buffer.write(orjson.dumps(found))


if __name__ == "__main__":
    place = Path(sys.argv[1])
    enclose(place)
    known = orjson.loads((place / "records.json").read_bytes())
    asyncio.run(main(known, sorted(place.glob("*.eml"), key=lambda path: int(path.stem))))
