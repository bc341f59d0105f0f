"""Every message is signed, two verifiers agree; and the signed rate beside Postfix with OpenDKIM.

``smtp-source -s 20 -m 20000 -l 10240 -N -d`` into relayd, which signs with RSA-2048, Postfix's smtp-sink as the MX of
the recipients' domain. Sessions are kept, as systems that send much keep them; one more round of each, with a
connection for every message (without ``-d``), stands beside it in the figures. All that the sink has carries a
signature; a sample is verified by dkimpy and by OpenDKIM, the latter in a namespace with a resolver of its own.

In the same run, in turns, a private Postfix gets the same load for the same sink, OpenDKIM as its milter, the same key;
what it signs is verified as well, and its tuning stands in the figures. Both store synced to disk. The relay has two
relayd processes on one port, since a core signs no faster than RSA lets it; Postfix has a process for each session, and
OpenDKIM a thread.

    python -m benchmarks.accept_signing [--messages 20000] [--rounds 2] [--sample 1000] [--ratio 2.5] [--alone]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import accept_path, opendkim, postfix
from benchmarks.accept_path import DOMAIN, MESSAGES, Rates
from benchmarks.harness import scratch
from benchmarks.load import Submission, contents
from benchmarks.opendkim import Milter
from benchmarks.outcome import Outcome, arguments, show
from signing import keys, proof, record
from signing.dkim import Key

FROM_DOMAIN = "entidad.test"  # of smtp-source's From
SELECTOR = "rsa"
SAMPLE = 1000
RATIO = 2.5
LISTENING = ("relayd", "relayd:2")


def make_key(directory: Path) -> Key:
    """An RSA-2048 key that signs from now on."""
    now = time.time()
    keys.generate(directory, FROM_DOMAIN, "rsa-2048", selector=SELECTOR, now=now)
    return keys.rotate(directory, FROM_DOMAIN, now=now, overlap=0.0)[0].key


def ours(directory: Path, load: Submission, folder: Path) -> tuple[Rates, Outcome]:
    """One round through the relay, keys from ``folder``."""
    return accept_path.ours(directory, load, {"signing": {"directory": str(folder)}}, LISTENING)


def theirs(directory: Path, load: Submission, folder: Path) -> tuple[Rates, dict[str, Any]]:
    """One round through Postfix and OpenDKIM, with the settings of both."""
    directory.chmod(0o711)
    with Milter(directory, FROM_DOMAIN, SELECTOR, folder / FROM_DOMAIN / f"{SELECTOR}.pem") as milter:
        before = milter.process.cpu_seconds()
        rates, settings = accept_path.theirs(directory, load, milter.settings)
        spent = 1000 * (milter.process.cpu_seconds() - before) / load.messages
        tuning = milter.tuning()
    with_milter = Rates("postfix", rates.accepted, rates.delivered, rates.cpu_ms + spent)
    return with_milter, {"postfix": settings, "opendkim": tuning}


def each_connects(load: Submission, folder: Path) -> list[Rates]:
    """A round of each in which every message has a connection of its own; half the load."""
    connecting = replace(load, reuse=False, messages=max(load.messages // 2, 1))
    with scratch("sign") as directory:
        own, _ = ours(directory, connecting, folder)
    with scratch("milter") as directory:
        other, _ = theirs(directory, connecting, folder)
    return [own, other]


def sampled(dump: Path, size: int) -> tuple[int, int, list[bytes]]:
    """(messages, those with exactly one signature of our domain, every n-th of them all)."""
    total = sum(1 for _ in contents(dump))
    step = max(total // size, 1)
    signed, sample = 0, []
    for number, content in enumerate(contents(dump)):
        header = content.partition(b"\r\n\r\n")[0]
        signed += header.count(b"DKIM-Signature:") == 1 and f"d={FROM_DOMAIN};".encode() in header
        if number % step == 0 and len(sample) < size:
            sample.append(content)
    return total, signed, sample


def verify(outcome: Outcome, who: str, directory: Path, load: Submission, size: int, key: Key) -> None:
    """What the sink of one round has: signed throughout, and verified by both in a sample."""
    total, signed, sample = sampled(directory / "sink" / "dump", size)
    outcome.check(f"{who}: every message has a signature", signed == total == load.messages, f"{signed:,} of {total:,}")
    records = {key.name: record.text(key)}
    faults = [why for content in sample if (why := proof.verify(content, records.get))]
    outcome.check(f"{who}: dkimpy verifies", sample and not faults, said(sample, faults))
    verdicts = opendkim.verdicts(directory, sample, {key.name: record.strings(record.text(key))})
    faults = [why for why in verdicts if why]
    outcome.check(f"{who}: OpenDKIM verifies", len(verdicts) == len(sample) and not faults, said(sample, faults))


def said(sample: Sequence[bytes], faults: Sequence[str]) -> str:
    return f"{len(sample) - len(faults):,} of {len(sample):,}" + (f", first: {faults[0]}" if faults else "")


def run(messages: int, rounds: int, sample: int, ratio: float, *, alone: bool) -> Outcome:
    load = Submission(messages, f"u@{DOMAIN}", reuse=True)
    outcome = Outcome("signing", full=messages >= MESSAGES and sample >= SAMPLE and not alone)
    seen: list[Rates] = []
    tuning: Mapping[str, Any] = {}
    with scratch("keys") as folder:
        key = make_key(folder)
        for number in range(1, rounds + 1):
            with scratch("sign") as directory:
                rates, found = ours(directory, load, folder)
                seen.append(rates)
                for check in found.checks:
                    outcome.check(f"round {number}: {check.claim}", check.holds, check.seen)
                verify(outcome, f"round {number}", directory, load, sample, key)
            if alone:
                continue
            with scratch("milter") as directory:
                rates, tuning = theirs(directory, load, folder)
                seen.append(rates)
                if number == 1:  # that the comparison is one
                    verify(outcome, "postfix and OpenDKIM", directory, load, min(sample, 100), key)
        connecting = [] if alone else each_connects(load, folder)
    figures: dict[str, Any] = {
        "load": asdict(load),
        "sample": sample,
        "relayd": len(LISTENING),
        "rounds": [asdict(rates) for rates in seen],
    }
    if not alone:
        figures |= {"ratios": accept_path.ratios(seen), "tuning": tuning}
        apart = {"rounds": [asdict(rates) for rates in connecting], "ratios": accept_path.ratios(connecting)}
        figures["connection_for_every_message"] = apart
        found_ratio = figures["ratios"]["delivered"]
        claim = f"signed end-to-end rate at least {ratio:g} × Postfix + OpenDKIM (medians)"
        outcome.check(claim, found_ratio >= ratio, f"ratio {found_ratio:.2f}")
    outcome.figures = figures
    show("messages a second, CPU ms a message, RSA-2048", figures["rounds"])
    if not alone:
        show("with a connection for every message", figures["connection_for_every_message"]["rounds"])
    return outcome


def main() -> int:
    parser = arguments(__doc__, MESSAGES)
    parser.add_argument("--rounds", type=int, default=2, help="of each relay, in turns")
    parser.add_argument("--sample", type=int, default=SAMPLE, help="messages of a round that both verifiers see")
    parser.add_argument("--ratio", type=float, default=RATIO, help="what must hold")
    parser.add_argument("--alone", action="store_true", help="without Postfix beside it")
    options = parser.parse_args()
    hindrance = opendkim.hindrance()
    if hindrance:
        print(f"cannot run: {hindrance}")
        return 1
    other = "" if options.alone else postfix.hindrance()
    if other:
        print(f"without the comparison: {other}")
    alone = options.alone or bool(other)
    return run(options.messages, options.rounds, options.sample, options.ratio, alone=alone).close()


if __name__ == "__main__":
    sys.exit(main())
