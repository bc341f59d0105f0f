"""Golden dialogues: what is said is answered so, whether it comes whole, byte by byte or line by line."""

from __future__ import annotations

import asyncio
import re

import pytest

from tests.listening import RecordingQueue, listening, run, settings

ESMTP = """\
S: 220 relay.test ESMTP
C: EHLO client.example
S: 250-relay.test
S: 250-PIPELINING
S: 250-SIZE 26214400
S: 250-8BITMIME
S: 250 ENHANCEDSTATUSCODES
C: MAIL FROM:<a@b.example> SIZE=100 BODY=8BITMIME AUTH=<>
S: 250 2.1.0 ok
C: RCPT TO:<c@d.example>
S: 250 2.1.5 ok
C: rcpt to: <e@[192.0.2.1]>
S: 250 2.1.5 ok
C: DATA
S: 354 end with <CRLF>.<CRLF>
C: Subject: one
C:
C: ..stuffed
C: text
C: .
S: 250 2.0.0 queued as ID
C: NOOP what ever
S: 250 2.0.0 ok
C: RSET
S: 250 2.0.0 ok
C: VRFY root
S: 252 2.1.5 cannot verify, send and see
C: EXPN staff
S: 502 5.5.1 command not offered
C: HELP MAIL
S: 214 2.0.0 see RFC 5321 and RFC 6409
C: QUIT
S: 221 2.0.0 bye
"""

ORDER = """\
S: 220 relay.test ESMTP
C: MAIL FROM:<a@b.example>
S: 503 5.5.1 say EHLO first
C: EHLO
S: 501 5.5.4 syntax: EHLO name
C: HELO client.example
S: 250 relay.test
C: MAIL FROM:<a@b.example> SIZE=1
S: 555 5.5.4 parameter not recognized
C: RCPT TO:<c@d.example>
S: 503 5.5.1 MAIL first
C: DATA
S: 503 5.5.1 MAIL first
C: MAIL FROM:<a@b.example>
S: 250 2.1.0 ok
C: MAIL FROM:<a@b.example>
S: 503 5.5.1 a mail transaction is under way
C: DATA
S: 503 5.5.1 RCPT first, no valid recipients
C: RCPT TO:<c@d.example>
S: 250 2.1.5 ok
C: DATA now
S: 501 5.5.4 no argument allowed
C: RSET now
S: 501 5.5.4 no argument allowed
C: RSET
S: 250 2.0.0 ok
C: RCPT TO:<c@d.example>
S: 503 5.5.1 MAIL first
C: STARTTLS
S: 502 5.5.1 TLS is not offered here
C: AUTH PLAIN
S: 502 5.5.1 AUTH is not offered here
C: BDAT 3 LAST
S: 500 5.5.1 command not recognized
C:
S: 500 5.5.1 command not recognized
C: QUIT now
S: 501 5.5.4 no argument allowed
C: QUIT
S: 221 2.0.0 bye
"""

PATHS = """\
S: 220 relay.test ESMTP
C: EHLO client.example
S: 250-relay.test
S: 250-PIPELINING
S: 250-SIZE 26214400
S: 250-8BITMIME
S: 250 ENHANCEDSTATUSCODES
C: MAIL FROM
S: 501 5.5.4 syntax: MAIL FROM:<address> [parameters]
C: MAIL FROM:
S: 501 5.5.4 syntax: MAIL FROM:<address> [parameters]
C: MAIL FROM:<a b@c.example>
S: 501 5.5.4 syntax: MAIL FROM:<address> [parameters]
C: MAIL FROM:<a..b@c.example>
S: 553 5.1.7 malformed reverse-path
C: MAIL FROM:<root>
S: 553 5.1.7 malformed reverse-path
C: MAIL FROM:<a@b.example> RET=FULL
S: 555 5.5.4 parameter not recognized
C: MAIL FROM:<a@b.example> SIZE=x
S: 501 5.5.4 malformed parameter
C: MAIL FROM:<a@b.example> SIZE=26214401
S: 552 5.3.4 message too big
C: MAIL FROM:<a@b.example> BODY=BINARYMIME
S: 501 5.5.4 malformed parameter
C: MAIL FROM:<a@b.example> SIZE=1 SIZE=2
S: 501 5.5.4 syntax: MAIL FROM:<address> [parameters]
C: MAIL FROM:<>
S: 250 2.1.0 ok
C: RCPT TO:<Postmaster>
S: 553 5.1.3 the recipient address needs a domain
C: RCPT TO:<>
S: 553 5.1.3 malformed recipient address
C: RCPT TO:<a@-b.example>
S: 553 5.1.3 malformed recipient address
C: RCPT TO:<a@[300.1.1.1]>
S: 553 5.1.3 malformed recipient address
C: RCPT TO:<a@b.example> NOTIFY=NEVER
S: 555 5.5.4 parameter not recognized
C: RCPT TO:<@relay.example,@other.example:a@b.example>
S: 250 2.1.5 ok
C: RCPT TO:<"quoted \\" local"@b.example>
S: 250 2.1.5 ok
C: RCPT TO: a@b.example
S: 250 2.1.5 ok
C: QUIT
S: 221 2.0.0 bye
"""

DIALOGUES = {"esmtp": ESMTP, "order": ORDER, "paths": PATHS}


def sides(script: str) -> tuple[list[bytes], str]:
    said = [line[2:].removeprefix(" ").encode() + b"\r\n" for line in script.splitlines() if line.startswith("C:")]
    answers = "".join(line[3:] + "\r\n" for line in script.splitlines() if line.startswith("S:"))
    return said, answers


def anonymous(text: str) -> str:
    return re.sub(r"queued as [0-9a-v]{20}", "queued as ID", text)


@pytest.mark.parametrize("feeding", ["whole", "bytes", "lines"])
@pytest.mark.parametrize("name", DIALOGUES)
def test_the_same_answers_however_it_is_fed(name: str, feeding: str) -> None:
    said, answers = sides(DIALOGUES[name])

    async def scenario() -> None:
        async with listening(settings_=settings(max_errors=100)) as house:
            client = await house.connect()
            pieces = {"whole": [b"".join(said)], "lines": said, "bytes": [bytes([b]) for b in b"".join(said)]}[feeding]
            client.writer.transport.get_extra_info("socket").setsockopt(6, 1, 1)  # TCP_NODELAY
            for piece in pieces:
                await client.send(piece)
                await asyncio.sleep(0)
            assert anonymous(await client.rest()) == answers
            if name == "esmtp":
                assert house.queue.content == b"Subject: one\r\n\r\n.stuffed\r\ntext\r\n"

    run(scenario())


def test_pipelined_commands_are_answered_in_one_write() -> None:
    async def scenario() -> None:
        async with listening() as house:
            client = await house.connect()
            await client.hello()
            await client.send(b"MAIL FROM:<a@b.example>\r\n" + b"RCPT TO:<c@d.example>\r\n" * 20 + b"DATA\r\n")
            first = await client.reader.read(65536)
            assert first.count(b"\r\n") == 22
            assert first.endswith(b"354 end with <CRLF>.<CRLF>\r\n")
            await client.close()

    run(scenario())


def test_what_came_before_the_end_of_input_is_answered() -> None:
    async def scenario() -> None:
        async with listening() as house:
            client = await house.connect()
            await client.send(
                b"EHLO x.example\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\nhi\r\n.\r\n"
            )
            client.writer.write_eof()
            assert "250 2.0.0 queued as" in await client.rest()
            assert len(house.queue.messages) == 1

    run(scenario())


def test_the_null_reverse_path_is_the_empty_string_and_names_survive_as_written() -> None:
    async def scenario() -> None:
        async with listening() as house:
            client = await house.connect()
            await client.hello()
            for command in ("MAIL FROM:<>", "RCPT TO:<Jo.E+x@D.example>", "RCPT TO:<Jo.E+x@D.example>", "DATA"):
                await client.ask(command)
            await client.ask("hi\r\n.")
            (message,) = house.queue.messages
            assert message.envelope.reverse_path == ""
            assert message.envelope.recipients == ("Jo.E+x@D.example",)
            await client.close()

    run(scenario())


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"NOOP\n", "500 5.5.2"),
        (b"NOOP\r\r\n", "500 5.5.2"),
        (b"NO\0OP\r\n", "500 5.5.2"),
        (b"NOOP \xc3\xa9\r\n", "500 5.5.2"),
        (b"MAIL FROM:<\xc3\xa9@b.example>\r\n", "553 5.6.7"),
        (b"NOOP " + b"x" * 600 + b"\r\n", "500 5.5.2"),
        (b"NOOP " + b"x" * 20_000 + b"\r\n", "500 5.5.2"),
        (b"AUTH PLAIN " + b"x" * 12_300 + b"\r\n", "500 5.5.2"),
        (b"MAIL FROM:<" + b"x" * 3000 + b"@b.example>\r\n", "500 5.5.2"),
        (b"GET / HTTP/1.1\r\n", "421 4.7.0"),
    ],
)
def test_lines_that_are_no_commands(line: bytes, code: str) -> None:
    async def scenario() -> None:
        async with listening() as house:
            client = await house.connect()
            await client.hello()
            await client.send(line)
            assert (await client.reply()).startswith(code)
            if not code.startswith("421"):
                assert await client.ask("NOOP") == "250 2.0.0 ok"
            await client.close()

    run(scenario())


def test_every_reply_carries_an_enhanced_code_of_its_class() -> None:
    from relayd import replies

    found = [value for value in vars(replies).values() if isinstance(value, replies.Reply)]
    assert len(found) > 40
    for reply in found:
        if reply.code != 354:
            assert re.fullmatch(rf"{str(reply.code)[0]}\.[0-7]\.\d{{1,2}}", reply.status), reply
        assert len(reply.line) <= 512
    assert replies.with_status("250 OK") == "250 2.0.0 OK"
    assert replies.with_status("503 5.5.1 no") == "503 5.5.1 no"
    assert replies.with_status("220 relay.test") == "220 relay.test"
    assert replies.with_status("250-SIZE") == "250-SIZE"


def test_strangers_get_no_mail_through() -> None:
    """Open relay: no account, no MAIL, whatever is tried; nothing reaches the queue."""

    async def scenario() -> None:
        async with listening(RecordingQueue(), settings(network=False)) as house:
            client = await house.connect()
            await client.hello()
            for path in ("<a@relay.test>", "<>", "<postmaster@relay.test>", "<@relay.test:a@b.example>", "a@b.example"):
                assert await client.ask(f"MAIL FROM:{path}") == "530 5.7.0 authentication required"
            assert (await client.ask("RCPT TO:<a%b.example@relay.test>")).startswith("503")
            assert (await client.ask("DATA")).startswith("503")
            await client.close()
            assert house.queue.messages == []

    run(scenario())
