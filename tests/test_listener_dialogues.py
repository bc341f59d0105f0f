"""What the golden dialogues (test_dialogues.py) cannot show: ends of input, the envelope."""

from __future__ import annotations

from relayd import replies
from tests.listening import listening, run


def test_what_came_before_the_end_of_input_is_answered() -> None:
    async def scenario() -> None:
        async with listening() as house:
            client = await house.connect()
            await client.send(
                b"EHLO x.example\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\nFrom: a@b.example\r\n\r\nhi\r\n.\r\n"
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
            await client.ask("From: a@b.example\r\n\r\nhi\r\n.")
            (message,) = house.queue.messages
            assert message.envelope.reverse_path == ""
            assert message.envelope.recipients == ("Jo.E+x@D.example",)
            await client.close()

    run(scenario())


def test_a_foreign_reply_gets_an_enhanced_code_of_its_class() -> None:
    assert replies.with_status("250 OK") == "250 2.0.0 OK"
    assert replies.with_status("503 5.5.1 no") == "503 5.5.1 no"
    assert replies.with_status("220 relay.test") == "220 relay.test"
    assert replies.with_status("250-SIZE") == "250-SIZE"


def test_digits_of_other_scripts_are_no_size() -> None:
    async def scenario() -> None:
        async with listening() as house:
            client = await house.connect()
            await client.hello()
            for number in ("²", "٣", "１０"):
                await client.send(f"MAIL FROM:<a@b.example> SIZE={number}\r\n".encode())
                assert await client.reply() == str(replies.SIZE_VALUE)

    run(scenario())
