"""The acceptance runs, one after the other: ``python -m benchmarks.accept [name …] [options of the runs]``.

A run is a file ``benchmarks/accept_<name>.py`` that can be started as a module of its own, prints what it saw, writes
``benchmarks/results/<name>.json`` and exits non-zero when its acceptance line does not hold. There is no other list.
Exit status: how many runs failed.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).resolve().parent
console = Console()


def found(prefix: str) -> dict[str, Path]:
    """Name → file of the modules ``<prefix>_<name>.py`` of this package."""
    return {path.stem.removeprefix(f"{prefix}_"): path for path in sorted(FOLDER.glob(f"{prefix}_*.py"))}


def purpose(path: Path) -> str:
    """First line of the module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].rstrip(".")


def run_all(modules: Mapping[str, Path], arguments: list[str]) -> int:
    """Each in a process of its own, its output as it comes, then a table; how many failed."""
    ended = Table("run", "what it shows", "seconds", "status", title="all runs")
    failed = 0
    for name, path in modules.items():
        console.rule(f"[bold]{name}")
        started = time.monotonic()
        status = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{path.stem}", *arguments], cwd=FOLDER.parent, check=False
        ).returncode
        failed += bool(status)
        ended.add_row(
            name, purpose(path), f"{time.monotonic() - started:.0f}", "[red]failed" if status else "[green]holds"
        )
    console.print(ended)
    return failed


def main() -> int:
    runs = found("accept")
    parser = argparse.ArgumentParser(description="\n".join(f"{name}: {purpose(path)}" for name, path in runs.items()))
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", metavar="name", help="which; all without")
    chosen, arguments = parser.parse_known_args()
    unknown = [name for name in chosen.names if name not in runs]
    if unknown:
        parser.error(f"no run {', '.join(unknown)}; there are: {', '.join(runs)}")
    return run_all({name: runs[name] for name in chosen.names or runs}, arguments)


if __name__ == "__main__":
    sys.exit(main())
