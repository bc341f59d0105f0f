"""The queue against whatever order of verbs (tests/queue_machine.py), on one shard, on three, on every server."""

from __future__ import annotations

from typing import Any

from tests.queue_machine import play


def test_any_order_of_verbs(shared_redis: Any) -> None:
    play(shared_redis.url, shards=1, examples=40, steps=40)


def test_any_order_of_verbs_on_three_shards(shared_redis: Any) -> None:
    play(shared_redis.url, shards=3, examples=6, steps=40)


def test_any_order_of_verbs_on_any_server(any_redis_server: Any) -> None:
    play(any_redis_server.url, shards=1, examples=5, steps=40)
