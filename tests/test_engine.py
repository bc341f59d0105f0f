"""Delivery as a whole: from the queue through real sessions to the sandbox's mail hosts, and back as events."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import uvloop

from tests.delivery_kit import rig
from tests.queue_kit import is_empty, message


def test_mail_is_delivered_and_said(redis_server: Any, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rig(redis_server.url, tmp_path) as it:
            for n in range(50):
                await it.queue.put(message(f"u{n}@gmail.test", f"u{n}@gob.test", content=f"Message-ID: <{n}@x>\r\n\r\nhola\r\n".encode()))
            counts = await it.until({"delivered": 100})
            assert counts == {"received": 50, "delivered": 100}
            assert await is_empty(it.queue.shards[0]) == []
            (event, *_) = await it.events("delivered")
            assert event.status.startswith("2.")
            assert event.source.startswith("127.0.1.")
            assert event.remote_mta
            assert event.provider in ("google", "default")
            assert event.attempt == 1

    uvloop.run(scenario())
