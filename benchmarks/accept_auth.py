"""2,000 AUTH attempts a second for a minute, from thousands of addresses, while a good client works.

The guessers try users that exist and users that do not, under TLS, from addresses of their own, and connect again when
they are sent away. The good client, known before, connects, authenticates and submits one message, again and again:
each visit must succeed, and 99 of 100 within a second. Also said: what a good client that was never here has to bear.

    python -m benchmarks.accept_auth [--seconds 60] [--rate 2000]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import orjson

from benchmarks.guessing import PASSWORD, USER
from benchmarks.harness import REPOSITORY, Relay, scratch
from benchmarks.outcome import Outcome, arguments, show
from relayctl.material import certify
from relayctl.passwords import hasher

SECONDS, RATE = 60.0, 2000.0
P99_SECONDS = 1.0
WARM_SECONDS = 3.0


def clients(kind: str, port: int, *words: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.guessing", kind, str(port), *map(str, words)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE)


def ended(process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
    output, _ = process.communicate(timeout=seconds)
    found: dict[str, Any] = orjson.loads(output)
    return found


def percentiles(seconds: list[float]) -> dict[str, float]:
    cut = quantiles(seconds, n=100)
    return {"visits": float(len(seconds)), "median s": median(seconds), "p99 s": cut[98], "slowest s": max(seconds)}


def run(seconds: float, rate: float, directory: Path) -> Outcome:
    outcome = Outcome("auth", full=seconds >= SECONDS and rate >= RATE)
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    certify(certificate, key)
    hashed = hasher().hash(PASSWORD)
    accounts = [{"name": name, "password_hash": hashed} for name in (USER, "registry", "payroll")]
    relay = Relay(directory, roles=["relayd"], accounts=accounts)
    listener = {"name": "door", "address": "127.0.0.1", "port": relay.submission, "tls": "starttls"}
    listener |= {"certificate": str(certificate), "key": str(key)}
    relay.configure({"relayd": {"listeners": [listener]}})
    with relay:
        quiet = ended(clients("work", relay.submission, WARM_SECONDS), 60)
        cpu = relay.processes["relayd"].cpu_seconds()
        guessers = clients("guess", relay.submission, seconds, rate)
        good = clients("work", relay.submission, seconds)
        fresh = ended(clients("fresh", relay.submission, seconds), seconds + 60)
        under, attack = ended(good, seconds + 60), ended(guessers, seconds + 60)
        cpu = (relay.processes["relayd"].cpu_seconds() - cpu) / seconds
        resident = relay.processes["relayd"].resident_bytes()
    judge(outcome, seconds, rate, quiet, under, attack, fresh)
    outcome.figures |= {"relayd_cores": cpu, "relayd_resident_mib": resident / 2**20}
    return outcome


def judge(
    outcome: Outcome,
    seconds: float,
    rate: float,
    quiet: dict[str, Any],
    under: dict[str, Any],
    attack: dict[str, Any],
    fresh: dict[str, Any],
) -> None:
    calm, storm = percentiles(quiet["seconds"]), percentiles(under["seconds"])
    attempts = sum(count for code, count in attack["heard"].items() if code != "lost")
    show("the good client", [{"when": "before", **calm}, {"when": "meanwhile", **storm}])
    show("what the guessers heard", [{"reply": code, "times": count} for code, count in attack["heard"].items()])
    outcome.figures |= {
        "before": calm,
        "meanwhile": storm,
        "guessers": attack,
        "attempts_per_second": attempts / seconds,
        "fresh_client": fresh,
    }
    outcome.check("attempts answered per second", attempts / seconds >= 0.99 * rate, f"{attempts / seconds:,.0f}")
    outcome.check("the good client's p99", storm["p99 s"] <= P99_SECONDS, f"{storm['p99 s']:.3f} s")
    outcome.check("each of its visits ended with 250", set(under["heard"]) == {"250"}, under["heard"])
    outcome.check("no guesser got in", "235" not in attack["heard"], attack["heard"])


def main() -> int:
    parser = arguments(__doc__, 0)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--rate", type=float, default=RATE)
    options = parser.parse_args()
    with scratch("auth") as directory:
        return run(options.seconds, options.rate, directory).close()


if __name__ == "__main__":
    sys.exit(main())
