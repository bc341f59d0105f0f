"""A copy of the queue: whole or not there, of one moment, and put back on hold without what is over."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.harness import free_port
from config.settings import QueueSettings
from mailqueue import backup_file, replica, restoring
from mailqueue.backup_file import CopyDamaged, Head, Writer
from mailqueue.errors import QueueDown, QueueRefused
from mailqueue.events import Event, about
from mailqueue.message import Message, QueueItem, State
from mailqueue.queue import Queue
from mailqueue.statement import reconcile
from mailqueue.trimming import trim, trimmed_to
from mailqueue.worker import Settlement
from relayctl.main import app
from relayctl.scratch import loaded
from streams import ids
from streams.appender import Appender
from streams.archive import Archive
from streams.fates import Fate, Fates, is_open
from streams.merged import Tape, replay
from streams.positions import FRESH
from streams.restore import Origin, Report, gaps, restore
from tests.conftest import Certificate, RedisServer
from tests.queue_kit import check_index, claim_all, events, is_empty, message, now_ms, opened, places, working
from tests.quota_kit import LIMA, account, bags, credit
from tests.quota_kit import check as check_quota
from tests.quota_kit import put as quota_put
from tests.test_reaper import reaper

HEAD = Head(1, 1, 1_795_000_000_000, {"0": "0-1"}, "cola", "valkey 9", "1")
ORIGIN = Origin("dia.backup", HEAD.at)
RDB = b"REDIS0011" + os.urandom(300_000)


def written(path: Path, data: bytes = RDB) -> Path:
    with Writer(path, HEAD) as file:
        for at in range(0, len(data), 70_000):
            file.write(data[at : at + 70_000])
        file.finish()
    return path


# ── the file ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_file_is_whole_and_its_owners_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "a.backup")
    pieces: list[bytes] = []
    assert backup_file.verify(path, pieces.append) == HEAD == backup_file.read_head(path)
    assert b"".join(pieces) == RDB
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["a.backup"]
    with pytest.raises(FileExistsError, match="is there already"):
        written(path)
    (tmp_path / "b.backup.part").touch()
    with pytest.raises(FileExistsError, match="another copy is being made"):
        written(tmp_path / "b.backup")
    assert (tmp_path / "b.backup.part").exists(), "somebody else's"


def test_what_was_broken_off_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Writer(tmp_path / "a.backup", HEAD) as file:
        file.write(RDB)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [0, 20, 40, 5_000, 150_000, -35, -1])
def test_each_changed_byte_is_seen(tmp_path: Path, place: int) -> None:
    path = written(tmp_path / "a.backup")
    data = bytearray(path.read_bytes())
    data[place] ^= 0x41
    path.write_bytes(data)
    with pytest.raises(CopyDamaged):
        backup_file.verify(path)


@pytest.mark.parametrize("length", [0, 10, 60, 100_000, -1, -41])
def test_a_cut_file_is_seen(tmp_path: Path, length: int) -> None:
    path = written(tmp_path / "a.backup")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CopyDamaged):
        backup_file.verify(path)


def test_what_is_no_rdb_file_is_no_copy(tmp_path: Path) -> None:
    with pytest.raises(CopyDamaged, match="no RDB file"):
        backup_file.verify(written(tmp_path / "a.backup", b"<html>" * 100))


# ── taking it ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("diskless", ["yes", "no"])
@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_the_servers_own_file_comes_through_the_connection(
    make_redis_server: Callable[..., RedisServer], tmp_path: Path, kind: str, diskless: str
) -> None:
    """By TCP and a password, from both servers, whether they write a file of their own first or not."""
    port = free_port()
    server = _with_password(make_redis_server, kind, port, diskless)
    settings = QueueSettings(url=f"redis://127.0.0.1:{port}/0", password="secreto")

    async def scenario() -> None:
        with Writer(tmp_path / "a.backup", HEAD) as file:
            await replica.copy(settings, file.write)
            file.finish()
        async with loaded(tmp_path / "a.backup", tmp_path) as (_, shards):
            assert await shards[0].command("GET", "clave") == b"valor"
            assert len(await shards[0].command("GET", "grande")) == 3_000_000
        assert os.listdir(tmp_path) == ["a.backup"], "nothing of it is left unpacked"
        with pytest.raises(QueueRefused, match="NOAUTH|WRONGPASS|NOPERM"):
            await replica.copy(settings.model_copy(update={"password": None}), lambda _: None)

    assert server.process is not None
    asyncio.run(scenario())


def test_the_copy_comes_by_tls(
    make_redis_server: Callable[..., RedisServer], certificate: Certificate, tmp_path: Path
) -> None:
    """Debian's server: the embedded one is built without."""
    port = free_port()
    make_redis_server(
        "redis",
        bind="127.0.0.1",
        tls_port=str(port),
        tls_cert_file=str(certificate.certificate),
        tls_key_file=str(certificate.key),
        tls_auth_clients="no",
        repl_diskless_sync_delay="0",
    )
    url = f"rediss://localhost:{port}/0"

    async def scenario() -> None:
        with Writer(tmp_path / "a.backup", HEAD) as file:
            taken = await replica.copy(QueueSettings(url=f"{url}?ssl_ca_certs={certificate.certificate}"), file.write)
            file.finish()
        assert taken > 50
        assert backup_file.verify(tmp_path / "a.backup") == HEAD
        with pytest.raises(QueueDown, match="certificate"):
            await replica.copy(QueueSettings(url=url), lambda _: None)

    asyncio.run(scenario())


def _with_password(make: Callable[..., RedisServer], kind: str, port: int, diskless: str) -> RedisServer:
    """Set once it runs: the fixture asks without."""
    server = make(kind, bind="127.0.0.1", port=str(port), repl_diskless_sync=diskless, repl_diskless_sync_delay="0")
    server.command("SET", "clave", "valor")
    server.command("SET", "grande", "x" * 3_000_000)
    assert server.command("CONFIG", "SET", "requirepass", "secreto") == b"+OK\r\n"
    return server


def test_a_server_that_dies_gives_no_copy(redis_server: RedisServer, tmp_path: Path) -> None:
    redis_server.command("CONFIG", "SET", "repl-diskless-sync-delay", "0")
    redis_server.command("SET", "grande", "x" * 30_000_000)

    async def scenario() -> None:
        with pytest.raises(QueueDown), Writer(tmp_path / "a.backup", HEAD) as file:

            def take(piece: bytes) -> None:
                file.write(piece)
                if redis_server.process is not None:
                    redis_server.kill()

            await replica.copy(QueueSettings(url=redis_server.url), take)
        assert os.listdir(tmp_path) == []
        with pytest.raises(QueueDown):
            await replica.copy(QueueSettings(url=redis_server.url), lambda _: None)

    asyncio.run(scenario())


# ── what is over ───────────────────────────────────────────────────────────────────────────────────────────────────


def event(kind: str, index: int | None = 0, **said: Any) -> Event:
    return Event(kind=kind, at=1000, id="m", index=index, **said)


@pytest.mark.parametrize(
    ("told", "policy", "closed"),
    [
        ([], "retry", ""),
        ([event("delivered")], "retry", "delivered"),
        ([event("bounced")], "retry", "bounced"),
        ([event("expired")], "retry", "expired"),
        ([event("removed")], "retry", "removed"),
        ([event("removed", None)], "retry", "removed"),
        ([event("suppressed")], "retry", "suppressed"),
        ([event("deferred")], "retry", ""),
        ([event("held"), event("released")], "retry", ""),
        ([event("delivered", 1)], "retry", ""),
        ([event("unknown")], "never", "unknown"),
        ([event("unknown")], "once:60", ""),
        ([event("unknown", next_at=5000)], "once:60", ""),
        ([event("unknown", next_at=5000), event("unknown")], "once:60", "unknown"),
        ([event("unknown", next_at=5000), event("delivered")], "once:60", "delivered"),
        ([event("late", action="delivered")], "retry", "late"),
        ([event("late", action="failed")], "retry", ""),
        ([event("bounced"), event("late", action="delivered")], "retry", "bounced"),
    ],
)
def test_what_the_events_say_became_of_a_recipient(told: list[Event], policy: str, closed: str) -> None:
    fates = Fates({"m"})
    for one in told:
        fates.add(one)
    fate = fates.of("m", 0)
    assert is_open(fate, policy) is (not closed)
    if closed:
        assert fate.closed == closed


def test_what_was_accepted_later_and_is_not_final() -> None:
    fates = Fates({"m"})
    for identity in ("a", "b", "c"):
        recipients = ("uno@x.test", "dos@x.test", "tres@x.test")
        fates.add(Event(kind="received", at=1000, id=identity, recipients=recipients, skipped=(2,)))
    fates.add(Event(kind="delivered", at=2000, id="a", index=0))
    fates.add(Event(kind="bounced", at=9000, id="a", index=1))
    fates.add(Event(kind="delivered", at=9500, id="b", index=1))
    fates.add(Event(kind="deferred", at=9900, id="c", index=1, attempt=3, diagnostic_code="smtp; 451 no"))
    fates.add(Event(kind="received", at=9900, id="m", recipients=("uno@x.test",)))
    assert {identity: one.open for identity, one in fates.accepted.items()} == {"b": {0}, "c": {0, 1}}
    assert [(one.id, one.index) for one in fates.untold(1000)] == [("a", 1)]
    assert fates.untold(800) == []
    assert fates.of("m", 0) == Fate()


@pytest.mark.parametrize(
    ("key", "what"),
    [
        (b"{q0}:m:06h", "anew"),
        (b"{q12}:hold", "anew"),
        (b"{q0}:f:1.1", "anew"),
        (b"{q0}:fa:10.0.0.0", "copied"),
        (b"{q0}:accounts", "copied"),
        (b"{q0}:i:\x00\xff}:", "copied"),
        (b"{q0}:gr:crm", "copied"),
        (b"{q0}:what-comes-later", "copied"),
        (b"{quota}:a:rrhh", "copied"),
        (b"inbound:{q0}", "copied"),
        (b"{q0}:w:12", "left"),
        (b"{q0}:weight", "left"),
        (b"{q0}:q:1.1:x.test", "left"),
        (b"{q0}:meta", "left"),
        (b"{rep}:lease", "left"),
        (b"events:{q3}", "left"),
    ],
)
def test_what_becomes_of_a_key(key: bytes, what: str) -> None:
    assert restoring.how(key) == what


# ── there and back ─────────────────────────────────────────────────────────────────────────────────────────────────


async def copied(queue: Queue, path: Path, shards: int = 1) -> Path:
    await queue.shards[0].command("CONFIG", "SET", "repl-diskless-sync-delay", "0")
    with Writer(path, replace(HEAD, shards=shards)) as file:
        await replica.copy(queue.settings, file.write)
        file.finish()
    return path


async def archived(queue: Queue, directory: Path) -> Archive:
    """All the stream holds, appended as maintenance does it."""
    appender = Appender(directory)
    appender.open()
    try:
        for shard in queue.shards:
            rows = await shard.command("XRANGE", shard.events, "-", "+")
            appender.append(shard.number, [(place.decode(), fields[1]) for place, fields in rows])
    finally:
        appender.close()
    return Archive(directory)


def said(item: QueueItem, kind: str = "delivered", **more: Any) -> Event:
    return about(item, kind, now_ms(), action=kind, **more)


async def emptied(queue: Queue) -> None:
    await queue.shards[0].command("FLUSHALL")


def test_a_copy_comes_back_on_hold_without_what_is_over(redis_server: RedisServer, tmp_path: Path) -> None:
    """Content by dictionary, several recipients, states, holds, a worker's hands: and each of them later."""

    async def before(queue: Queue) -> dict[str, Message]:
        letters = [b"Subject: x\r\n\r\n" + (b"%d plantilla con mucho texto igual\r\n" % n) + TEMPLATE for n in range(4)]
        put = {
            "several": message("uno@a.test", "dos@b.test", "tres@c.test", content=letters[0], campaign="c"),
            "waits": message("cuatro@d.test", content=letters[1], campaign="c"),
            "shared": message("cinco@e.test", content=letters[2], campaign="c"),
            "held": message("seis@f.test", content=letters[3], campaign="c"),
            "hands": message("siete@g.test", unknown="never"),
        }
        for one in put.values():
            assert (await queue.put(one, idempotency_key="k" + one.envelope.recipients[0])).kind == "queued"
        async with working(queue) as worker:
            for item in await claim_all(worker):
                match item.recipient:
                    case "uno@a.test":
                        await worker.settle(Settlement(item, "final", said(item)))
                    case "cuatro@d.test":
                        state, due = State(2, 0, "451 luego", "127.0.1.1", now_ms()), now_ms() + 60_000
                        await worker.settle(Settlement(item, "again", said(item, "deferred"), due, state))
                    case "seis@f.test":
                        await worker.settle(Settlement(item, "hold", said(item, "held", reason="mirar")))
                    case "siete@g.test":
                        assert await worker.mark(item)
                    case _:
                        await worker.settle(Settlement(item, "back"))
            await copied(queue, tmp_path / "dia.backup")
        return put

    async def after(queue: Queue) -> Message:
        """What happens behind the copy: one is delivered, a new mail comes and stays."""
        async with working(queue) as worker:
            for item in await claim_all(worker):
                kind = "final" if item.recipient in ("dos@b.test", "cinco@e.test") else "back"
                await worker.settle(Settlement(item, kind, said(item) if kind == "final" else None))  # type: ignore[arg-type]
        new = message("nuevo@z.test")
        await queue.put(new)
        return new

    async def scenario() -> None:
        async with opened(redis_server.url) as queue:
            put = await before(queue)
            new = await after(queue)
            archive = await archived(queue, tmp_path / "archive")
            positions = [row[0] for row in await queue.shards[0].command("XRANGE", queue.shards[0].events, "-", "+")]
            await emptied(queue)
        async with opened(redis_server.url) as queue:
            await restoring.refuse_unless_empty(queue.shards)
            report = await back(queue, tmp_path / "dia.backup", archive)
            check(report, put, new)
            await look(queue, put, positions)
            await read_on(queue, archive, positions)
        async with opened(redis_server.url) as queue:
            await released(queue, put)

    async def back(queue: Queue, path: Path, archive: Archive | None) -> Report:
        async with loaded(path, tmp_path) as (_, source):
            assert await gaps(source, archive, {}, now_ms()) == []
            return await restore(
                source, queue.shards, archive, ORIGIN, ledger=queue.ledger, zone=LIMA, dsn_window_ms=1000
            )

    def check(report: Report, put: dict[str, Message], new: Message) -> None:
        assert (report.messages, report.held, dict(report.closed)) == (4, 4, {"delivered": 2})
        assert dict(report.by_place) == {"queued": 2, "held": 1, "marked": 1}
        assert [one.event.id for one in report.lost] == [new.envelope.id]
        assert report.damaged == []

    async def look(queue: Queue, put: dict[str, Message], positions: list[bytes]) -> None:
        shard = queue.shards[0]
        assert {tuple(where) for where in (await places(queue.shards)).values()} == {("hold",)}
        reasons = {one.recipient: one.reason for one in await events(queue) if one.kind == "held"}
        assert set(reasons) == {"tres@c.test", "cuatro@d.test", "seis@f.test", "siete@g.test"}
        assert all(reason.startswith("restored from dia.backup of ") for reason in reasons.values())
        assert "on hold then" in reasons["seis@f.test"]
        assert "never to go out twice" in reasons["siete@g.test"]
        first = (await shard.command("XRANGE", shard.events, "-", "+", "COUNT", 1))[0][0]
        assert first > positions[-1], "the archive has what was before"
        assert await shard.command("HGET", shard.prefix + "meta", "trimmed") == positions[-1]
        again = message("cuatro@d.test", content=b"Subject: y\r\n\r\n")
        verdict = await queue.put(again, idempotency_key="kcuatro@d.test")
        assert (verdict.kind, verdict.id) == ("duplicate", put["waits"].envelope.id)

    async def read_on(queue: Queue, archive: Archive, positions: list[bytes]) -> None:
        """A group goes on where it stood: no gap, no repetition, what was restored last."""
        gone: list[tuple[int, str, str]] = []
        seen = [
            record.stream_id
            async for record in replay(
                queue.shards, archive, positions[2].decode(), end=True, lost=lambda *said: gone.append(said)
            )
        ]
        assert seen[: len(positions) - 3] == [place.decode() for place in positions[3:]]
        assert len(seen) == len(positions) - 3 + 4
        assert gone == []

    async def released(queue: Queue, put: dict[str, Message]) -> None:
        for name in ("several", "waits", "held", "hands"):
            await reaper(queue).withdraw(put[name].envelope, "release", "released", "visto")
        await check_index(queue.shards[0])
        async with working(queue) as worker:
            items = await claim_all(worker)
            assert {item.recipient for item in items} == {"tres@c.test", "cuatro@d.test", "seis@f.test", "siete@g.test"}
            contents = {one.envelope.id: one.content for one in put.values()}
            assert all(item.message.content == contents[item.message.envelope.id] for item in items)
            assert {item.state.attempts for item in items if item.recipient == "cuatro@d.test"} == {2}
            for item in items:
                await worker.settle(Settlement(item, "final", said(item)))
        assert await is_empty(queue.shards[0]) == []

    asyncio.run(scenario())


TEMPLATE = b"".join(b"Linea %d de una plantilla que todos reciben igual.\r\n" % n for n in range(60))


def test_readers_after_a_restore_pass_over_nothing_unaware(redis_server: RedisServer, tmp_path: Path) -> None:
    """Trimmed events were lost to them before the copy; and the clock of the new server is an hour behind."""

    async def scenario() -> None:
        async with opened(redis_server.url) as queue:
            shard = queue.shards[0]
            for name in ("uno", "dos"):
                await queue.put(message(f"{name}@a.test"))
            await trim(shard, 1)
            lost = await trimmed_to(shard)
            path = await copied(queue, tmp_path / "a.backup")
            ahead = f"{now_ms() + 3_600_000}-0"
            await shard.command("XADD", shard.events, ahead, "e", Event("rejected", now_ms()).to_json())
            archive = await archived(queue, tmp_path / "archive")
            await emptied(queue)
        for known in (None, archive):
            async with opened(redis_server.url) as queue, loaded(path, tmp_path) as (_, source):
                await restore(source, queue.shards, known, ORIGIN, ledger=queue.ledger, zone=LIMA, dsn_window_ms=1000)
                shard = queue.shards[0]
                with pytest.raises(LookupError) if known is None else nullcontext():
                    await Tape(shard, known, FRESH, _said).next()
                assert await trimmed_to(shard) == (ahead if known else lost)
                rows = await shard.command("XRANGE", shard.events, "-", "+")
                await emptied(queue)
        assert len(rows) == 2
        assert all(ids.parse(place.decode()) > ids.parse(ahead) for place, _ in rows)

    def _said(*_: object) -> None:
        raise LookupError

    asyncio.run(scenario())


def test_without_the_archive_s_word_nothing_is_known(redis_server: RedisServer, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url) as queue:
            await queue.put(message("uno@a.test"))
            early = await archived(queue, tmp_path / "early")
            await queue.put(message("dos@a.test"))
            path = await copied(queue, tmp_path / "a.backup")
            await queue.put(message("tres@a.test"))
            shard = queue.shards[0]
            await shard.command("XTRIM", shard.events, "MAXLEN", 1)
            late = await archived(queue, tmp_path / "late")
        async with loaded(path, tmp_path) as (_, source):
            assert "no archive" in (await gaps(source, None, {}, now_ms()))[0]
            assert "archive is empty" in (await gaps(source, Archive(tmp_path / "none"), {}, now_ms()))[0]
            assert "the archive ends at" in (await gaps(source, early, {}, now_ms()))[0]
            assert "the archive begins at" in (await gaps(source, late, {}, now_ms()))[0]
            old = now_ms() + 3 * 86_400_000
            assert "events bounced are kept 2 days" in (await gaps(source, early, {"bounced": 2}, old))[1]

    asyncio.run(scenario())


def test_quotas_come_back_with_what_was_used_since(redis_server: RedisServer, tmp_path: Path) -> None:
    """In two shards; one account used what it had, the other what it was credited after the copy."""

    async def scenario() -> None:
        async with opened(redis_server.url, shards=2) as queue:
            await credit(queue, 5000, "rrhh")
            await credit(queue, 10, "salud")
            for shard in (0, 1):
                await quota_put(queue, 3, shard=shard)
            await quota_put(queue, 8, shard=0, account="salud", of=account("salud"))
            path = await copied(queue, tmp_path / "a.backup", 2)
            await credit(queue, 1000, "salud")
            for shard in (0, 1):
                await quota_put(queue, 40, shard=shard)
                await quota_put(queue, 50, shard=shard, account="salud", of=account("salud"))
            used = {name: sum(bag.used for bag in await bags(queue, name)) for name in ("rrhh", "salud")}
            archive = await archived(queue, tmp_path / "archive")
            await emptied(queue)
        async with opened(redis_server.url, shards=2) as queue, loaded(path, tmp_path) as (_, source):
            report = await restore(
                source, queue.shards, archive, ORIGIN, ledger=queue.ledger, zone=LIMA, dsn_window_ms=1000
            )
            assert report.used == 180
            assert used == {"rrhh": 86, "salud": 108}
            for name in used:
                await check_quota(queue.ledger, queue, name)
                assert sum(bag.used for bag in await bags(queue, name)) == used[name]
            assert all(one.agrees for one in await reconcile(queue.ledger, list(used)))
            assert (await queue.ledger.entries("salud"))[-1]["reason"].startswith("used after the copy")
            assert (await quota_put(queue, 1, account="salud", of=account("salud"))).kind == "over_quota"
            assert (await quota_put(queue, 4900)).kind == "queued"

    asyncio.run(scenario())


# ── the verbs ──────────────────────────────────────────────────────────────────────────────────────────────────────


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app, ["queue", *words])


def configured(tmp_path: Path, url: str, more: str = "") -> str:
    path = tmp_path / "tambo.toml"
    path.write_text(f'[queue]\nurl = "{url}"\n{more}\n[archive]\ndirectory = "{tmp_path}/archive"\n')
    return str(path)


def test_the_verbs_refuse_and_say_how(redis_server: RedisServer, tmp_path: Path) -> None:
    redis_server.command("CONFIG", "SET", "repl-diskless-sync-delay", "0")
    config, file = configured(tmp_path, redis_server.url), str(tmp_path / "a.backup")

    async def some() -> None:
        async with opened(redis_server.url) as queue:
            await queue.put(message("uno@a.test"))

    asyncio.run(some())
    made = invoke("backup", file, "--json", "--config", config)
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["shards"] == 1
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    whole = invoke("backup", "--verify", file, "--json")
    assert (json.loads(whole.stdout)["messages"], json.loads(whole.stdout)["recipients"]) == (1, 1)
    again = invoke("backup", file, "--config", config)
    assert (again.exit_code, "is there already" in again.stderr) == (1, True)

    assert invoke("restore", file, "--config", config).exit_code == 2, "only --hold exists"
    full = invoke("restore", file, "--hold", "--config", config)
    assert (full.exit_code, "is not empty" in full.stderr) == (1, True), full.output
    more = invoke("restore", file, "--hold", "--config", configured(tmp_path, redis_server.url, "shards = 2"))
    assert (more.exit_code, "set queue.shards = 1" in more.stderr) == (1, True), more.output

    redis_server.command("FLUSHALL")
    config = configured(tmp_path, redis_server.url)
    unknown = invoke("restore", file, "--hold", "--config", config)
    assert (unknown.exit_code, "archive is empty" in unknown.stderr) == (1, True), unknown.output
    redis_server.command("HSET", "{q0}:meta", "restoring", "a.backup")
    broken = invoke("restore", file, "--hold", "--config", config)
    assert (broken.exit_code, "is being restored" in broken.stderr) == (1, True), broken.output
    redis_server.command("FLUSHALL")
    known = invoke("restore", file, "--hold", "--json", "--i-know-mail-may-go-out-twice", "--config", config)
    assert known.exit_code == 0, known.output
    assert json.loads(known.stdout)["held"] == 1
    assert Path(file + ".lost.jsonl").read_bytes() == b""
    damaged = tmp_path / "b.backup"
    damaged.write_bytes(Path(file).read_bytes()[:-5])
    assert "checksum" in invoke("backup", "--verify", str(damaged)).stderr


def test_moments(tmp_path: Path) -> None:
    assert Origin("a", int(time.mktime((2026, 11, 25, 8, 0, 0, 0, 0, -1)) * 1000)).text == (
        "restored from a of 2026-11-25 08:00:00"
    )
