"""Golden dialogues: files of ``tests/dialogues``, one story each, played against a relayd over a socket.

A file begins with a title and, up to ``---``, settings in TOML: those of ``[relayd]``, ``tls``, ``network`` and
``account`` as of :func:`tests.listening.settings`, ``implicit`` for TLS from the first octet, and ``queue``, what the
queue does (``full``, ``duplicate``, ``down``, ``broken``, ``closed``). Then come the lines:

    C: text      the client says this, CRLF added       C> text   the same without CRLF, with Python's escapes
    S: text      a line of the server                   S: 250... a reply of any lines with this code
    TLS          the client shakes hands                # text    a remark
    Q: from > to, to      a message that the queue has then, in order
    Q= text               its body, with escapes
    Q+ name value         a field of its envelope, as Python writes it

``{x*600}`` stands for 600 x; ``ID`` of the server for a message id. What the server says is compared to the octet.
"""

from __future__ import annotations

import ast
import asyncio
import re
import socket
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mailqueue.errors import QueueDown
from tests.listening import Client, RecordingQueue, listening, settings

FOLDER = Path(__file__).resolve().parent / "dialogues"
FEEDINGS = ("command", "pipelined", "bytes", "whole")
_REPEATED = re.compile(r"\{(.+?)\*(\d+)\}", re.DOTALL)
_EXCHANGES = (b"334 ", b"354 ", b"220 2.0.0")  # what the client says next is no command of its pipeline (RFC 2920 §3.1)


@dataclass(slots=True)
class Turn:
    """What the client sends and the replies to it; ``handshake``: TLS comes after them."""

    said: bytes
    replies: list[str] = field(default_factory=list)
    handshake: bool = False

    @property
    def splits(self) -> bool:
        """Nothing may be sent behind it before it is answered."""
        return any(reply.encode().startswith(_EXCHANGES) for reply in self.replies)


@dataclass(slots=True)
class Kept:
    route: str
    body: bytes | None = None
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Story:
    name: str
    title: str
    terms: dict[str, Any]
    turns: list[Turn]
    kept: list[Kept]


def stories() -> list[Story]:
    return [read(path) for path in sorted(FOLDER.glob("*.txt"))]


def read(path: Path) -> Story:
    head, _, body = path.read_text(encoding="utf-8").partition("\n---\n")
    title, _, terms = head.partition("\n")
    story = Story(path.stem, title, tomllib.loads(terms), [Turn(b"")], [])
    for number, line in enumerate(body.splitlines(), head.count("\n") + 3):
        mark, _, text = line.partition(" ")
        if mark in ("C:", "C>"):
            story.turns.append(Turn(text.encode() + b"\r\n" if mark == "C:" else _escaped(text)))
            story.turns[-1].said = _repeated(story.turns[-1].said)
        elif mark == "S:":
            _hear(story.turns[-1].replies, text)
        elif mark == "TLS":
            story.turns[-1].handshake = True
        elif mark == "Q:":
            story.kept.append(Kept(text))
        elif mark == "Q=":
            story.kept[-1].body = _repeated(_escaped(text))
        elif mark == "Q+":
            name, _, value = text.partition(" ")
            story.kept[-1].fields[name] = ast.literal_eval(value)
        else:
            assert not line or mark == "#", f"{path.name}:{number}: {line}"
    return story


def _hear(replies: list[str], line: str) -> None:
    if replies and re.search(r"^\d{3}-[^\n]*\Z", replies[-1], re.MULTILINE):
        replies[-1] += "\n" + line
    else:
        replies.append(line)


def _escaped(text: str) -> bytes:
    """Escapes are octets, everything else is UTF-8."""
    return text.encode().decode("latin-1").encode("latin-1").decode("unicode_escape").encode("latin-1")


def _repeated(text: bytes) -> bytes:
    return _REPEATED.sub(lambda found: found[1] * int(found[2]), text.decode("latin-1")).encode("latin-1")


def _fits(expected: str, reply: str) -> bool:
    if expected.endswith("..."):
        return reply.startswith(expected[:3]) and all(line.startswith(expected[:3]) for line in reply.split("\n"))
    return re.fullmatch(re.escape(expected).replace("as\\ ID", "as\\ [0-9a-v]{20}"), reply) is not None


def _queue(what: str) -> RecordingQueue:
    failure = {"down": QueueDown("no answer"), "broken": RuntimeError("a fault of ours")}.get(what)
    verdict = what if what in ("full", "duplicate") else "queued"
    return RecordingQueue(accepting=what != "closed", verdict=verdict, failure=failure)


async def play(story: Story, feeding: str, certificate: tuple[str, str] | None) -> None:
    """AssertionError names the place where the server said something else."""
    terms = dict(story.terms)
    queue = _queue(terms.pop("queue", ""))
    tls = certificate if terms.pop("tls", False) else None
    implicit = terms.pop("implicit", False)
    listener = {"tls": "implicit"} if implicit else None
    async with listening(queue, settings(tls=tls, listener=listener, **{"max_errors": 100, **terms})) as house:
        client = await house.connect()
        if implicit:
            await client.encrypt()
        client.writer.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for group in grouped(story.turns, feeding):
            await _say(client, b"".join(turn.said for turn in group), feeding)
            for turn in group:
                for expected in turn.replies:
                    reply = await asyncio.wait_for(client.reply(), 10)
                    assert _fits(expected, reply), f"{story.name}: {turn.said[:80]!r}: {reply!r}, not {expected!r}"
            if group[-1].handshake:
                await client.encrypt()
        client.writer.write_eof() if client.writer.can_write_eof() else client.writer.close()
        assert await asyncio.wait_for(client.rest(), 10) == "", f"{story.name}: something behind the last reply"
    _compare(story, queue)


def grouped(turns: list[Turn], feeding: str) -> Iterator[list[Turn]]:
    """What is written at once."""
    group: list[Turn] = []
    for turn in turns:
        group.append(turn)
        if turn.handshake or feeding == "command" or (feeding == "pipelined" and turn.splits):
            yield group
            group = []
    if group:
        yield group


async def _say(client: Client, octets: bytes, feeding: str) -> None:
    if feeding != "bytes":
        await client.send(octets)
        return
    for octet in octets:
        await client.send(bytes([octet]))
        await asyncio.sleep(0)


def _compare(story: Story, queue: RecordingQueue) -> None:
    assert len(queue.messages) == len(story.kept), f"{story.name}: {len(queue.messages)} messages"
    for message, kept in zip(queue.messages, story.kept, strict=True):
        envelope = message.envelope
        assert f"{envelope.reverse_path} > {', '.join(envelope.recipients)}" == kept.route, story.name
        if kept.body is not None:
            body = message.content.partition(b"\r\n\r\n")[2]
            assert body == kept.body, f"{story.name}: {body!r}"
        for name, value in kept.fields.items():
            assert getattr(envelope, name) == value, f"{story.name}: {name}"
