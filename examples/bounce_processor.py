#!/usr/bin/env python3
"""A bounce processor: reads what became of each recipient and keeps a table of addresses, right to the last one.

    bounce_processor.py --config /etc/tambo/tambo.toml --database bounces.sqlite
    bounce_processor.py --config /etc/tambo/tambo.toml --database postgresql://user:password@host/database

Kill it whenever you like (kill -9, a power cut) and start it again: no event is lost, none is counted twice. Two things
do that. The relay gives each event again until it is acknowledged, and an event has a position that is its own. And what
an event says goes into the table in the *same transaction* as its position, so that one that comes again is known.

It needs the `tambo` package; PostgreSQL also needs `pg8000`. Take it as a beginning for your own: `meaning` is the part
that you will want to change, `COUNT` says what is kept.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from config.load import load
from config.settings import Settings
from mailqueue.events import Event
from streams.consumer import Consumer
from streams.groups import GroupLost, GroupRefused
from streams.merge import Gap
from streams.taken import Taken

KINDS = ("delivered", "bounced", "expired", "late")

# Status codes (RFC 3463) that speak of the address itself: no such mailbox, domain or user, moved, disabled.
BAD_ADDRESS = {"5.1.0", "5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10", "5.2.1"}
COUNTERS = ("delivered", "hard", "soft", "other")

TABLES = """
CREATE TABLE IF NOT EXISTS addresses (
    address TEXT PRIMARY KEY,
    delivered INTEGER NOT NULL, hard INTEGER NOT NULL, soft INTEGER NOT NULL, other INTEGER NOT NULL,
    last_status TEXT NOT NULL, last_text TEXT NOT NULL, last_at BIGINT NOT NULL
);
CREATE TABLE IF NOT EXISTS positions (
    shard INTEGER PRIMARY KEY, ms BIGINT NOT NULL, number BIGINT NOT NULL
)"""
COUNT = """
INSERT INTO addresses VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (address) DO UPDATE SET
    delivered = addresses.delivered + excluded.delivered, hard = addresses.hard + excluded.hard,
    soft = addresses.soft + excluded.soft, other = addresses.other + excluded.other,
    last_status = excluded.last_status, last_text = excluded.last_text, last_at = excluded.last_at"""
REACHED = """
INSERT INTO positions VALUES (?, ?, ?) ON CONFLICT (shard) DO UPDATE SET ms = excluded.ms, number = excluded.number"""


def meaning(event: Event) -> str:
    """Which counter an event raises.

    hard       the address is bad: take it off the list
    soft       the mailbox would not take it for as long as was tried, or was full: take it off after several in a row
    other      policy, reputation, content: says something of us, nothing of the address
    """
    if event.action in ("delivered", "relayed"):
        return "delivered"
    if event.kind == "expired" or event.status.startswith(("4.", "5.2.2", "5.2.3")):
        return "soft"
    return "hard" if event.status in BAD_ADDRESS else "other"


class Table:
    """The same statements for SQLite and PostgreSQL; one connection, one transaction a batch."""

    def __init__(self, database: str) -> None:
        self._postgres = database.startswith("postgresql://")
        self._connection: Any = _postgres(database) if self._postgres else _sqlite(database)
        for statement in TABLES.split(";"):
            self._do(statement)
        self._connection.commit()

    def reached(self) -> dict[int, tuple[int, int]]:
        return {row[0]: (row[1], row[2]) for row in self._do("SELECT shard, ms, number FROM positions")}

    def positions(self) -> list[str]:
        """As the relay spells them: where to go on."""
        reached = self.reached()
        self._connection.commit()
        return [f"{shard}-{ms}-{number}" for shard, (ms, number) in reached.items()]

    def take_in(self, events: list[Taken]) -> int:
        """All of them and how far they go, in one transaction; how many were new."""
        # Nobody else writes until we commit. One who was stopped for hours and wakes up finds the positions moved on.
        self._do("LOCK TABLE positions IN EXCLUSIVE MODE" if self._postgres else "BEGIN IMMEDIATE")
        try:
            reached, new = self.reached(), 0
            for event in events:
                shard, ms, number = map(int, event.position.split("-"))
                if (ms, number) <= reached.get(shard, (0, 0)):
                    continue  # it came again
                counts = [int(name == meaning(event)) for name in COUNTERS]
                text = event.diagnostic_code or event.reason
                self._do(COUNT, event.recipient.lower(), *counts, event.status, text, event.at)
                reached[shard] = (ms, number)
                new += 1
            for shard, (ms, number) in reached.items():
                self._do(REACHED, shard, ms, number)
            self._connection.commit()  # on disk: from here on they count, and cannot count again
            return new
        except BaseException:
            self._connection.rollback()
            raise

    def close(self) -> None:
        self._connection.close()

    def _do(self, statement: str, *values: object) -> Any:
        cursor = self._connection.cursor()
        cursor.execute(statement.replace("?", "%s") if self._postgres else statement, values)
        return cursor.fetchall() if cursor.description else ()


def _sqlite(path: str) -> Any:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN IMMEDIATE")
    return connection


def _postgres(url: str) -> Any:
    import pg8000.dbapi  # noqa: PLC0415 (for those who have it)

    parts = urlsplit(url)
    words = {"user": unquote(parts.username or ""), "password": unquote(parts.password or "") or None}
    where = {"host": parts.hostname or "localhost", "port": parts.port or 5432, "database": parts.path.lstrip("/")}
    return pg8000.dbapi.connect(**words, **where)


async def process(options: argparse.Namespace) -> None:
    settings = load(Path(options.config), os.environ).settings
    with closing(Table(options.database)) as table:
        await read_into(table, settings, options)


async def read_into(table: Table, settings: Settings, options: argparse.Namespace) -> None:
    async with Consumer.open(
        settings,
        group=options.group,
        owner=options.owner,
        kinds=KINDS,
        start=table.positions(),  # our own books say where we are; the group only follows
        end=options.end,
        lease_seconds=options.lease,
    ) as events:
        while batch := await events.batch(options.batch):
            new = await asyncio.to_thread(table.take_in, batch)
            await events.ack(batch)
            if options.verbose:
                print(f"{new} of {len(batch)} events, up to {batch[-1].position}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="the relay's configuration: where its queue and archive are")
    parser.add_argument("--database", default="bounces.sqlite", help="a file, or postgresql://…")
    parser.add_argument("--group", default="bounces")
    parser.add_argument("--owner", default="bounces@localhost", help="whom to ask about the group")
    parser.add_argument(
        "--lease", type=float, default=30.0, help="seconds until another one may take over from a dead one"
    )
    parser.add_argument("--batch", type=int, default=500, help="events that share a transaction, at most")
    parser.add_argument("--end", action="store_true", help="stop where there is nothing more, instead of waiting")
    parser.add_argument("--verbose", action="store_true")
    try:
        asyncio.run(process(parser.parse_args()))
    except KeyboardInterrupt:
        return 130
    except (GroupRefused, GroupLost, Gap) as trouble:  # each says what to do
        print(trouble, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
