"""Every behaviour of the sandbox's mail hosts once, over real connections."""

from __future__ import annotations

import asyncio
import smtplib
import ssl
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiosmtplib
import pytest
import uvloop

from sandbox.scenario import load
from sandbox.server import Sandbox

EOF = ""  # what Dialogue.read returns when the host has closed


class Dialogue:
    """A raw client: lines out, whole replies in ("" when the connection is over)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def read(self) -> str:
        lines = []
        async with asyncio.timeout(5):
            while True:
                try:
                    line = (await self.reader.readline()).decode("latin-1").rstrip()
                except ConnectionError:
                    return EOF
                lines.append(line)
                if line[3:4] != "-":
                    return " ".join(lines)

    async def say(self, *lines: str) -> list[str]:
        """Write lines in one go, read a reply to each."""
        self.writer.write("".join(line + "\r\n" for line in lines).encode())
        return [await self.read() for _ in lines]

    async def greet(self) -> None:
        assert (await self.read()).startswith("220 ")
        assert (await self.say("EHLO client.test"))[0].startswith("250")

    async def send(self, recipient: str, message_id: str = "<1@x>", text: str = "Hello") -> str:
        """One message; the first reply that is no success, or the last one."""
        replies = await self.say("MAIL FROM:<s@x.test>", f"RCPT TO:<{recipient}>")
        for reply in replies:
            if not reply.startswith("250"):
                return reply
        (ready,) = await self.say("DATA")
        if not ready.startswith("354"):
            return ready
        return (await self.say(f"Message-ID: {message_id}\r\n\r\n{text}\r\n."))[0]

    def close(self) -> None:
        self.writer.close()


@asynccontextmanager
async def dialogue(sandbox: Sandbox, host: str, source: str = "127.0.0.1") -> Any:
    reader, writer = await asyncio.open_connection(sandbox.host_address(host), sandbox.port, local_addr=(source, 0))
    try:
        yield Dialogue(reader, writer)
    finally:
        writer.close()


def with_sandbox(tmp_path: Path, scenario: Callable[[Sandbox], Awaitable[None]], **options: Any) -> None:
    extra = options.pop("extra", None)

    async def run() -> None:
        async with Sandbox(tmp_path, load(extra=extra), **options) as sandbox:
            await scenario(sandbox)

    uvloop.run(run())


@pytest.mark.parametrize(
    ("recipient", "reply"),
    [
        ("someone@gmail.test", "250 2.0.0"),
        ("unknown+x@gmail.test", "550 5.1.1"),
        ("disabled+x@gmail.test", "550 5.2.1"),
        ("full+x@gmail.test", "452 4.2.2"),
        ("full-permanent+x@gmail.test", "552 5.2.2"),
        ("defer+x@gmail.test", "451 4.3.0"),
        ("reject+x@gmail.test", "550 5.7.1"),
        ("defer-data+x@gmail.test", "451 4.3.0"),
        ("spam+x@gmail.test", "554 5.7.1"),
        ("too-big+x@gmail.test", "552 5.3.4"),
        ("rate-google+x@gmail.test", "421-4.7.28"),
        ("block-google+x@gmail.test", "550-5.7.1"),
        ("someone@googlemail.test", "250 2.0.0"),
        ("someone@gob.test", "550 5.7.1"),
        ("drop-rcpt+x@gmail.test", EOF),
        ("drop-data+x@gmail.test", EOF),
        ("drop-content+x@gmail.test", EOF),
        ("drop-after-dot+x@gmail.test", EOF),
        ("lose-after-dot+x@gmail.test", EOF),
        ("garbage-rcpt+x@gmail.test", "\x00"),
        ("garbage-end+x@gmail.test", "\x00"),
    ],
)
def test_recipient_behaviours(tmp_path: Path, recipient: str, reply: str) -> None:
    """Only what was accepted, said or not, is in the ledger."""

    async def scenario(sandbox: Sandbox) -> None:
        async with dialogue(sandbox, "mx1.gmail.test") as client:
            await client.greet()
            said = await client.send(recipient, "<m@x>")
        assert said.startswith(reply) and (reply or said == EOF)
        taken = said.startswith("250") or recipient.startswith("drop-after-dot")
        assert dict(sandbox.ledger.receipts().message_ids()) == ({"<m@x>": 1} if taken else {})
        assert sandbox.ledger.receipts().unanswered() == (1 if recipient.startswith("drop-after-dot") else 0)

    with_sandbox(tmp_path, scenario)


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("busy", ["421 4.3.2", EOF]),
        ("busy-permanent", ["554 5.3.2", "503", "503"]),
        ("drop-greeting", [EOF]),
        ("drop-ehlo", ["220", EOF]),
        ("drop-mail", ["220", "250", EOF]),
        ("garbage", ["\x00"]),
        ("helo-only", ["220", "502"]),
        ("tls-required", ["220", "250", "530 5.7.0"]),
        ("rate-microsoft", ["220", "250", "451 4.7.650 The mail server [127.0.0.1]"]),
        ("rate-yahoo", ["220", "250", "421 4.7.0 [TSS04] Messages from 127.0.0.1", EOF]),
        ("rate-apple", ["220", "250", "421 4.7.0 [HCM1]"]),
        ("block-microsoft", ["220", "250", "550 5.7.1"]),
        ("block-yahoo", ["220", "250", "553 5.7.1 [BL21]"]),
        ("slow-each0", ["220", "250", "250"]),
    ],
)
def test_session_behaviours(tmp_path: Path, behaviour: str, said: list[str]) -> None:
    async def scenario(sandbox: Sandbox) -> None:
        await sandbox.set_behaviour("gob.test", behaviour)
        async with dialogue(sandbox, "mx1.gob.test") as client:
            replies = [await client.read()]
            for line in ("EHLO client.test", "MAIL FROM:<s@x.test>")[: len(said) - 1]:
                replies += await client.say(line)
            if len(said) > 3:
                replies.append(await client.read())
        for reply, start in zip(replies, said, strict=True):
            assert reply.startswith(start) and (start or reply == EOF)

    with_sandbox(tmp_path, scenario)


def test_behaviour_for_some_sources(tmp_path: Path) -> None:
    async def scenario(sandbox: Sandbox) -> None:
        await sandbox.set_behaviour("yahoo.test", "rate-yahoo", ("127.0.1.3",))
        for source, reply in (("127.0.1.3", "421"), ("127.0.1.4", "250")):
            async with dialogue(sandbox, "mx1.yahoo.test", source) as client:
                await client.greet()
                assert (await client.send("a@yahoo.test")).startswith(reply)

    with_sandbox(tmp_path, scenario)


def test_greylisting_knows_source_sender_and_recipient(tmp_path: Path) -> None:
    async def scenario(sandbox: Sandbox) -> None:
        async def attempt(recipient: str, source: str = "127.0.1.1") -> str:
            async with dialogue(sandbox, "mx1.gob.test", source) as client:
                await client.greet()
                return str(await client.send(recipient))[:9]

        assert [await attempt("greylist+a@gob.test") for _ in range(3)] == ["451 4.7.1", "250 2.0.0", "250 2.0.0"]
        assert await attempt("greylist+a@gob.test", "127.0.1.2") == "451 4.7.1"
        assert [await attempt("greylist60+b@gob.test") for _ in range(2)] == ["451 4.7.1"] * 2

    with_sandbox(tmp_path, scenario)


def test_partial_recipients_pipelined(tmp_path: Path) -> None:
    """Envelope and DATA in one write; the refused recipient is not in the ledger."""

    async def scenario(sandbox: Sandbox) -> None:
        async with dialogue(sandbox, "mx1.gmail.test") as client:
            await client.greet()
            said = await client.say(
                "MAIL FROM:<s@x.test> SIZE=100 BODY=8BITMIME",
                "RCPT TO:<a@gmail.test>",
                "RCPT TO:<unknown+b@gmail.test>",
                "RCPT TO:<c@empresa.test>",
                "DATA",
            )
            assert [reply[:3] for reply in said] == ["250", "250", "550", "250", "354"]
            assert (await client.say("message-id: <p@x>\r\n\r\ntext\r\n."))[0].startswith("250")
            assert (await client.say("QUIT"))[0].startswith("221")
        receipts = sandbox.ledger.receipts()
        assert set(receipts.deliveries()) == {("<p@x>", "a@gmail.test"), ("<p@x>", "c@empresa.test")}
        assert sandbox.ledger.accepted["empresa.test", "127.0.0.1"] == 1
        assert not receipts.violations()
        async with dialogue(sandbox, "mx.partial.test") as client:
            await client.greet()
            said = await client.say("MAIL FROM:<>", *(f"RCPT TO:<{n}@partial.test>" for n in range(4)))
            assert [reply[:3] for reply in said] == ["250", "250", "550", "250", "550"]

    with_sandbox(tmp_path, scenario)


@pytest.mark.parametrize(
    ("host", "line", "reply"),
    [
        ("mx1.dsn.test", "MAIL FROM:<s@x.test> RET=HDRS ENVID=Q+2BZ SIZE=10 BODY=8BITMIME", "250"),
        ("mx1.dsn.test", "MAIL FROM:<s@x.test> ret=full", "250"),
        ("mx1.dsn.test", "MAIL FROM:<s@x.test> RET=HDRS RET=FULL", "555 5.5.4"),
        ("mx1.dsn.test", "MAIL FROM:<s@x.test> NOTIFY=NEVER", "555 5.5.4"),
        ("mx1.dsn.test", "MAIL FROM:<s@x.test> FOO", "555 5.5.4"),
        ("mx1.dsn.test", "MAIL FROM:<s@x.test> SMTPUTF8", "555 5.5.4"),
        ("mx1.gob.test", "MAIL FROM:<s@x.test> RET=HDRS", "555 5.5.4"),
        ("mx1.gob.test", "MAIL FROM:<s@x.test> SIZE=99999999", "552 5.3.4"),
        ("mx.basic.test", "MAIL FROM:<s@x.test> SIZE=10", "250"),
        ("mx.basic.test", "MAIL FROM:<s@x.test> BODY=8BITMIME", "555 5.5.4"),
    ],
)
def test_parameters_of_what_is_offered(tmp_path: Path, host: str, line: str, reply: str) -> None:
    async def scenario(sandbox: Sandbox) -> None:
        async with dialogue(sandbox, host) as client:
            await client.greet()
            assert (await client.say(line))[0].startswith(reply)

    with_sandbox(tmp_path, scenario)


def test_dsn_parameters_are_in_the_ledger_as_they_came(tmp_path: Path) -> None:
    async def scenario(sandbox: Sandbox) -> None:
        async with dialogue(sandbox, "mx1.gob.test") as client:
            await client.greet()
            said = await client.say("MAIL FROM:<s@x.test>", "RCPT TO:<a@gob.test> NOTIFY=NEVER")
            assert said[1].startswith("555 5.5.4")
        async with dialogue(sandbox, "mx1.dsn.test") as client:
            assert (await client.read()).startswith("220 ")
            assert "DSN" in (await client.say("EHLO client.test"))[0].split()
            await client.say(
                "MAIL FROM:<s@x.test> RET=FULL ENVID=Q+2Bz",
                "RCPT TO:<a@dsn.test> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;A+2Bb@X.test",
                "RCPT TO:<unknown+b@dsn.test> NOTIFY=NEVER",
                "RCPT TO:<c@dsn.test>",
                "DATA",
            )
            assert (await client.say("Message-ID: <d@x>\r\n\r\n."))[0].startswith("250")
            assert (await client.send("d@dsn.test")).startswith("250")
        first, second = sandbox.ledger.receipts().records("message")
        assert (first["to"], first["ret"], first["envid"]) == (["a@dsn.test", "c@dsn.test"], "FULL", "Q+2Bz")
        assert (first["notify"], first["orcpt"]) == (["SUCCESS,DELAY", ""], ["rfc822;A+2Bb@X.test", ""])
        assert not {"ret", "envid", "notify", "orcpt"} & second.keys()

    with_sandbox(tmp_path, scenario)


def test_data_without_recipients(tmp_path: Path) -> None:
    async def scenario(sandbox: Sandbox) -> None:
        for behaviour, ready in (("accept", "554"), ("eager", "354")):
            await sandbox.set_behaviour("gob.test", behaviour)
            async with dialogue(sandbox, "mx1.gob.test") as client:
                await client.greet()
                said = await client.say("MAIL FROM:<>", "RCPT TO:<unknown+a@gob.test>", "DATA")
                assert [reply[:3] for reply in said] == ["250", "550", ready]
                if ready == "354":
                    assert (await client.say("."))[0].startswith("554")
        assert sandbox.ledger.messages == 0

    with_sandbox(tmp_path, scenario)


def test_dialogue_faults_are_recorded(tmp_path: Path) -> None:
    async def scenario(sandbox: Sandbox) -> None:
        async with dialogue(sandbox, "mx.basic.test") as client:
            await client.read()
            assert "PIPELINING" not in (await client.say("EHLO x"))[0]
            await client.say("MAIL FROM:<>", "RCPT TO:<a@basic.test>")
        async with dialogue(sandbox, "mx1.gob.test") as client:
            await client.greet()
            await client.say("MAIL FROM:<>", "RCPT TO:<a@gob.test>")
            await client.say("DATA", "too early\r\n.")
        assert dict(sandbox.ledger.violation_counts) == {"pipelining_not_offered": 1, "content_before_354": 1}

    with_sandbox(tmp_path, scenario)


def test_slow_reply_and_a_peer_that_does_not_wait(tmp_path: Path) -> None:
    """The message counts from its final dot on, whether or not anybody waits for the reply."""

    async def scenario(sandbox: Sandbox) -> None:
        async with dialogue(sandbox, "mx1.gob.test") as client:
            await client.greet()
            begun = asyncio.get_running_loop().time()
            assert (await client.send("slow1+x@gob.test", "<slow@x>")).startswith("250")
            assert asyncio.get_running_loop().time() - begun >= 1.0
            await client.say("MAIL FROM:<>", "RCPT TO:<slow60+x@gob.test>", "DATA")
            client.writer.write(b"Message-ID: <gone@x>\r\n\r\n\r\n.\r\n")
            await sandbox.ledger.accepted_at_least(2)
        assert set(sandbox.ledger.receipts().message_ids()) == {"<slow@x>", "<gone@x>"}
        async with dialogue(sandbox, "mx.silent.test") as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.read(), 0.1)

    with_sandbox(tmp_path, scenario)


def test_every_nth(tmp_path: Path) -> None:
    async def scenario(sandbox: Sandbox) -> None:
        await sandbox.set_behaviour("gob.test", "sometimes")
        async with dialogue(sandbox, "mx1.gob.test") as client:
            await client.greet()
            said = [(await client.send("a@gob.test"))[:3] for _ in range(6)]
        assert said == ["250", "250", "451"] * 2

    step = {"reply": "451 4.3.0 Now and then", "every": 3}
    with_sandbox(tmp_path, scenario, extra={"behaviours": {"sometimes": {"steps": {"end_of_data": step}}}})


def test_content_arrives_as_it_was_in_any_pieces(tmp_path: Path) -> None:
    """Dots doubled and alone, no final line, byte by byte: the stored content is the one sent."""

    async def scenario(sandbox: Sandbox) -> None:
        assert sandbox.store is not None
        wire = b"Message-ID: <b@x>\r\n\r\n..\r\n..two\r\nx.\r\n"
        for chunk in (1, 3, 1000):
            async with dialogue(sandbox, "mx1.gob.test") as client:
                await client.greet()
                await client.say("MAIL FROM:<s@x.test>", "RCPT TO:<a@gob.test>", "DATA")
                for start in range(0, len(wire) + 3, chunk):
                    client.writer.write((wire + b".\r\n")[start : start + chunk])
                    await asyncio.sleep(0)
                assert (await client.read()).startswith("250")
        stored = [path.read_bytes() for path in sandbox.store.messages("gob.test")]
        for data in stored:
            head, received, content = data.partition(
                b"Received: from client.test ([127.0.0.1])\r\n\tby mx1.gob.test (sandbox)"
            )
            assert received and head == b"Return-Path: <s@x.test>\r\nDelivered-To: a@gob.test\r\n"
            assert content.partition(b"\r\n")[2] == wire.replace(b"\r\n..", b"\r\n.")
        assert len(stored) == 3
        assert sandbox.ledger.receipts().message_ids() == {"<b@x>": 3}
        async with dialogue(sandbox, "mx1.gob.test") as client:
            await client.greet()
            await client.say("MAIL FROM:<>", "RCPT TO:<a@gob.test>", "DATA")
            assert (await client.say("."))[0].startswith("250")

    with_sandbox(tmp_path, scenario, store=True)


def test_standard_clients(tmp_path: Path) -> None:
    def stock(address: str, port: int) -> dict[str, tuple[int, bytes]]:
        with smtplib.SMTP(address, port, timeout=5) as client:
            return client.sendmail(
                "s@x.test", ["a@gmail.test", "unknown+b@gmail.test"], b"Message-ID: <s@x>\n\nHi\n.\n"
            )

    async def scenario(sandbox: Sandbox) -> None:
        address = sandbox.host_address("mx1.gmail.test")
        refused = await asyncio.to_thread(stock, address, sandbox.port)
        assert {name: reply[0] for name, reply in refused.items()} == {"unknown+b@gmail.test": 550}
        async with aiosmtplib.SMTP(hostname=address, port=sandbox.port, start_tls=False) as client:
            await client.sendmail("s@x.test", ["a@gmail.test"], b"Message-ID: <t@x>\r\n\r\nHi\r\n")
        assert set(sandbox.ledger.receipts().message_ids()) == {"<s@x>", "<t@x>"}

    with_sandbox(tmp_path, scenario)


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_tls(tmp_path: Path, runner: Callable[[Any], None]) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    async def scenario() -> None:
        async with Sandbox(tmp_path) as sandbox:
            for domain in ("tls.test", "tlsrequired.test"):
                address = sandbox.host_address(f"mx.{domain}")
                async with aiosmtplib.SMTP(
                    hostname=address, port=sandbox.port, start_tls=True, tls_context=context
                ) as client:
                    assert "starttls" not in client.esmtp_extensions
                    await client.sendmail("s@x.test", [f"a@{domain}"], b"Message-ID: <t@x>\r\n\r\nHi\r\n")
            broken = aiosmtplib.SMTP(
                hostname=sandbox.host_address("mx.tlsbroken.test"),
                port=sandbox.port,
                start_tls=True,
                tls_context=context,
            )
            with pytest.raises(ssl.SSLError):
                await broken.connect(timeout=5)
            await sandbox.set_behaviour("tls.test", "tls-refused")
            async with dialogue(sandbox, "mx.tls.test") as client:
                await client.greet()
                assert (await client.say("STARTTLS"))[0].startswith("454")
            assert sandbox.ledger.messages == 2
        assert sum(record["tls"] for record in sandbox.ledger.receipts().records("connection")) == 2

    runner(scenario())


def test_down_and_up_again(tmp_path: Path) -> None:
    """Down: refused at once, open sessions cut; a dead host refuses always; a single host can be down."""

    async def scenario(sandbox: Sandbox) -> None:
        async with dialogue(sandbox, "mx1.gmail.test") as open_before:
            await open_before.greet()
            await sandbox.set_behaviour("gmail.test", "down")
            assert await open_before.read() == EOF
        for host in ("mx1.gmail.test", "mx2.gmail.test", "mx.dead.test"):
            with pytest.raises(ConnectionRefusedError):
                async with dialogue(sandbox, host):
                    pass
        await sandbox.set_behaviour("gmail.test", "normal")
        await sandbox.set_behaviour("mx1.gmail.test", "down")
        with pytest.raises(ConnectionRefusedError):
            async with dialogue(sandbox, "mx1.gmail.test"):
                pass
        async with dialogue(sandbox, "mx2.gmail.test") as client:
            await client.greet()
            assert (await client.send("a@gmail.test")).startswith("250")

    with_sandbox(tmp_path, scenario)
