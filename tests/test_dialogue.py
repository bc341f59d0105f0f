"""The dialogue without I/O: every script is fed whole, byte by byte and with a tail."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delivery.dialogue import Answer, Closing, ContentWanted, Dialogue, Done, Event, Fault, Send
from delivery.reply import MAX_LINE, MAX_LINES, Phase, ProtocolFault, Reply, ReplyParser, make_reply
from delivery.transaction import RecipientResult, Transaction, TransactionResult

PIPELINING = b"250-mx.test\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"
BARE = b"250 mx.test\r\n"

Feed = Callable[[Dialogue, bytes], list[Event]]


def whole(dialogue: Dialogue, data: bytes) -> list[Event]:
    return dialogue.feed(data)


def bytewise(dialogue: Dialogue, data: bytes) -> list[Event]:
    return [event for i in range(len(data)) for event in dialogue.feed(data[i : i + 1])]


feeds = pytest.mark.parametrize("feed", [whole, bytewise])


def ready(feed: Feed = whole, ehlo: bytes = PIPELINING) -> Dialogue:
    dialogue = Dialogue("out.test")
    assert [type(e) for e in feed(dialogue, b"220 mx.test\r\n")] == [Answer]
    assert dialogue.ehlo() == b"EHLO out.test\r\n"
    assert [type(e) for e in feed(dialogue, ehlo)] == [Answer]
    return dialogue


def mail(*recipients: str, content: bytes = b"Subject: x\r\n\r\nhello\r\n", **more: object) -> Transaction:
    return Transaction("a@out.test", recipients or ("b@in.test",), content, **more)  # type: ignore[arg-type]


def result_of(events: list[Event]) -> TransactionResult:
    done = events[-1]
    assert isinstance(done, Done), events
    return done.result


def seen(result: TransactionResult) -> list[tuple[int, str]]:
    return [(r.reply.code if r.reply else 0, r.phase.value) for r in result.recipients]


# -- replies -----------------------------------------------------------------------------------------------------------


def replies(data: bytes, step: int = 0) -> list[Reply]:
    parser, found = ReplyParser(), []
    for start in range(0, len(data), step or len(data)):
        parser.push(data[start : start + (step or len(data))])
        while (reply := parser.next()) is not None:
            found.append(reply)
    return found


@pytest.mark.parametrize(
    ("data", "code", "status", "text"),
    [
        (b"250 OK\r\n", 250, "", "OK"),
        (b"250\r\n", 250, "", ""),
        (b"250 \n", 250, "", ""),
        (b"550 5.1.1 No such user\r\n", 550, "5.1.1", "No such user"),
        (b"550-5.1.1 No such\r\n550 5.1.1 user\r\n", 550, "5.1.1", "No such user"),
        (b"550-5.7.26 first\r\n550-second\r\n550 5.7.26\r\n", 550, "5.7.26", "first second"),
        (b"550 #5.1.0 Address rejected.\r\n", 550, "5.1.0", "Address rejected."),
        (b"550 5.1.1: unknown\r\n", 550, "5.1.1", "unknown"),
        (b"550 5.1.1.2 is no status\r\n", 550, "", "5.1.1.2 is no status"),
        (b"452 4.2.2\r\n", 452, "4.2.2", ""),
        (b"250-one\r\n451 two\r\n", 451, "", "one two"),
        (b"554 caf\xe9 \x1b[31m\x00\r\n", 554, "", "café  [31m"),
        ("554 café\r\n".encode(), 554, "", "café"),
    ],
)
def test_a_reply_is_read_whole_and_byte_by_byte(data: bytes, code: int, status: str, text: str) -> None:
    for step in (0, 1):
        for tail in (b"", b"220 next\r\n"):
            reply, *rest = replies(data + tail, step)
            assert (reply.code, reply.status, reply.text) == (code, status, text)
            assert len(rest) == bool(tail)


@pytest.mark.parametrize(
    "data",
    [b"hello\r\n", b"25\r\n", b"\r\n", b"150 x\r\n", b"650 x\r\n", b"250x\r\n", b"2\xb250 x\r\n", b"SSH-2.0-x\r\n"],
)
def test_what_is_no_reply_is_a_fault(data: bytes) -> None:
    for step in (0, 1):
        with pytest.raises(ProtocolFault):
            replies(data, step)


def test_what_a_peer_can_make_us_hold_is_bounded() -> None:
    with pytest.raises(ProtocolFault, match="longer"):
        replies(b"250 " + b"x" * MAX_LINE)
    with pytest.raises(ProtocolFault, match="lines"):
        replies(b"250-x\r\n" * MAX_LINES)
    assert len(replies(b"250-x\r\n" * (MAX_LINES - 1) + b"250 x\r\n")[0].lines) == MAX_LINES


def test_good_replies_before_a_bad_one_are_given_out() -> None:
    parser = ReplyParser()
    parser.push(b"250 fine\r\ngarbage\r\n")
    assert parser.next() == make_reply(250, ("fine",))
    with pytest.raises(ProtocolFault):
        parser.next()


@settings(deadline=None)
@given(st.binary(max_size=400), st.integers(1, 7))
def test_any_bytes_mean_the_same_in_any_pieces(data: bytes, step: int) -> None:
    def outcome(size: int) -> tuple[list[Reply], bool]:
        parser, found = ReplyParser(), []
        try:
            for start in range(0, len(data), size):
                parser.push(data[start : start + size])
                while (reply := parser.next()) is not None:
                    found.append(reply)
        except ProtocolFault:
            return found, True
        return found, False

    assert outcome(step) == outcome(max(1, len(data)))


LINES = st.lists(st.text(st.characters(exclude_categories=("C", "Z")), max_size=30), min_size=1, max_size=9)


@settings(deadline=None)
@given(st.integers(200, 599), LINES)
def test_what_was_written_is_what_is_read(code: int, lines: list[str]) -> None:
    marks = ["-"] * (len(lines) - 1) + [" "]
    data = "".join(f"{code}{mark}{line}\r\n" for mark, line in zip(marks, lines, strict=True)).encode()
    (reply,) = replies(data, 3)
    assert reply.code == code
    assert reply.lines == tuple(lines)


def test_a_reply_reads_as_it_was_said() -> None:
    assert str(make_reply(550, ("5.1.1 No such user",))) == "550 5.1.1 No such user"
    assert str(make_reply(250, ("",))) == "250"


# -- the dialogue ------------------------------------------------------------------------------------------------------


@feeds
def test_pipelined_transaction(feed: Feed) -> None:
    dialogue = ready(feed)
    (send,) = dialogue.begin(mail("b@in.test", "c@in.test"))
    assert send == Send(b"MAIL FROM:<a@out.test> SIZE=21\r\nRCPT TO:<b@in.test>\r\nRCPT TO:<c@in.test>\r\nDATA\r\n")
    assert dialogue.phase == "mail"
    events = feed(dialogue, b"250 ok\r\n250 ok\r\n550 5.1.1 no\r\n354 go\r\n")
    assert events == [ContentWanted()]
    assert dialogue.phase == "content"
    assert dialogue.content() + dialogue.dot() == b"Subject: x\r\n\r\nhello\r\n.\r\n"
    assert dialogue.phase == "end-of-data"
    result = result_of(feed(dialogue, b"250 2.0.0 queued\r\n"))
    assert seen(result) == [(250, "end-of-data"), (550, "rcpt")]
    assert [r.delivered for r in result.recipients] == [True, False]
    assert not dialogue.closing


@feeds
def test_step_by_step_without_pipelining(feed: Feed) -> None:
    dialogue = ready(feed, BARE)
    assert dialogue.begin(mail("b@in.test", "c@in.test")) == [Send(b"MAIL FROM:<a@out.test>\r\n")]
    assert feed(dialogue, b"250 ok\r\n") == [Send(b"RCPT TO:<b@in.test>\r\n")]
    assert feed(dialogue, b"450 later\r\n") == [Send(b"RCPT TO:<c@in.test>\r\n")]
    assert feed(dialogue, b"251 will forward\r\n") == [Send(b"DATA\r\n")]
    assert feed(dialogue, b"354 go\r\n") == [ContentWanted()]
    dialogue.dot()
    assert seen(result_of(feed(dialogue, b"250 ok\r\n"))) == [(450, "rcpt"), (250, "end-of-data")]


def test_step_by_step_ends_early() -> None:
    dialogue = ready(ehlo=BARE)
    dialogue.begin(mail())
    assert seen(result_of(dialogue.feed(b"451 not now\r\n"))) == [(451, "mail")]
    assert dialogue.begin(mail()) == [Send(b"MAIL FROM:<a@out.test>\r\n")]  # MAIL was refused: nothing to reset
    dialogue.feed(b"250 ok\r\n")
    assert seen(result_of(dialogue.feed(b"550 no\r\n"))) == [(550, "rcpt")]
    assert dialogue.begin(mail()) == [Send(b"RSET\r\n")]
    assert dialogue.feed(b"250 ok\r\n") == [Send(b"MAIL FROM:<a@out.test>\r\n")]


@feeds
def test_refused_mail_speaks_for_all(feed: Feed) -> None:
    dialogue = ready(feed)
    dialogue.begin(mail("b@in.test", "c@in.test"))
    result = result_of(feed(dialogue, b"550 5.7.1 not you\r\n503 x\r\n503 x\r\n503 x\r\n"))
    assert seen(result) == [(550, "mail")] * 2


@feeds
def test_refused_data_and_the_rset_that_follows(feed: Feed) -> None:
    dialogue = ready(feed)
    dialogue.begin(mail("b@in.test", "c@in.test"))
    result = result_of(feed(dialogue, b"250 ok\r\n250 ok\r\n550 no\r\n451 4.3.0 busy\r\n"))
    assert seen(result) == [(451, "data"), (550, "rcpt")]
    (send,) = dialogue.begin(mail())
    assert isinstance(send, Send)
    assert send.data.startswith(b"RSET\r\nMAIL ")
    assert feed(dialogue, b"250 reset\r\n250 ok\r\n250 ok\r\n354 go\r\n") == [ContentWanted()]
    dialogue.dot()
    feed(dialogue, b"250 ok\r\n")
    (send,) = dialogue.begin(mail())
    assert isinstance(send, Send)
    assert send.data.startswith(b"MAIL ")  # after a good one no RSET: some peers count it as junk


@feeds
@pytest.mark.parametrize("last", [b"554 5.5.1 no valid recipients\r\n", b"250 fine\r\n"])
def test_354_without_valid_recipient_gets_a_lone_dot(feed: Feed, last: bytes) -> None:
    dialogue = ready(feed)
    dialogue.begin(mail())
    assert feed(dialogue, b"250 ok\r\n550 5.1.1 no\r\n354 go\r\n") == [Send(b".\r\n")]
    result = result_of(feed(dialogue, last))
    assert seen(result) == [(550, "rcpt")]
    assert not result.recipients[0].unknown


def test_354_after_refused_mail_gets_a_lone_dot() -> None:
    dialogue = ready()
    dialogue.begin(mail())
    assert dialogue.feed(b"450 later\r\n250 ok\r\n354 go\r\n") == [Send(b".\r\n")]
    assert seen(dialogue.lost("gone")) == [(450, "mail")]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (b"421 bye\r\n", [(421, "mail")] * 2),
        (b"250 ok\r\n421 bye\r\n", [(421, "rcpt")] * 2),
        (b"250 ok\r\n550 no\r\n421 bye\r\n", [(550, "rcpt"), (421, "rcpt")]),
        (b"250 ok\r\n550 no\r\n250 ok\r\n421 bye\r\n", [(550, "rcpt"), (421, "data")]),
        (b"250 ok\r\n550 no\r\n250 ok\r\n354 go\r\n421 bye\r\n", [(550, "rcpt"), (421, "content")]),
    ],
)
@feeds
def test_421_at_each_phase(feed: Feed, script: bytes, expected: list[tuple[int, str]]) -> None:
    dialogue = ready(feed)
    dialogue.begin(mail("b@in.test", "c@in.test"))
    assert seen(result_of(feed(dialogue, script))) == expected
    assert dialogue.closing


def test_421_to_the_final_dot_is_an_answer() -> None:
    dialogue = ready()
    dialogue.begin(mail())
    dialogue.feed(b"250 ok\r\n250 ok\r\n354 go\r\n")
    dialogue.dot()
    (recipient,) = result_of(dialogue.feed(b"421 4.3.2 bye\r\n")).recipients
    assert (recipient.reply is not None, recipient.phase, recipient.unknown) == (True, Phase.END_OF_DATA, False)
    assert dialogue.closing


def test_421_while_idle() -> None:
    dialogue = ready()
    (event,) = dialogue.feed(b"421 idle too long\r\n")
    assert isinstance(event, Closing)
    assert dialogue.closing


@pytest.mark.parametrize(
    "script",
    [
        b"354 go\r\n",
        b"250 ok\r\n354 go\r\n",
        b"250 ok\r\n250 ok\r\n250 ok\r\n",
        b"250 ok\r\n250 ok\r\n354 go\r\n250 queued already\r\n",
        b"hello\r\n",
    ],
)
@feeds
def test_out_of_step_is_a_fault(feed: Feed, script: bytes) -> None:
    dialogue = ready(feed)
    dialogue.begin(mail())
    assert isinstance(feed(dialogue, script)[-1], Fault)
    result = dialogue.lost("fault")
    assert not result.recipients[0].unknown
    assert dialogue.closing


def test_a_reply_too_many_after_the_transaction_is_a_fault() -> None:
    dialogue = ready()
    dialogue.begin(mail())
    dialogue.feed(b"250 ok\r\n250 ok\r\n354 go\r\n")
    dialogue.dot()
    assert [type(e) for e in dialogue.feed(b"250 ok\r\n250 ok\r\n")] == [Done, Fault]


@pytest.mark.parametrize(
    ("script", "phases"),
    [
        (b"", ["mail", "mail"]),
        (b"250 ok\r\n", ["rcpt", "rcpt"]),
        (b"250 ok\r\n250 ok\r\n", ["rcpt", "rcpt"]),
        (b"250 ok\r\n250 ok\r\n250 ok\r\n", ["data", "data"]),
        (b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n", ["content", "content"]),
    ],
)
def test_a_loss_before_the_dot_is_never_unknown(script: bytes, phases: list[str]) -> None:
    dialogue = ready()
    dialogue.begin(mail("b@in.test", "c@in.test"))
    dialogue.feed(script)
    result = dialogue.lost("reset")
    assert [r.phase.value for r in result.recipients] == phases
    assert [(r.reply, r.lost, r.unknown) for r in result.recipients] == [(None, "reset", False)] * 2


@pytest.mark.parametrize("reply", [b"", b"25", b"354 again\r\n", b"garbage\r\n"])
def test_a_loss_after_the_dot_is_unknown_for_the_accepted_only(reply: bytes) -> None:
    dialogue = ready()
    dialogue.begin(mail("b@in.test", "c@in.test"))
    dialogue.feed(b"250 ok\r\n250 ok\r\n550 no\r\n354 go\r\n")
    dialogue.dot()
    dialogue.feed(reply)
    result = dialogue.lost("reset")
    assert result.recipients[0] == RecipientResult(None, Phase.END_OF_DATA, "reset", unknown=True)
    assert (result.recipients[1].unknown, result.recipients[1].phase) == (False, Phase.RCPT)


@pytest.mark.parametrize(
    ("content", "wire"),
    [
        (b"a\r\n", b"a\r\n"),
        (b".\r\n", b"..\r\n"),
        (b"a\r\n.\r\n..b\r\n", b"a\r\n..\r\n...b\r\n"),
        (b"a\r\n\r\n.\r\n.\r\n", b"a\r\n\r\n..\r\n..\r\n"),
        (b"no end", b"no end\r\n"),
        (b"", b""),
    ],
)
def test_dots_are_doubled_and_the_last_line_ended(content: bytes, wire: bytes) -> None:
    dialogue = ready()
    dialogue.begin(mail(content=content))
    dialogue.feed(b"250 ok\r\n250 ok\r\n354 go\r\n")
    assert dialogue.content() == wire


@pytest.mark.parametrize(
    ("ehlo", "transaction", "status"),
    [
        (BARE, mail(body="8BITMIME"), "5.6.3"),
        (BARE, mail("ü@in.test", smtputf8=True), "5.6.7"),
        (PIPELINING, mail(content=b"x" * 1001), "5.3.4"),
        (PIPELINING, Transaction("a@out.test\r\nRCPT TO:<x@y>", ("b@in.test",), b""), "5.1.7"),
        (PIPELINING, Transaction("ü@out.test", ("b@in.test",), b""), "5.6.7"),
    ],
)
def test_what_does_not_fit_is_refused_by_ourselves(ehlo: bytes, transaction: Transaction, status: str) -> None:
    dialogue = ready(ehlo=ehlo)
    (done,) = dialogue.begin(transaction)
    assert isinstance(done, Done)
    (recipient,) = done.result.recipients
    assert recipient.reply is not None
    assert (recipient.reply.status, recipient.local) == (status, True)
    assert not dialogue.in_transaction


def test_parameters_as_offered() -> None:
    dialogue = ready()
    (send,) = dialogue.begin(mail("ü@in.test", body="8BITMIME", smtputf8=True))
    assert isinstance(send, Send)
    assert send.data.startswith(b"MAIL FROM:<a@out.test> SIZE=21 BODY=8BITMIME SMTPUTF8\r\nRCPT TO:<\xc3\xbc@in.test>")


ASKED = mail(
    "b@in.test",
    "c@in.test",
    ret="HDRS",
    envid="QQ314159+2BaZ",
    notify=("SUCCESS,FAILURE", ""),
    orcpt=("rfc822;Jo+2Bx@Old.Test", "rfc822;c@in.test"),
)
DSN_COMMANDS = [
    b"MAIL FROM:<a@out.test> RET=HDRS ENVID=QQ314159+2BaZ\r\n",
    b"RCPT TO:<b@in.test> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;Jo+2Bx@Old.Test\r\n",
    b"RCPT TO:<c@in.test> ORCPT=rfc822;c@in.test\r\n",
    b"DATA\r\n",
]


@feeds
@pytest.mark.parametrize(
    ("ehlo", "written"),
    [
        (b"250-mx.test\r\n250-PIPELINING\r\n250 DSN\r\n", DSN_COMMANDS),
        (b"250-mx.test\r\n250 dsn\r\n", DSN_COMMANDS),
        (
            b"250-mx.test\r\n250 PIPELINING\r\n",
            [b"MAIL FROM:<a@out.test>\r\n", b"RCPT TO:<b@in.test>\r\n", b"RCPT TO:<c@in.test>\r\n", b"DATA\r\n"],
        ),
    ],
)
def test_dsn_parameters_go_as_they_came_to_who_offers_dsn(feed: Feed, ehlo: bytes, written: list[bytes]) -> None:
    """RFC 3461 §5.2.1 and §5.2.2 (a)."""
    dialogue = ready(feed, ehlo)
    events = dialogue.begin(ASKED)
    if not dialogue.pipelining:
        for _ in range(3):
            events += feed(dialogue, b"250 ok\r\n")
        assert feed(dialogue, b"354 go\r\n") == [ContentWanted()]
    else:
        assert feed(dialogue, b"250 ok\r\n" * 3 + b"354 go\r\n") == [ContentWanted()]
    assert b"".join(event.data for event in events if isinstance(event, Send)) == b"".join(written)
    dialogue.dot()
    result = result_of(feed(dialogue, b"250 ok\r\n"))
    assert result.dsn == (written is DSN_COMMANDS)


@pytest.mark.parametrize("value", ["", "a b", "x\r\nRSET", "é", "\x7f"])
def test_a_dsn_parameter_that_is_no_word_is_left_out(value: str) -> None:
    dialogue = ready(ehlo=b"250-mx.test\r\n250-PIPELINING\r\n250 DSN\r\n")
    (send,) = dialogue.begin(mail(ret=value, envid=value, notify=(value,), orcpt=(value,)))
    assert isinstance(send, Send)
    assert send.data == b"MAIL FROM:<a@out.test>\r\nRCPT TO:<b@in.test>\r\nDATA\r\n"


@pytest.mark.parametrize("size", ["0", "", "many", "9" * 30])
def test_a_size_that_is_no_limit(size: str) -> None:
    dialogue = ready(ehlo=f"250-mx\r\n250 SIZE {size}\r\n".encode())
    assert [type(e) for e in dialogue.begin(mail(content=b"x" * 5000))] == [Send]


@pytest.mark.parametrize("ehlo", [PIPELINING, BARE])
def test_a_recipient_with_a_line_end_never_reaches_the_wire(ehlo: bytes) -> None:
    dialogue = ready(ehlo=ehlo)
    written = b""
    todo = dialogue.begin(mail("b@in.test>\r\nRSET\r\n<", "c@in.test", "ü@in.test"))
    for answer in (b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
        written += b"".join(e.data for e in todo if isinstance(e, Send))
        todo = dialogue.feed(answer)
    dialogue.dot()
    result = result_of(dialogue.feed(b"250 ok\r\n"))
    assert b"RSET" not in written
    assert seen(result) == [(553, "rcpt"), (250, "end-of-data"), (553, "rcpt")]
    assert [r.local for r in result.recipients] == [True, False, True]


def test_no_sendable_recipient_at_all_writes_nothing() -> None:
    events = ready().begin(mail("\n"))
    assert seen(result_of(events)) == [(553, "rcpt")]
    assert len(events) == 1


def test_what_was_learnt_in_clear_is_forgotten() -> None:
    dialogue = ready()
    dialogue.starttls()
    assert [type(e) for e in dialogue.feed(b"220 go\r\n")] == [Answer]
    dialogue.tls_started()
    assert dialogue.extensions == {}


@feeds
def test_bytes_behind_the_reply_to_starttls_are_a_fault(feed: Feed) -> None:
    dialogue = ready(feed)
    dialogue.starttls()
    assert isinstance(feed(dialogue, b"220 go\r\n250 injected\r\n")[-1], Fault)


def test_content_is_given_only_when_wanted() -> None:
    dialogue = ready()
    for verb in (dialogue.content, dialogue.dot, lambda: dialogue.lost("x")):
        with pytest.raises(RuntimeError):
            verb()


SCRIPTS = st.lists(
    st.sampled_from(
        [b"250 ok\r\n", b"550 no\r\n", b"354 go\r\n", b"421 bye\r\n", b"450 x\r\n", b"250-a\r\n", b"x", b"\r\n"]
    ),
    max_size=12,
)


@settings(deadline=None)
@given(SCRIPTS, st.booleans(), st.integers(1, 4))
def test_whatever_a_peer_says_each_recipient_gets_one_result(script: list[bytes], pipelining: bool, many: int) -> None:
    dialogue = ready(ehlo=PIPELINING if pipelining else BARE)
    recipients = tuple(f"r{i}@in.test" for i in range(many))
    dialogue.begin(mail(*recipients))
    result, dotted, faulted = None, False, False
    for piece in script:
        for event in dialogue.feed(piece):
            if isinstance(event, Done):
                assert result is None
                result = event.result
            elif isinstance(event, ContentWanted) and dialogue.in_transaction and dialogue.phase is Phase.CONTENT:
                dialogue.dot()
                dotted = True
            faulted = faulted or isinstance(event, Fault)
        if faulted or result is not None:
            break
    if result is None:
        result = dialogue.lost("end of script")
    assert len(result.recipients) == many
    for recipient in result.recipients:
        assert (recipient.reply is None) == bool(recipient.lost)
        assert recipient.unknown == (recipient.phase is Phase.END_OF_DATA and recipient.reply is None)
        assert dotted or not recipient.unknown
