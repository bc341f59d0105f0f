"""CPU of one DKIM signature: signing.dkim beside dkimpy, same message, same keys, same run.

    python benchmarks/bench_dkim.py [--seconds 1.0] [--sizes 10240,102400]

CPU time (user and system) of this process per signed message, median of rounds in turns. Both sign relaxed/relaxed
and the same fields; dkimpy verifies what ours signed before anything is measured. Trust ratios more than milliseconds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import base64

import dkim
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from signing import keys, proof, record
from signing.dkim import SEALED, Key, Signer

DOMAIN = "entidad.test"
NOW = 1_790_000_000.0
ROUNDS = 5
Sign = Callable[[bytes], object]


def message(octets: int, *, tidy: bool) -> bytes:
    """``tidy``: lines without runs of whitespace; else indented and with blanks at their ends, as HTML often is."""
    header = (
        "Received: from app (127.0.0.1)\r\n\tby relay.entidad.test with ESMTP id 0;\r\n\tMon, 21 Sep 2026 10:13:20 +0000\r\n"
        f"From: Entidad <avisos@{DOMAIN}>\r\nTo: Jo <jo@in.test>\r\nSubject: =?utf-8?q?Su_cita?=\r\n"
        f"Date: Mon, 21 Sep 2026 10:13:20 +0000\r\nMessage-ID: <1@{DOMAIN}>\r\nMIME-Version: 1.0\r\n"
        "Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n"
        "List-Unsubscribe: <https://entidad.test/u/1>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n\r\n"
    )
    line = "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod te\r\n"
    if not tidy:
        line = "        <td>\tLorem ipsum dolor sit amet,  consectetur adipiscing</td> \r\n"
    return (header + line * (octets // len(line) + 1)).encode("ascii")


def ours(key: Key) -> Sign:
    signer = Signer([key])
    return lambda content: signer.sign(content, DOMAIN, NOW)


def theirs(key: Key) -> Sign:
    if isinstance(key.private, Ed25519PrivateKey):
        private = base64.b64encode(key.private.private_bytes_raw())
    else:
        private = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    fields = [name.lower().encode() for name in SEALED]

    def sign(content: bytes) -> object:
        return dkim.DKIM(content, signature_algorithm=key.algorithm.encode()).sign(
            key.selector.encode(),
            DOMAIN.encode(),
            private,
            canonicalize=(b"relaxed", b"relaxed"),
            include_headers=fields,
        )

    return sign


def cpu_ms(sign: Sign, content: bytes, seconds: float) -> float:
    count, started = 0, time.process_time()
    while (spent := time.process_time() - started) < seconds:
        sign(content)
        count += 1
    return 1000 * spent / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each signer and case, over all rounds")
    parser.add_argument("--sizes", default="10240,102400", help="octets of the body")
    options = parser.parse_args()
    print(f"{'octets':>8} {'body':<9} {'algorithm':<12} {'ours ms':>8} {'dkimpy ms':>10} {'ratio':>6}")
    for algorithm in ("rsa-2048", "rsa-4096", "ed25519"):
        key = Key(DOMAIN, "s", keys.make(algorithm))
        for octets in map(int, options.sizes.split(",")):
            for tidy in (True, False):
                content = message(octets, tidy=tidy)
                why = proof.verify(Signer([key]).sign(content, DOMAIN, NOW) + content, {key.name: record.text(key)}.get)
                assert not why, why
                measured: dict[str, list[float]] = {"ours": [], "dkimpy": []}
                for _ in range(ROUNDS):
                    measured["ours"].append(cpu_ms(ours(key), content, options.seconds / ROUNDS))
                    measured["dkimpy"].append(cpu_ms(theirs(key), content, options.seconds / ROUNDS))
                own, other = (statistics.median(values) for values in measured.values())
                kind = "tidy" if tidy else "indented"
                print(f"{octets:>8,} {kind:<9} {algorithm:<12} {own:>8.3f} {other:>10.3f} {other / own:>6.1f}")


if __name__ == "__main__":
    main()
