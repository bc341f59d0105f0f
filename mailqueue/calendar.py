"""Days, months and windows by the wall clock of a time zone. Pure: the time is an argument."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from functools import lru_cache
from zoneinfo import ZoneInfo

MINUTE, HOUR = 60, 3600


@dataclass(frozen=True, slots=True)
class Moment:
    """One minute of a time zone; times are Unix seconds, ends are the first second that no longer belongs."""

    day: str  # 2026-11-25
    minute: int
    hour: int
    midnight: int
    tomorrow: int

    @property
    def month(self) -> str:
        return self.day[:7]

    @property
    def windows(self) -> tuple[int, int, int]:
        """Where the calendar minute, hour and day began."""
        return self.minute, self.hour, self.midnight

    @property
    def ends(self) -> tuple[int, int, int]:
        return self.minute + MINUTE, self.hour + HOUR, self.tomorrow


def moment(seconds: float, zone: str) -> Moment:
    return _moment(int(seconds // MINUTE) * MINUTE, zone)


@lru_cache(maxsize=256)
def _moment(minute: int, zone: str) -> Moment:
    here = datetime.datetime.fromtimestamp(minute, ZoneInfo(zone))
    today = here.date()
    return Moment(
        today.isoformat(),
        minute,
        minute - here.minute * MINUTE,
        midnight(today, zone),
        midnight(today + datetime.timedelta(days=1), zone),
    )


def midnight(day: datetime.date, zone: str) -> int:
    """The day's first second; where the clock jumps over midnight, the first after it."""
    first = datetime.datetime.combine(day, datetime.time(), ZoneInfo(zone))
    return int(first.timestamp())


def clock(seconds: float, zone: str) -> str:
    """ "14:00:00 -0500"."""
    return datetime.datetime.fromtimestamp(seconds, ZoneInfo(zone)).strftime("%H:%M:%S %z")
