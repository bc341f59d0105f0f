"""Stream ids, "milliseconds-number" (XADD of Redis): compared as pairs of integers, never as text."""

from __future__ import annotations

import datetime

StreamId = tuple[int, int]

NONE: StreamId = (0, 0)
LAST_NUMBER = 2**64 - 1  # of one millisecond


def parse(text: str) -> StreamId:
    """ "ms-number", or "ms" alone = its first; "" and "0" come before every entry. ValueError says what is allowed."""
    milliseconds, dash, number = (text or "0").partition("-")
    digits = (milliseconds, number) if dash else (milliseconds,)
    if not all(part.isascii() and part.isdigit() for part in digits):
        raise ValueError(f'{text!r} is no stream id; write "milliseconds-number", for instance 1767225600123-0')
    found = (int(milliseconds), int(number or 0))
    if max(found) > LAST_NUMBER:
        raise ValueError(f"{text!r} is no stream id: a part is larger than 64 bits")
    return found


def text(place: StreamId) -> str:
    return f"{place[0]}-{place[1]}"


def preceding(place: StreamId) -> StreamId:
    """The id just before: reading goes on with ``place`` itself behind it."""
    if place[1] > 0:
        return (place[0], place[1] - 1)
    return (place[0] - 1, LAST_NUMBER) if place[0] > 0 else NONE


def before(milliseconds: int) -> StreamId:
    """The id behind which everything from that moment on comes."""
    return preceding((max(milliseconds, 0), 0))


def following(place: StreamId) -> StreamId:
    """The next possible id."""
    return (place[0], place[1] + 1) if place[1] < LAST_NUMBER else (place[0] + 1, 0)


def day(place: StreamId) -> datetime.date:
    """Its day by UTC: no zone's rules can make a day begin before another has ended. Beyond the calendar, its last day."""
    days = place[0] // 86_400_000
    first = datetime.date(1970, 1, 1)
    return first + datetime.timedelta(min(days, (datetime.date.max - first).days))


def last_of(day: datetime.date) -> StreamId:
    """The last id that a day can have."""
    return before(((day - datetime.date(1970, 1, 1)).days + 1) * 86_400_000)
