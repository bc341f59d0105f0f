"""The drills of the handbook as data: what is typed, what must come of it, how soon.

A drill is the fenced block under **Drill** (**Simulacro**) of a section; behind two spaces and ``#`` stands what comes of a
line, and the word with its time is what counts:

    rings within 60 s       the alarm of the section's heading is on (suena en 60 s)
    fires within 3 min      Prometheus fires the section's alert (activa en 3 min)
    ends within 30 s        whichever it was is over (termina en 30 s)
    refused: 452            the command fails and says so (rechazado: 452)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_SECTION = re.compile(r"^## (Tambo\w+)\n(.*?)(?=^#|\Z)", re.M | re.S)
_BLOCK = re.compile(r"^- \*\*(?:Drill|Simulacro)\*\*(.*?)^  ```\n(.*?)^  ```\n", re.M | re.S)
_ALARM = re.compile(r"(?:alarm|alarma) `([a-z-]+)")
_WHEN = {"rings": "rings", "suena": "rings", "fires": "fires", "activa": "fires", "ends": "ends", "termina": "ends"}
_EXPECTED = re.compile(rf"\b({'|'.join(_WHEN)})(?: sola)? (?:within|en) (\d+) (s|min)\b")
_REFUSED = re.compile(r"\b(?:refused|rechazado): (\d{3})\b")


@dataclass(frozen=True, slots=True)
class Line:
    """``when``: rings, fires, ends or "", within ``seconds``; ``refused``: the code the command must be told, or ""."""

    command: str
    when: str = ""
    seconds: int = 0
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Drill:
    """``alarm``: the name in the section's heading, or what it begins with; "" where only Prometheus knows."""

    alert: str
    alarm: str
    lines: tuple[Line, ...]

    @property
    def prometheus(self) -> bool:
        return any(line.when == "fires" for line in self.lines)

    @property
    def ends(self) -> bool:
        return any(line.when == "ends" for line in self.lines)

    @property
    def seconds(self) -> int:
        """The longest it may take."""
        return sum(line.seconds for line in self.lines)


def drills(page: Path) -> list[Drill]:
    found = []
    for alert, text in _SECTION.findall(page.read_text(encoding="utf-8")):
        block = _BLOCK.search(text)
        if block is not None:
            name = _ALARM.search(text.partition("\n")[0])
            rows = (row.strip() for row in block.group(2).splitlines())
            found.append(Drill(alert, name.group(1) if name else "", tuple(map(line, rows))))
    return found


def line(row: str) -> Line:
    command, _, note = ("", "", row) if row.startswith("#") else row.partition("  #")
    expected, refused = _EXPECTED.search(note), _REFUSED.search(note)
    when, seconds = "", 0
    if expected is not None:
        when, seconds = _WHEN[expected[1]], int(expected[2]) * (60 if expected[3] == "min" else 1)
    return Line(command.strip(), when, seconds, refused[1] if refused else "")
