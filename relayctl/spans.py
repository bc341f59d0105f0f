"""How long something lasts, as the command line takes and shows it."""

from __future__ import annotations

import time

import typer

from config.durations import seconds


def span(text: str) -> float:
    """Seconds of "90s", "5m", "1h30m"; BadParameter for anything else, and for nothing at all."""
    try:
        length = float(str(seconds(text)))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if length <= 0:
        raise typer.BadParameter("write more than nothing, for instance 5m")
    return length


def spelled(length: float) -> str:
    """ "2 d 3 h", "4 h 5 min", "1 min 2 s", "3 s": the two greatest units, rounded."""
    left, words = round(max(length, 0.0)), list[str]()
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or words:
            words.append(f"{count} {unit}" if count else "")
    return " ".join(word for word in words[:2] if word) or "0 s"


def moment(unix: float) -> str:
    """Local time, as the operator's clock has it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix))
