"""Events of a day as a relay writes them: received, a quarter deferred once, delivered; in order, as fast as can be.

Made by filling in templates (a third of the time that building events takes); every line is one that
:meth:`mailqueue.events.Event.from_json` reads. Message ids are of the mail's own time, remote replies hold random queue
ids, so that compression finds what it would find in a real day.
"""

from __future__ import annotations

import base64
import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass

MAILBOXES = 400_000
DEFERRED = 0.25
_DOMAINS = ("gmail.com", "gmail.com", "gmail.com", "hotmail.com", "outlook.com", "yahoo.com", "gob.pe", "minedu.gob.pe")
_FRONT = '"id":"%s","account":"rrhh","campaign":"boletin-%d","class":"bulk","metadata":{"lote":"%d"},'
_FRONT += '"reverse_path":"avisos@entidad.gob.pe",'
_RECEIVED = '{"kind":"received","at":%d,' + _FRONT + '"recipients":["%s"],"size":%d,"client":"10.20.4.9",'
_RECEIVED += '"origin":"smtp","pays":true,"v":1}'
_ABOUT = (
    '{"kind":"%s","at":%d,'
    + _FRONT
    + '"recipient":"%s","index":0,"action":"%s","status":"%s","diagnostic_code":"smtp; %s",'
)
_ABOUT += '"remote_mta":"mx%d.%s [192.0.2.%d]","source":"203.0.113.%d","provider":"%s","destination":"%s","attempt":%d,'
_ABOUT += '"phase":"end-of-data","tls":"TLSv1.3 TLS_AES_256_GCM_SHA384","size":%d,"received_at":%d,%s"v":1}'


@dataclass(frozen=True, slots=True)
class Row:
    """One event: stream id, message id, mailbox, JSON."""

    at: int
    stream_id: str
    id: str
    mailbox: str
    data: bytes


def mailbox(number: int) -> str:
    return f"persona.{number:06d}@{_DOMAINS[number % len(_DOMAINS)]}"


def rows(mails: int, begin_ms: int, span_ms: int, seed: int = 1) -> Iterator[Row]:
    """Of ``mails`` mails that come evenly over the span; the last deliveries may fall behind it."""
    rng = random.Random(seed)
    ahead: list[tuple[int, int, str, str, str]] = []
    last, number, made = 0, 0, 0
    for mail in range(mails):
        at = begin_ms + mail * span_ms // mails
        made += 1
        for row in _planned(mail, at, rng, made):
            heapq.heappush(ahead, row)
            made += 1
        while ahead and (ahead[0][0] <= at):
            moment, _, message_id, whom, text = heapq.heappop(ahead)
            number = number + 1 if moment == last else 0
            last = moment
            yield Row(moment, f"{moment}-{number}", message_id, whom, text.encode())
    while ahead:
        moment, _, message_id, whom, text = heapq.heappop(ahead)
        number = number + 1 if moment == last else 0
        last = moment
        yield Row(moment, f"{moment}-{number}", message_id, whom, text.encode())


def _planned(mail: int, at: int, rng: random.Random, made: int) -> Iterator[tuple[int, int, str, str, str]]:
    """The events of one mail: (time, tie-breaker, message id, mailbox, JSON)."""
    message_id = _id(at, rng)
    whom = mailbox(rng.randrange(MAILBOXES))
    domain, size = whom.rpartition("@")[2], rng.randrange(4000, 60_000)
    front = (message_id, mail % 7, mail // 10_000)
    yield at, made, message_id, whom, _RECEIVED % (at, *front, whom, size)
    host = (rng.randrange(1, 5), domain, rng.randrange(1, 250), rng.randrange(1, 49), domain.partition(".")[0], domain)
    attempt, then = 1, at + rng.randrange(300, 5000)
    if rng.random() < DEFERRED:
        reply = f"452 4.2.2 mailbox full {rng.getrandbits(64):x}"
        said = _ABOUT % (
            "deferred",
            then,
            *front,
            whom,
            "delayed",
            "4.2.2",
            reply,
            *host,
            1,
            size,
            at,
            f'"next_at":{then + 60_000},',
        )
        yield then, made + 1, message_id, whom, said
        attempt, then = 2, then + 60_000
    reply = f"250 2.0.0 OK {rng.getrandbits(40)} {rng.getrandbits(80):x}-gsmtp"
    said = _ABOUT % ("delivered", then, *front, whom, "delivered", "2.0.0", reply, *host, attempt, size, at, "")
    yield then, made + 2, message_id, whom, said


def _id(at: int, rng: random.Random) -> str:
    """As :func:`mailqueue.message.new_id` makes it, at another time."""
    number = (at << 52) | rng.getrandbits(52)
    return base64.b32hexencode((number << 4).to_bytes(13, "big")).decode("ascii").lower()[:20]
