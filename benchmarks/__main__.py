"""The small benchmarks, one after the other: ``python -m benchmarks [name …] [options of the benchmarks]``.

A benchmark is a file ``bench_<name>.py`` that compares two things in one run and prints its figures. The acceptance
runs are apart: ``python -m benchmarks.accept``.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.accept import found, run_all


def main() -> int:
    benchmarks = found("bench")
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", metavar="name", help=f"which of {', '.join(benchmarks)}; all without")
    chosen, arguments = parser.parse_known_args()
    unknown = [name for name in chosen.names if name not in benchmarks]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are: {', '.join(benchmarks)}")
    return run_all({name: benchmarks[name] for name in chosen.names or benchmarks}, arguments)


if __name__ == "__main__":
    sys.exit(main())
