"""Many callers, one call under way: order, sharing, repetition, giving up, closing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailqueue import batch
from mailqueue.batch import Batch
from mailqueue.errors import QueueDown


class Server:
    """Records calls; each waits for ``gate``; ``down`` of them fail first."""

    def __init__(self, *, down: int = 0, open_: bool = True) -> None:
        self.calls: list[tuple[int, list[int]]] = []
        self.gate = asyncio.Event()
        self.under_way = self.most_at_once = 0
        self.called = asyncio.Event()
        self._down = down
        if open_:
            self.gate.set()

    async def called_times(self, times: int) -> None:
        while True:
            if len(self.calls) >= times:
                return
            self.called.clear()
            await self.called.wait()

    async def __call__(self, number: int, entries: list[int]) -> list[int | Exception]:
        self.calls.append((number, list(entries)))
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        self.called.set()
        try:
            await self.gate.wait()
        finally:
            self.under_way -= 1
        if len(self.calls) <= self._down:
            raise QueueDown("away")
        return [ValueError(entry) if entry < 0 else entry * 10 for entry in entries]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "PAUSES", (0.001,))


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 20))  # type: ignore[arg-type]


def test_what_arrives_meanwhile_is_the_next_batch_in_order() -> None:
    async def scenario() -> None:
        server = Server(open_=False)
        queue: Batch[int, int] = Batch(server, most=3)
        first = queue.add(1)
        await server.called.wait()
        rest = [queue.add(n) for n in range(2, 9)]
        assert len(queue) == 7
        server.gate.set()
        assert await asyncio.gather(first, *rest) == [n * 10 for n in range(1, 9)]
        assert server.calls == [(1, [1]), (2, [2, 3, 4]), (3, [5, 6, 7]), (4, [8])]
        assert server.most_at_once == 1

    run(scenario)


@given(st.lists(st.lists(st.integers(0, 99), max_size=20), max_size=8), st.integers(1, 7), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_caller_gets_his_answer_once(waves: list[list[int]], most: int, down: int) -> None:
    async def scenario() -> None:
        server = Server(down=down)
        queue: Batch[int, int] = Batch(server, most=most)
        futures = []
        for wave in waves:
            futures += [(n, queue.add(n)) for n in wave]
            await asyncio.sleep(0)
        assert [await future for _, future in futures] == [n * 10 for n, _ in futures]
        done = {number: entries for number, entries in server.calls}  # noqa: C416 the last call of each number
        assert [n for number in sorted(done) for n in done[number]] == [n for wave in waves for n in wave]
        assert all(len(entries) <= most for entries in done.values())

    run(scenario)


def test_a_batch_is_repeated_under_its_number_with_the_same_entries() -> None:
    async def scenario() -> None:
        trouble: list[QueueDown] = []
        server = Server(down=3)
        queue: Batch[int, int] = Batch(server, most=5, on_trouble=trouble.append)
        futures = [queue.add(n) for n in (1, 2)]
        await server.called.wait()
        late = queue.add(3)
        assert await asyncio.gather(*futures, late) == [10, 20, 30]
        assert server.calls == [(1, [1, 2])] * 4 + [(2, [3])]
        assert len(trouble) == 3

    run(scenario)


def test_one_entrys_error_is_its_own() -> None:
    async def scenario() -> None:
        queue: Batch[int, int] = Batch(Server(), most=5)
        answers = await asyncio.gather(*(queue.add(n) for n in (1, -2, 3)), return_exceptions=True)
        assert answers[0] == 10
        assert isinstance(answers[1], ValueError)
        assert answers[2] == 30

    run(scenario)


def test_an_error_that_no_repetition_mends_goes_to_all_and_the_next_batch_goes_on() -> None:
    async def scenario() -> None:
        calls = 0

        async def call(_number: int, entries: list[int]) -> list[Any]:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise KeyError("broken")
            return entries

        queue: Batch[int, int] = Batch(call, most=2)
        answers = await asyncio.gather(*(queue.add(n) for n in (1, 2, 3)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [KeyError, KeyError, int]

    run(scenario)


def test_weight_bounds_a_batch_but_one_entry_always_fits() -> None:
    async def scenario() -> None:
        server = Server()
        queue: Batch[int, int] = Batch(server, most=100, weight=lambda n: n, heaviest=10)
        await asyncio.gather(*(queue.add(n) for n in (50, 4, 4, 4, 1)))
        assert [entries for _, entries in server.calls] == [[50], [4, 4, 4], [1]]

    run(scenario)


def test_giving_up_is_asked_before_each_repetition_only() -> None:
    async def scenario() -> None:
        abandoned: set[int] = set()
        server = Server(down=99)
        queue: Batch[int, int] = Batch(server, most=5, give_up=lambda entries: abandoned.issuperset(entries))
        futures = [queue.add(n) for n in (1, 2)]
        await server.called_times(3)
        abandoned.add(1)
        await server.called_times(len(server.calls) + 3)
        assert not any(future.done() for future in futures), "somebody still waits"
        abandoned.add(2)
        answers = await asyncio.gather(*futures, return_exceptions=True)
        assert [type(answer) for answer in answers] == [QueueDown, QueueDown]

    run(scenario)


def test_skipped_entries_are_never_carried() -> None:
    async def scenario() -> None:
        gone: set[int] = set()
        server = Server(open_=False)
        queue: Batch[int, int] = Batch(server, most=2, skip=gone.__contains__)
        first = queue.add(1)
        await server.called.wait()
        rest = [queue.add(n) for n in (2, 3, 4)]
        gone.update((1, 2, 4))
        server.gate.set()
        assert await first == 10, "what a call has carried is answered"
        assert await rest[1] == 30
        await asyncio.sleep(0.01)
        assert rest[0].cancelled()
        assert rest[2].cancelled()
        assert server.calls == [(1, [1]), (2, [3])]
        assert await queue.add(5) == 50, "an empty batch does not end it"

    run(scenario)


def test_a_cancelled_caller_takes_nothing_from_the_others() -> None:
    async def scenario() -> None:
        server = Server(open_=False)
        queue: Batch[int, int] = Batch(server, most=5)

        async def ask(n: int) -> int:
            return await queue.add(n)

        first = asyncio.create_task(ask(1))
        await server.called.wait()
        tasks = [asyncio.create_task(ask(n)) for n in (2, 3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        first.cancel()
        server.gate.set()
        assert await tasks[1] == 30
        assert server.calls == [(1, [1]), (2, [2, 3])], "cancelled, yet carried out: the server may have it already"

    run(scenario)


def test_close_with_patience_carries_out_what_waits() -> None:
    async def scenario() -> None:
        server = Server(down=2)
        queue: Batch[int, int] = Batch(server, most=1)
        futures = [queue.add(n) for n in (1, 2, 3)]
        await queue.close(patience=5)
        assert [future.result() for future in futures] == [10, 20, 30]
        with pytest.raises(QueueDown, match="closed"):
            await queue.add(4)

    run(scenario)


def test_close_without_an_answer_fails_all_who_wait() -> None:
    async def scenario() -> None:
        server = Server(open_=False)
        queue: Batch[int, int] = Batch(server, most=1)
        futures = [queue.add(n) for n in (1, 2)]
        await server.called.wait()
        await queue.close(patience=0.02)
        answers = await asyncio.gather(*futures, return_exceptions=True)
        assert [type(answer) for answer in answers] == [QueueDown, QueueDown]
        assert len(server.calls) == 1

    run(scenario)


def test_close_of_an_idle_batch_twice() -> None:
    async def scenario() -> None:
        queue: Batch[int, int] = Batch(Server(), most=1)
        assert await queue.add(1) == 10
        await queue.close(1)
        await queue.close()

    run(scenario)
