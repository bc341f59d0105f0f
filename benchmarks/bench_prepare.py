"""What preparing a message costs, stage by stage: microseconds of one core for an ordinary message.

The plain message is ASCII with short lines; `8-bit, to 7-bit` is the same with Spanish text in an account that wants
7-bit; `long lines` has no line end but the last.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from aiosmtpd.smtp import Envelope as Transaction
from cryptography.hazmat.primitives.asymmetric import rsa

from config.settings import AccountSettings
from mailqueue.message import new_id
from relayd import completion, directives, headers, lines, senders, sevenbit, trace
from relayd.completion import Identity
from relayd.policy import Client
from relayd.prepare import Keys, Preparation, Prepared, Terms
from signing.dkim import Key, Signer

TERMS = Terms("relay.test", max_recipients=1000, max_hops=50, expire_seconds=86400, notice_seconds=14_400)
HEAD = (
    b"Received: from app.inside (app.inside [10.1.2.3])\r\n\tby gate.inside with ESMTP id 4711;\r\n"
    b"\tSat, 21 Nov 2026 01:25:26 +0000\r\nFrom: Municipality <notices@agency.example>\r\nTo: ana@example.org\r\n"
    b"Subject: Your appointment\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Transfer-Encoding: 8bit\r\nList-Unsubscribe: <https://agency.example/u/1>\r\n"
    b"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\nX-Tambo-Campaign: january\r\n"
    b"Date: Sat, 21 Nov 2026 01:25:26 +0000\r\nMessage-ID: <1@agency.example>\r\n\r\n"
)


def filled(line: bytes, size: int) -> bytes:
    return HEAD + line * max(1, (size - len(HEAD)) // len(line))


def microseconds(work: Callable[[], object], seconds: float) -> float:
    """The best of five rounds."""
    count, spent = 1, 0.0
    while spent < seconds / 10:
        count *= 2
        began = time.process_time()
        for _ in range(count):
            work()
        spent = time.process_time() - began
    best = spent / count
    for _ in range(5):
        began = time.process_time()
        for _ in range(count):
            work()
        best = min(best, (time.process_time() - began) / count)
    return best * 1e6


def whole(content: bytes, keys: Keys, **account: object) -> Callable[[], object]:
    transaction = Transaction()
    transaction.mail_from, transaction.rcpt_tos = "notices@agency.example", ["ana@example.org"]
    transaction.rcpt_options = [[]]  # type: ignore[list-item]
    transaction.content = content
    client = Client("10.1.2.3", AccountSettings.model_validate({"name": "app", **account}), "app.inside", "ESMTP")
    preparation = Preparation(TERMS, keys, lambda account, key: new_id())

    def work() -> object:
        found = preparation.prepare(client, transaction, 1_795_224_326.7)
        assert isinstance(found, Prepared)
        return found

    return work


def stages(content: bytes) -> dict[str, Callable[[], object]]:
    account, now = AccountSettings(name="app"), 1_795_224_326.7
    identity, client = Identity("relay.test"), Client("10.1.2.3", account, "app.inside", "ESMTP")
    header = headers.parse(content)
    assert header is not None
    own = directives.own(header)
    wanted = directives.read(content, own, account, now)
    assert isinstance(wanted, directives.Directives)
    author = [(b"from", headers.raw_body(content, header.by_name[b"from"][0]))]
    return {
        "line ends": lambda: trace.normalise(content),
        "header": lambda: headers.parse(content),
        "directives": lambda: directives.read(content, directives.own(header), account, now),
        "senders": lambda: senders.check(account, author),
        "fields out and in": lambda: completion.completed(
            content, header, own, wanted, account, identity, message_id="0", now=now
        ),
        "long lines": lambda: lines.broken(content),
        "7-bit": lambda: sevenbit.converted(content),
        "Received": lambda: trace.received(client, "relay.test", "0", now),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=10_240)
    parser.add_argument("--seconds", type=float, default=0.5, help="per figure, about")
    options = parser.parse_args()
    plain = filled(b"x" * 74 + b"\r\n", options.size)
    signer = Signer([Key("agency.example", "s1", rsa.generate_private_key(public_exponent=65537, key_size=2048))])
    print(f"microseconds per message of {options.size} octets, one core")
    for name, work in stages(plain).items():
        print(f"  {name:20} {microseconds(work, options.seconds):8.1f}")
    spanish = filled("La cita del señor Muñoz será mañana a las 9.\r\n".encode(), options.size)
    for name, made in (
        ("prepare", whole(plain, Keys())),
        ("  RSA-2048", whole(plain, Keys(signer))),
        ("  8-bit, kept", whole(spanish, Keys())),
        ("  8-bit, to 7-bit", whole(spanish, Keys(), seven_bit=True)),
        ("  long lines", whole(filled(b"x" * options.size, options.size) + b"\r\n", Keys())),
    ):
        print(f"{name:22} {microseconds(made, options.seconds):8.1f}")


if __name__ == "__main__":
    main()
