"""``relayctl queue backup | restore``: a copy of the whole queue, and how it comes back without sending anything twice."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import orjson
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from config.load import Loaded
from mailqueue import backup_file, keys, replica, restoring
from mailqueue.backup_file import CopyDamaged, Head
from mailqueue.errors import QueueRefused
from mailqueue.events import Event
from mailqueue.queue import Queue
from mailqueue.server import info_map
from relayctl.audit import audited, record
from relayctl.config import PathOption, load_or_exit
from relayctl.queue import JsonOption, app, on_queue, print_json
from relayctl.scratch import loaded as scratch
from streams.archive import Archive
from streams.restore import Origin, Report, SegmentDamaged, gaps
from streams.restore import restore as put_back
from streams.starts import last_id

File = Annotated[Path, typer.Argument(metavar="FILE", help="The copy. It holds mail: keep it as the mail is kept.")]
Server = Annotated[
    str,
    typer.Option("--server", help="Program of a queue server that reads what yours wrote; default: the embedded one."),
]
Room = Annotated[
    Path | None, typer.Option("--room", help="Where the copy is unpacked; default: the temporary directory.")
]
ONLY_HOLD = (
    "what a copy holds may have gone out since it was made: it comes back on hold only. Write --hold; "
    "look at it (relayctl queue summary, list), then relayctl queue release"
)


@app.command()
def backup(
    file: File,
    verify: Annotated[bool, typer.Option("--verify", help="Read FILE and check it whole; take no copy.")] = False,
    server: Server = "",
    room: Room = None,
    json: JsonOption = False,
    config: PathOption = None,
) -> None:
    """Copy the whole queue, as of one moment, into FILE while the relay works."""
    if verify:
        return _verify(file, server, room, json)
    loaded = load_or_exit(config)

    async def work(queue: Queue) -> None:
        head = await _head(queue)
        with _said(file), _progress("copying") as show:
            size = await _copy(loaded, file, head, show)
        await record(queue, audited("queue backup", str(file.absolute()), "", after={"bytes": size}))
        said = {"file": str(file), "bytes": size, **asdict(head)}
        print_json(said) if json else typer.echo(f"{file}: {size:,} bytes, {_clock(head.at)}")

    on_queue(loaded, work)


@app.command()
def restore(
    file: File,
    hold: Annotated[
        bool, typer.Option("--hold", help="All that is restored goes on hold; there is no other way.")
    ] = False,
    know: Annotated[
        bool,
        typer.Option("--i-know-mail-may-go-out-twice", help="Restore though it is not known what happened since."),
    ] = False,
    lost: Annotated[
        Path | None,
        typer.Option("--lost", help="List of what was accepted later and is lost; default FILE.lost.jsonl."),
    ] = None,
    server: Server = "",
    room: Room = None,
    json: JsonOption = False,
    config: PathOption = None,
) -> None:
    """Put a copy into an EMPTY queue server: without what the archive knows to be over, and all of it on hold."""
    if not hold:
        raise typer.BadParameter(ONLY_HOLD)
    loaded = load_or_exit(config)
    with _said(file):
        head = backup_file.read_head(file)
    if head.shards != loaded.settings.queue.shards:
        _refuse(f"{file} has {head.shards} shards, which a queue keeps for good: set queue.shards = {head.shards}")
    if head.schema != keys.SCHEMA:
        _refuse(f"{file} has schema {head.schema}, this program {keys.SCHEMA}: restore with the version that wrote it")
    listed = lost or file.with_name(file.name + ".lost.jsonl")
    if listed.exists():
        _refuse(f"{listed} is there already; name another one with --lost")

    async def work(queue: Queue) -> None:
        await restoring.refuse_unless_empty(queue.shards)
        with _said(file):
            async with scratch(file, room, server) as (_, source):
                report = await _restore(loaded, queue, file, head, source, know)
        _list(listed, report)
        await record(queue, audited("queue restore", str(file.absolute()), "", count=report.held))
        _tell(report, listed, json)

    on_queue(loaded, work)


# ── what they call ─────────────────────────────────────────────────────────────────────────────────────────────────


async def _head(queue: Queue) -> Head:
    shard = queue.shards[0]
    info = info_map(await shard.command("INFO"))
    if info.get("cluster_enabled") == "1":
        raise QueueRefused("the servers of a cluster hold a part each: copy them by their own means")
    seconds, micros = await shard.command("TIME")
    return Head(
        schema=keys.SCHEMA,
        shards=len(queue.shards),
        at=int(seconds) * 1000 + int(micros) // 1000,
        newest={str(one.number): await last_id(one) for one in queue.shards},
        host=os.uname().nodename,
        server=f"{info.get('server_name', 'redis')} {info.get('valkey_version') or info.get('redis_version', '?')}",
        version="1",
    )


async def _copy(loaded: Loaded, path: Path, head: Head, show: Callable[[str], None]) -> int:
    taken = 0
    with backup_file.Writer(path, head) as file:

        def take(piece: bytes) -> None:
            nonlocal taken
            taken += len(piece)
            file.write(piece)
            show(f"{taken / 1e6:,.0f} MB")

        show("the server makes its copy")
        await replica.copy(loaded.settings.queue, take)
        return file.finish()


async def _restore(loaded: Loaded, queue: Queue, file: Path, head: Head, source: list[Any], know: bool) -> Report:
    settings = loaded.settings
    archive = Archive(Path(settings.archive.directory)) if settings.archive.directory else None
    found = await gaps(source, archive, settings.archive.days_by_kind, int(time.time() * 1000))
    if found and not know:
        raise QueueRefused(
            "it is not known what happened after the copy was made:\n  " + "\n  ".join(found) + "\nWhatever was "
            "delivered then would go out again once it is released. If you know that, and will look before you release: "
            "--i-know-mail-may-go-out-twice"
        )
    window = int((settings.delivery.dsn_window_seconds + 60) * 1000)
    with _progress("restoring") as show:
        try:
            return await put_back(
                source,
                queue.shards,
                archive,
                Origin(file.name, head.at),
                ledger=queue.ledger,
                zone=settings.quota.timezone,
                dsn_window_ms=window,
                progress=lambda done, all_: show(f"{done:,} of {all_:,} messages"),
            )
        except SegmentDamaged as damage:
            raise QueueRefused(f"the archive is damaged, so what happened is not known: {damage}") from None


def _verify(file: Path, server: str, room: Path | None, json: bool) -> None:
    async def work() -> dict[str, Any]:
        async with scratch(file, room, server) as (head, shards):
            messages = sum([len(await restoring.message_ids(shard)) for shard in shards])
            recipients = sum([len(await restoring.places(shard)) for shard in shards])
            return {"file": str(file), **asdict(head), "messages": messages, "recipients": recipients}

    with _said(file):
        try:
            found = asyncio.run(work())
        except QueueRefused as refused:
            _refuse(str(refused))
    if json:
        print_json(found)
    else:
        counts = f"{found['messages']:,} messages, {found['recipients']:,} recipients open"
        typer.echo(f"{file}: whole; {counts}, {_clock(found['at'])}, {found['shards']} shards, {found['server']}")


def _list(path: Path, report: Report) -> None:
    """One JSON object a line: what is lost, and whose DSN may not have gone out. Mode 0600."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        for one in report.lost:
            recipients = [one.event.recipients[index] for index in sorted(one.open)]
            file.write(_line("lost", one.event, recipients))
        for event in report.untold:
            file.write(_line("perhaps not told", event, [event.recipient]))
        file.flush()
        os.fsync(file.fileno())


def _line(what: str, event: Event, recipients: list[str]) -> bytes:
    said = {"what": what, **orjson.loads(event.to_json()), "recipients": recipients}
    return orjson.dumps(said, option=orjson.OPT_APPEND_NEWLINE)


def _tell(report: Report, listed: Path, json: bool) -> None:
    lost = sum(len(one.open) for one in report.lost)
    if json:
        names = ("messages", "held", "by_place", "closed", "notices", "damaged", "keys", "events", "used", "ends")
        said = {name: getattr(report, name) for name in names}
        return print_json({**said, "lost": lost, "untold": len(report.untold), "list": str(listed)})
    typer.echo(f"on hold: {report.held:,} recipients of {report.messages:,} messages {_counts(report.by_place)}")
    typer.echo(f"over since the copy, not restored: {report.closed.total():,} {_counts(report.closed)}")
    typer.echo(f"accepted since and lost: {lost:,} recipients of {len(report.lost):,} messages; list: {listed}")
    if report.untold:
        typer.echo(
            f"failed shortly before the loss, their senders perhaps not told: {len(report.untold):,}; in the list"
        )
    if report.damaged:
        typer.echo(f"damaged in the copy, not restored: {', '.join(report.damaged[:10])}", err=True)
    typer.echo(
        f"The last that is known is of {_clock(report.ends)}. What went out after that and is on hold goes out twice; "
        "what was accepted after that is lost and in no list: relayd's log has its ids."
    )
    typer.echo("Look, then: relayctl queue release")


def _counts(counts: Any) -> str:
    text = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
    return f"({text})" if text else ""


def _clock(ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ms / 1000))


@contextmanager
def _said(file: Path) -> Iterator[None]:
    try:
        yield
    except CopyDamaged as damage:
        _refuse(f"{file}: {damage}")
    except OSError as error:
        _refuse(f"{file}: {error.strerror or error}")


def _refuse(why: str) -> NoReturn:
    typer.echo(why, err=True)
    raise typer.Exit(1)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[str], None]]:
    """On standard error, where that is a terminal."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what)
        yield lambda text: progress.update(task, description=f"{what}: {text}")
