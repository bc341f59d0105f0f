"""What is seen when a worker is stopped, a message kills its worker, the clock steps, DNS fails, all mail hosts are down.

stopped   SIGSTOP to one of two delivery processes past its lease, then SIGCONT
poison    SIGKILL to delivery each of the five times that an item is in its hands
forward   the wall clock of all processes (the queue server's too) steps by an hour, under load (libfaketime)
back      the same, backwards
dns       no DNS for a minute, half of it SERVFAIL, half silence
down      all mail hosts of a domain refuse connections for ten minutes

python -m benchmarks.accept_faults [--down-seconds 600] [--dns-seconds 60] [fault …]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import faults_clock, faults_outages, faults_workers
from benchmarks.harness import scratch
from benchmarks.outcome import Outcome, show

DOWN_SECONDS, DNS_SECONDS = 600.0, 60.0

Fault = Callable[[Outcome, Path], None]


def faults(down_seconds: float = DOWN_SECONDS, dns_seconds: float = DNS_SECONDS) -> dict[str, Fault]:
    return {
        "stopped": faults_workers.stopped,
        "poison": faults_workers.poison,
        "forward": lambda outcome, directory: faults_clock.step(outcome, directory, "forward", 3600),
        "back": lambda outcome, directory: faults_clock.step(outcome, directory, "back", -3600),
        "dns": lambda outcome, directory: faults_outages.dns(outcome, directory, dns_seconds),
        "down": lambda outcome, directory: faults_outages.down(outcome, directory, down_seconds),
    }


def run(chosen: dict[str, Fault], *, full: bool) -> Outcome:
    outcome = Outcome("faults", full=full)
    for name, fault in chosen.items():
        with scratch(name) as directory:
            fault(outcome, directory)
        show(name, [{"figure": key, "seen": value} for key, value in outcome.figures[name].items()])
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--down-seconds", type=float, default=DOWN_SECONDS)
    parser.add_argument("--dns-seconds", type=float, default=DNS_SECONDS)
    parser.add_argument("names", nargs="*", choices=[[], *faults()], metavar="fault", help="all without")
    options = parser.parse_args()
    full = options.down_seconds >= DOWN_SECONDS and options.dns_seconds >= DNS_SECONDS
    known = faults(options.down_seconds, options.dns_seconds)
    names: Sequence[str] = options.names or list(known)
    return run({name: known[name] for name in names}, full=full and len(names) == len(known)).close()


if __name__ == "__main__":
    sys.exit(main())
