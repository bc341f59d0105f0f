"""The sessions of a site, where only timing shows what is right."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

from delivery.grey import Greylisters
from delivery.lines import Lines
from delivery.pool import Source
from delivery.rests import Rests
from delivery.router import Host, Route
from delivery.site import Site
from ipreputation.store import Granted, Lease, Wait
from mailqueue.worker import Ticket
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
        rests=Rests(),
        grey=Greylisters(),
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
    assert len(lines.openings) == 1


def test_a_wait_that_is_over_before_the_site_sleeps_is_not_slept_through() -> None:
    """A slot was freed while the refusal was under way: ask again at once, however late the loop comes to it."""

    async def scenario() -> None:
        asked: list[int] = []
        again = asyncio.Event()

        def late() -> None:
            time.sleep(0.01)  # a busy machine: the millisecond of the wait passes before the site sleeps

        async def connect(candidates: Any, want: int, each: int) -> Granted:
            asked.append(want)
            if len(asked) > 1:
                again.set()
                return Granted([], Wait(60.0, "x"))
            return Granted([], Wait(0.0, "x"))

        floor: Any = SimpleNamespace(
            store=SimpleNamespace(connect=connect, valid_until=time.monotonic() + 60),
            stopping=False,
            stopped_sources=(),
            idle_seconds=5.0,
            recipients=1,
            free_sessions=lambda: 5,
            rests=Rests(),
            grey=Greylisters(),
            metrics=SimpleNamespace(limited=SimpleNamespace(labels=lambda _name: SimpleNamespace(inc=late))),
        )
        route = Route("x.test", hosts=(Host("mx.x.test", 0, ("127.0.0.1",)),))
        site = Site("x", "default", providers().named("default"), (Source("127.0.1.1", "a.test"),), route, floor)
        site.offer(SimpleNamespace(), Ticket(0, "bulk", "default", "1.1", "x.test", 5), route)  # type: ignore[arg-type]
        work = asyncio.create_task(site.run())
        try:
            async with asyncio.timeout(5):
                await again.wait()
        finally:
            work.cancel()

    asyncio.run(scenario())


def test_slots_granted_for_a_site_that_was_given_up_meanwhile_go_back() -> None:
    """A session opened all the same would fail for the same reason, and the failure would count twice."""
    rule = providers().named("default")
    released: list[str] = []

    async def connect(candidates: Any, want: int, each: int) -> Granted:
        lines.abandon()
        return Granted([Lease(source, f"token {source}", limits) for source, limits in candidates[:want]], None)

    async def release(lease: Lease) -> None:
        released.append(lease.token)

    def never(*_: object) -> Any:
        raise AssertionError("nothing is opened")

    ground: Any = SimpleNamespace(
        store=SimpleNamespace(connect=connect),
        stopping=False,
        stopped_sources=(),
        idle_seconds=5.0,
        free_sessions=lambda: 5,
        rests=Rests(),
        grey=Greylisters(),
        session_opened=never,
        release=release,
    )
    sources = (Source("127.0.1.1", "a.test"), Source("127.0.1.2", "a.test"))
    lines = Lines("x", rule, sources, ground, start=never, changed=never, failed=never, halted=never)
    asyncio.run(lines.open_more(5, Route("x.test", hosts=(Host("mx.x.test", 0, ("127.0.0.1",)),))))
    assert sorted(released) == ["token 127.0.1.1", "token 127.0.1.2"] and not lines.openings
