"""DSN parameters and return paths on the whole way: queue, engine, mail hosts with DSN and without, and back."""

from __future__ import annotations

import asyncio
import email
import os
import subprocess
from collections.abc import Callable
from email.message import Message as Mail
from pathlib import Path
from typing import Any

import pytest

from config.settings import TimeoutSettings
from delivery.session import Session
from delivery.tls import TlsMode
from delivery.transaction import Transaction
from tests.delivery_kit import Rig, rig
from tests.queue_kit import eventually, message
from tests.smtp_peer import Peer, peer
from tests.test_fixtures import free_port

SENDER = "Notas@gob.test"


def put_back(rig: Rig) -> list[Mail]:
    """The DSNs that arrived at the sender's, envelope checked: null reverse-path, the original sender as recipient."""
    assert rig.sandbox.store is not None
    found = []
    for path in rig.sandbox.store.messages("gob.test"):
        mail = email.message_from_bytes(path.read_bytes())
        if mail.get_content_type() == "multipart/report":
            assert (mail["Return-Path"], mail["Delivered-To"]) == ("<>", SENDER)
            found.append(mail)
    return found


def told(dsn: Mail) -> list[dict[str, str]]:
    """The per-recipient fields of a DSN."""
    status = dsn.get_payload()[1]  # type: ignore[index]
    return [dict(group.items()) for group in status.get_payload()[1:]]  # type: ignore[union-attr]


def ledger(rig: Rig) -> list[dict[str, Any]]:
    """What the mail hosts took, our own DSNs left out."""
    return [record for record in rig.sandbox.ledger.receipts().records("message") if record["from"]]


def test_success_is_told_by_us_only_where_the_next_hop_does_not(shared_redis: Any, tmp_path: Path) -> None:
    """RFC 3461 §5.2.1 and §5.2.2, in one message; the parameters arrive byte for byte."""
    sent = message(
        *("a@dsn.test", "b@dsn.test", "c@gmail.test", "d@gmail.test", "e@gmail.test"),
        reverse_path=SENDER,
        ret="FULL",
        envid="QQ+2B314z",
        notify=("SUCCESS,FAILURE", "", "SUCCESS", "FAILURE", ""),
        orcpt=("rfc822;A+2Bx@Old.Test", "", "rfc822;C@Old.Test", "", ""),
    )

    async def scenario() -> None:
        async with rig(shared_redis.url, tmp_path, store=True) as one:
            await one.queue.put(sent)
            await one.until({"delivered": 5})
            assert await one.notify() == 1
            await one.until({"delivered": 6})
            assert await one.notify() == 0, "a DSN causes none"
            (dsn,) = put_back(one)
            (fields,) = told(dsn)
            assert dsn["Subject"].endswith("(Delivery Status Notification: relayed)")
            assert (fields["Action"], fields["Status"]) == ("relayed", "2.0.0")
            assert fields["Original-Recipient"] == "rfc822; C@Old.Test"
            assert fields["Final-Recipient"] == "rfc822; c@gmail.test"
            assert fields["Diagnostic-Code"] == "smtp; 250 2.0.0 Ok: received"
            envelope_fields = dsn.get_payload()[1].get_payload()[0]  # type: ignore[index,union-attr]
            assert envelope_fields["Original-Envelope-Id"] == "QQ+314z"
            assert dsn.get_payload()[2].get_content_type() == "text/rfc822-headers"  # type: ignore[index,union-attr]

            passed_on, plain = sorted(ledger(one), key=lambda record: "envid" not in record)
            assert passed_on["to"] == ["a@dsn.test", "b@dsn.test"]
            assert (passed_on["ret"], passed_on["envid"]) == ("FULL", "QQ+2B314z")
            assert passed_on["notify"] == ["SUCCESS,FAILURE", ""]
            assert passed_on["orcpt"] == ["rfc822;A+2Bx@Old.Test", ""]
            assert not {"ret", "envid", "notify", "orcpt"} & plain.keys()
            actions = {event.recipient: event.action for event in await one.events("delivered") if event.reverse_path}
            assert [actions[recipient] for recipient in sent.envelope.recipients] == [
                *("delivered", "delivered", "relayed", "delivered", "delivered")
            ]

    asyncio.run(scenario())


def test_failures_are_told_as_was_asked(shared_redis: Any, tmp_path: Path) -> None:
    people = ("unknown+a@gmail.test", "unknown+b@gmail.test", "unknown+c@gmail.test", "unknown+d@gmail.test")

    async def scenario() -> None:
        async with rig(shared_redis.url, tmp_path, store=True) as one:
            await one.queue.put(message(*people, reverse_path=SENDER, notify=("NEVER", "FAILURE", "SUCCESS", "")))
            await one.until({"bounced": 4})
            assert await one.notify() == 1
            await one.queue.put(message(*people, reverse_path=SENDER, notify=("NEVER",) * 4))
            await one.queue.put(message(*people, reverse_path=SENDER, dsn="stream"))
            await one.queue.put(message(*people, reverse_path="", notify=("SUCCESS,FAILURE",) * 4))
            await one.until({"bounced": 16, "delivered": 1})
            assert await one.notify() == 0
            (dsn,) = put_back(one)
            assert sorted(fields["Final-Recipient"] for fields in told(dsn)) == [
                f"rfc822; {people[1]}",
                f"rfc822; {people[3]}",
            ]

    asyncio.run(scenario())


def test_return_paths_go_out_one_each_and_dsns_to_the_original_sender(shared_redis: Any, tmp_path: Path) -> None:
    people = (*(f"u{n}@gmail.test" for n in range(30)), "unknown+x@gmail.test", "s@dsn.test")
    paths = tuple(f"r{n:02}@back.test" for n in range(32))
    asked = ("",) * 31 + ("SUCCESS",)  # what dsn.test says of success comes back to us, not to the sender

    async def scenario() -> None:
        async with rig(shared_redis.url, tmp_path, store=True) as one:
            await one.queue.put(message(*people, reverse_path=SENDER, return_paths=paths, ret="FULL", notify=asked))
            await one.until({"delivered": 31, "bounced": 1})
            assert await one.notify() == 2
            await one.until({"delivered": 33})
            sent = [(record["from"], *record["to"]) for record in ledger(one)]
            expected = [pair for pair in zip(paths, people, strict=True) if not pair[1].startswith("unknown")]
            assert sorted(sent) == sorted(expected)
            assert all(event.reverse_path == SENDER for event in await one.events("bounced"))
            dsns = {told(dsn)[0]["Action"]: dsn for dsn in put_back(one)}
            assert sorted(dsns) == ["failed", "relayed"]
            whole = dsns["failed"].get_payload()[2]  # type: ignore[index]
            assert whole.get_content_type() == "message/rfc822"  # type: ignore[union-attr]
            assert "texto" in whole.as_string()  # type: ignore[union-attr]

    asyncio.run(scenario())


@pytest.mark.usefixtures("root")
def test_a_real_postfix_tells_of_success_with_what_we_passed_on(tool: Callable[[str], Path]) -> None:
    """Our client → Postfix, which offers DSN → a host that does not: Postfix's DSN shows what it understood."""
    if not str(tool("postconf")).endswith(".tools/bin/postconf"):
        pytest.skip("the private instance runs from the unpacked tools only")
    instance = Path(__file__).resolve().parent.parent / "tools" / "postfix-instance"
    directory, submission = Path(f"/tmp/tambo-postfix-dsn-{os.getpid()}"), free_port()
    sent = Transaction(
        *("aviso@entidad.test", ("a@x.test", "b@x.test"), b"Subject: hola\r\n\r\ntexto\r\n"),
        ret="HDRS",
        envid="QQ+2B314+3Dz",
        notify=("SUCCESS", "NEVER"),
        orcpt=("rfc822;A+2Bx@Old.Test", ""),
    )

    async def to_postfix(words: list[str]) -> None:
        await asyncio.to_thread(subprocess.run, [instance, *words], check=True, timeout=30)

    async def exchange(host: Peer) -> None:
        session = await Session.open(
            *("postfix.test", "127.0.0.1", submission),
            source=None,
            hostname="relay.test",
            timeouts=TimeoutSettings(),
            tls=TlsMode.NONE,
        )
        result = await session.send(sent)
        await session.quit()
        assert result.dsn and all(told.delivered for told in result.recipients)

        async def both_came() -> bool:
            return len(host.messages) == 2

        await eventually(both_came, 30)

    async def scenario() -> None:
        async with peer() as host:
            await to_postfix(["start", str(directory), str(submission), str(host.port)])
            try:
                await exchange(host)
            finally:
                await to_postfix(["stop", str(directory)])
                await asyncio.to_thread(subprocess.run, ["rm", "-rf", directory], check=True)
        dsn = next(mail for mail in map(email.message_from_bytes, host.messages) if mail.is_multipart())
        (fields,) = told(dsn)
        assert (fields["Action"], fields["Original-Recipient"]) == ("relayed", "rfc822;A+x@Old.Test")
        assert dsn.get_payload()[1].get_payload()[0]["Original-Envelope-Id"] == "QQ+314=z"  # type: ignore[index,union-attr]

    asyncio.run(scenario())
