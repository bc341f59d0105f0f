"""A period as the command line takes it: --since, --until, --date; local time."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Annotated

import typer

_DAY = re.compile(r"\d{4}-\d\d-\d\d")

SinceOption = Annotated[str, typer.Option(help="From then on: 2026-11-25 or 2026-11-25T08:30, local time.")]
UntilOption = Annotated[str, typer.Option(help="Up to then; a day counts whole.")]
DateOption = Annotated[str, typer.Option(help="That day alone.")]


def period(since: str = "", until: str = "", date: str = "") -> tuple[int, int]:
    """First and last Unix millisecond, 0 = open. BadParameter for what is no date, or ends before it begins."""
    if date and (since or until):
        raise typer.BadParameter("--date is a whole day: not together with --since or --until")
    if date and not _DAY.fullmatch(date):
        raise typer.BadParameter(f"{date!r} is no day; write one like 2026-11-25")
    first, last = since or date, until or date
    begin = _ms(_moment(first)) if first else 0
    end = (_ms(_moment(last) + timedelta(1)) - 1 if _DAY.fullmatch(last) else _ms(_moment(last))) if last else 0
    if end and end < begin:
        raise typer.BadParameter(f"{last} is before {first}")
    return begin, end


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no date; write one like 2026-11-25 or 2026-11-25T08:30") from None


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
