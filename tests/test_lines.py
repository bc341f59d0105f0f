"""The sessions of a site, where only timing shows what is right."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

from delivery.lines import Lines
from delivery.pool import Source
from delivery.router import Host, Route
from ipreputation.store import Granted, Lease
from tests.delivery_kit import providers


def test_a_reload_while_slots_are_asked_for_loses_none() -> None:
    """The source is gone from the new configuration; the slot granted for it is used, and so given back."""
    rule = providers().named("default")
    started: list[str] = []

    def start(work: Coroutine[Any, Any, None]) -> None:
        started.append(work.__name__)
        work.close()

    async def connect(candidates: Any, want: int, each: int) -> Granted:
        lines.configure(rule, (Source("127.0.1.9", "new.test"),))
        source, limits = candidates[0]
        return Granted([] if started else [Lease(source, "token", limits)], None)

    def nothing(*_: object) -> Any: ...

    ground: Any = SimpleNamespace(
        store=SimpleNamespace(connect=connect),
        stopping=False,
        stopped_sources=(),
        idle_seconds=5.0,
        free_sessions=lambda: 5,
        session_opened=nothing,
    )
    lines = Lines(
        "x",
        rule,
        (Source("127.0.1.1", "old.test"),),
        ground,
        start=start,
        changed=nothing,
        failed=nothing,
        halted=nothing,
    )
    asyncio.run(lines.open_more(5, Route("x.test", hosts=(Host("mx.x.test", 0, ("127.0.0.1",)),))))
    assert started == ["_establish"]
    assert lines.opening == 1
