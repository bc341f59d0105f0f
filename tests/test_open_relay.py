"""Nobody relays through here who may not: every kind of listener, with each TLS mode, directly and behind a balancer.

A stranger tries all he can think of; what counts is whether a recipient was ever accepted, content ever asked for, or
mail ever put. :func:`test_the_same_client_with_an_account_is_served` is the control: the same code, told apart by
nothing but who speaks, must find the relay open. Were the evidence read wrongly, it would be red.
"""

from __future__ import annotations

import string
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings
from mailqueue.message import new_id
from signing.return_path import ReturnPaths, add_key
from tests.conftest import Certificate
from tests.listening import (
    PASSWORD,
    Client,
    House,
    RecordingStore,
    b64,
    inbound_settings,
    listening,
    proxied,
    run,
    settings,
    taking_returns,
)

STRANGER = "127.8.0.1"  # in no account's network
BALANCER = "127.9.0.1"
INSIDE = "127.0.0.1"  # in the network of account app
VICTIM = "victim@elsewhere.example"
EVIDENCE = ("250 2.1.5", "354 ", "250 2.0.0 queued", "250 2.0.0 taken", "octets received")

MAILS = [
    "<>",
    "<spam@elsewhere.example>",
    "<user@relay.test>",
    "<app>",
    "<a@[127.0.0.1]>",
    "<@127.0.0.1:a@relay.test>",
    "<a@relay.test> AUTH=<>",
    "<a@relay.test> AUTH=user",
    "<a@relay.test> AUTH=app@relay.test SIZE=9 BODY=8BITMIME SMTPUTF8",
]
RECIPIENTS = [
    f"<{VICTIM}>",
    VICTIM,
    f" <{VICTIM}>",
    "<@a:b@c>",
    f"<@relay.test:{VICTIM}>",
    f"<@relay.test,@elsewhere.example:{VICTIM}>",
    f"<@bounce.test:{VICTIM}>",
    "<victim%elsewhere.example@relay.test>",
    "<victim%elsewhere.example@bounce.test>",
    "<victim%elsewhere.example@[127.0.0.1]>",
    "<victim%elsewhere.example>",
    "<elsewhere.example!victim>",
    "<elsewhere.example!victim@relay.test>",
    "<relay.test!elsewhere.example!victim@bounce.test>",
    f'<"{VICTIM}">',
    f'<"{VICTIM}"@relay.test>',
    f'<"{VICTIM}"@bounce.test>',
    '<"victim"@elsewhere.example>',
    '<"abuse@relay.test"@elsewhere.example>',
    "<victim\\@elsewhere.example@relay.test>",
    f"<{VICTIM}@relay.test>",
    f"<abuse@relay.test,{VICTIM}>",
    f"<abuse@relay.test> <{VICTIM}>",
    "<victim@[192.0.2.1]>",
    "<victim@[127.0.0.1]>",
    "<victim@[IPv6:2001:db8::1]>",
    "<victim@127.0.0.1>",
    "<victim@localhost>",
    "<victim@relay.test>",
    "<victim@bounce.test>",
    "<victim@elsewhere.example.>",
    f"<{VICTIM}> NOTIFY=NEVER",
    f"<{VICTIM}> ORCPT=rfc822;abuse@relay.test",
    "<postmaster>",
    "<>",
]
HELLO = ["EHLO client.example"]
OPENINGS: dict[str, list[str]] = {
    "nothing": [],
    "EHLO": HELLO,
    "HELO": ["HELO client.example"],
    "EHLO as the relay": ["EHLO relay.test"],
    "EHLO as an account's address": ["EHLO [127.0.0.1]"],
    "XCLIENT": [*HELLO, "XCLIENT ADDR=127.0.0.1 NAME=localhost", "XCLIENT LOGIN=user", *HELLO],
    "XFORWARD": [*HELLO, "XFORWARD ADDR=127.0.0.1 SOURCE=LOCAL", *HELLO],
    "PROXY line": ["PROXY TCP4 127.0.0.1 127.0.0.1 1 25", *HELLO],
    "PROXY header": ["\r\n" + proxied(INSIDE).decode("latin-1"), *HELLO],
    "old verbs": [*HELLO, "SEND FROM:<a@b.example>", "SAML FROM:<a@b.example>", "TURN", "ETRN elsewhere.example"],
    "RSET": [*HELLO, "MAIL FROM:<a@b.example>", "RSET"],
    "BDAT": [*HELLO, "BDAT 6 LAST\r\nhello", "MAIL FROM:<>", "BDAT 6 LAST\r\nhello", "BDAT 0 LAST"],
    "DATA first": [*HELLO, "DATA", "Subject: x\r\n\r\nx\r\n.", "MAIL FROM:<>", "DATA", "."],
    "two commands in one": [*HELLO, "MAIL FROM:<>\rRCPT TO:<a@b.example>", f"MAIL FROM:<>\nRCPT TO:<{VICTIM}>"],
    "AUTH before EHLO": ["AUTH PLAIN " + b64(f"\0user\0{PASSWORD}")],
    "AUTH after HELO": ["HELO x", "AUTH PLAIN " + b64(f"\0user\0{PASSWORD}")],
    "wrong password": [*HELLO, "AUTH PLAIN " + b64("\0user\0wrong")],
    "wrong passwords to the end": [*HELLO, *["AUTH PLAIN " + b64("\0user\0wrong")] * 3],
    "no password": [*HELLO, "AUTH PLAIN " + b64("\0user\0")],
    "a user that is none": [*HELLO, "AUTH PLAIN " + b64(f"\0nobody\0{PASSWORD}")],
    "an account without password": [*HELLO, "AUTH PLAIN " + b64("\0app\0"), "AUTH PLAIN " + b64(f"\0app\0{PASSWORD}")],
    "for another user": [*HELLO, "AUTH PLAIN " + b64(f"app\0user\0{PASSWORD}")],
    "AUTH LOGIN": [*HELLO, "AUTH LOGIN", b64("user"), b64("wrong")],
    "AUTH cancelled": [*HELLO, "AUTH LOGIN " + b64("user"), "*"],
    "AUTH garbage": [*HELLO, "AUTH PLAIN ====", "AUTH PLAIN =", "AUTH PLAIN " + b64("user"), "AUTH"],
    "other mechanisms": [*HELLO, "AUTH EXTERNAL =", "AUTH ANONYMOUS " + b64("x"), "AUTH CRAM-MD5"],
}


@dataclass(frozen=True)
class Door:
    kind: str
    tls: str
    balanced: bool

    def __str__(self) -> str:
        return f"{self.kind}-{self.tls}-{'balanced' if self.balanced else 'direct'}"

    @asynccontextmanager
    async def open(self, certificate: Certificate, key: Path) -> AsyncIterator[House]:
        listener: dict[str, Any] = {"tls": self.tls, "proxy_from": ["127.9.0.0/24"] if self.balanced else []}
        if self.tls != "none":
            listener |= {"certificate": str(certificate.certificate), "key": str(certificate.key)}
        if self.kind == "inbound":
            own = _patient(inbound_settings(key, listener=listener, mailboxes=["abuse@relay.test"]))
            async with taking_returns(own, RecordingStore()) as house:
                yield house
        else:
            async with listening(settings_=_patient(settings(listener=listener))) as house:
                yield house

    async def enter(self, house: House, address: str | None, before: bytes = b"") -> Client:
        """As `address` (None: the balancer does not say as whom), up to the banner under whatever TLS there is."""
        header = proxied(address) if self.balanced else b""
        source = BALANCER if self.balanced or address is None else address
        client = await house.connect(source, header=header + before, tls=self.tls == "implicit")
        assert (await client.reply()).startswith("220 ")
        return client

    async def secure(self, client: Client) -> None:
        """Under TLS, with nothing said."""
        if self.tls == "starttls":
            await client.ask("EHLO client.example")
            assert (await client.ask("STARTTLS")).startswith("220 ")
            await client.encrypt()


def _patient(own: Settings) -> Settings:
    """Limits of errors and commands would end an attack before its time."""
    relayd = own.relayd.model_copy(update={"max_errors": 10**6, "max_commands": 10**6})
    return own.model_copy(update={"relayd": relayd})


DOORS = [
    Door(kind, tls, balanced)
    for kind in ("submission", "inbound")
    for tls in ("none", "starttls", "implicit")
    for balanced in (False, True)
]
each_door = pytest.mark.parametrize("door", DOORS, ids=str)


def strangers(door: Door) -> list[str | None]:
    """To an inbound listener everybody is one, and so is whom a balancer does not name."""
    known = [INSIDE] if door.kind == "inbound" else []
    return [STRANGER, *known, "192.0.2.7", "2001:db8::7", None] if door.balanced else [STRANGER, *known]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    add_key(path, "first")
    return path


def attack(mails: Sequence[str], recipients: Sequence[str]) -> list[str]:
    commands = []
    for mail in mails:
        commands.append(f"MAIL FROM:{mail}")
        commands += [f"RCPT TO:{recipient}" for recipient in recipients]
        commands += ["RSET"]
    return [*commands, f"RCPT TO:<{VICTIM}>", "DATA", "."]


async def told(client: Client, commands: Sequence[str], *, pipelined: bool) -> str:
    """All that is said to the commands."""
    if pipelined:
        await client.send("".join(f"{command}\r\n" for command in [*commands, "QUIT"]))
        return await _rest(client)
    said = []
    for command in commands:
        try:
            said.append(await client.ask(command))
        except ConnectionError:
            break
        if said[-1] == "":
            break
    return "\n".join(said)


async def _rest(client: Client) -> str:
    """To the end, which is a reset when we wrote to a session that had gone."""
    text = b""
    try:
        while more := await client.reader.read(65536):
            text += more
    except ConnectionError:
        pass
    return text.decode("ascii", "replace")


def evidence(text: str) -> list[str]:
    return [line for line in text.splitlines() if any(mark in line for mark in EVIDENCE)]


def kept(house: House) -> int:
    """Mails put or taken."""
    handler: Any = house.relayd._handler
    return len(house.queue.messages) + len(getattr(getattr(handler, "_store", None), "mails", ()))


async def relayed(
    door: Door, house: House, address: str | None, opening: Sequence[str], *, pipelined: bool
) -> list[str]:
    """What speaks for an open relay after all was tried."""
    client = await door.enter(house, address)
    if opening != OPENINGS["nothing"] or pipelined:
        await door.secure(client)
    mails = MAILS if pipelined else MAILS[:2]
    text = await told(client, [*opening, *attack(mails, RECIPIENTS)], pipelined=pipelined)
    await client.close()
    return evidence(text)


@each_door
@pytest.mark.parametrize("pipelined", [False, True], ids=["in turn", "pipelined"])
def test_a_stranger_relays_nothing(door: Door, pipelined: bool, certificate: Certificate, key: Path) -> None:
    async def scenario() -> None:
        async with door.open(certificate, key) as house:
            for address in strangers(door):
                for name, opening in OPENINGS.items():
                    found = await relayed(door, house, address, opening, pipelined=pipelined)
                    assert found == [], (name, address)
            assert kept(house) == 0

    run(scenario())


@each_door
@pytest.mark.parametrize("pipelined", [False, True], ids=["in turn", "pipelined"])
def test_the_same_client_with_an_account_is_served(
    door: Door, pipelined: bool, certificate: Certificate, key: Path
) -> None:
    """The control. By network, and by password where there is TLS; an inbound listener by a return path of ours."""

    async def scenario() -> None:
        async with door.open(certificate, key) as house:
            if door.kind == "inbound":
                path = ReturnPaths.load(key).make(new_id(), 0, "bounce.test")
                client = await door.enter(house, STRANGER)
                await door.secure(client)
                commands = [*HELLO, "MAIL FROM:<>", f"RCPT TO:<{path}>", "DATA", "From: a@relay.test\r\n\r\nx\r\n."]
                found = evidence(await told(client, commands, pipelined=pipelined))
                assert [line[:9] for line in found] == ["250 2.1.5", "354 end w", "250 2.0.0"]
                assert kept(house) == 1
                return
            assert len(await relayed(door, house, INSIDE, HELLO, pipelined=pipelined)) > 10
            if door.tls != "none":
                login = [*HELLO, "AUTH PLAIN " + b64(f"\0user\0{PASSWORD}")]
                assert len(await relayed(door, house, STRANGER, login, pipelined=pipelined)) > 10
            client = await door.enter(house, INSIDE)
            await door.secure(client)
            commands = [*HELLO, "MAIL FROM:<>", f"RCPT TO:<{VICTIM}>", "DATA", "From: a@relay.test\r\n\r\nx\r\n."]
            assert len(evidence(await told(client, commands, pipelined=pipelined))) == 3
            assert kept(house) == 1

    run(scenario())


@each_door
def test_a_header_that_nobody_asked_for(door: Door, certificate: Certificate, key: Path) -> None:
    """A second one behind a balancer's, or one from who is no balancer: it names an account's address in vain."""

    async def scenario() -> None:
        if door.tls == "implicit":
            return  # octets before the handshake: the next test
        async with door.open(certificate, key) as house:
            client = await door.enter(house, STRANGER, proxied(INSIDE) + b"\r\n")
            text = await told(client, [*HELLO, *attack(MAILS, RECIPIENTS)], pipelined=True)
            assert evidence(text) == []
            assert kept(house) == 0

    run(scenario())


@pytest.mark.parametrize("balanced", [False, True])
def test_a_header_before_a_handshake_that_nobody_asked_for(balanced: bool, certificate: Certificate, key: Path) -> None:
    async def scenario() -> None:
        door = Door("submission", "implicit", balanced)
        async with door.open(certificate, key) as house:
            header = proxied(STRANGER) if balanced else b""
            client = await house.connect(BALANCER if balanced else STRANGER, header=header + proxied(INSIDE))
            text = await told(client, [*HELLO, *attack(MAILS, RECIPIENTS)], pipelined=True)
            assert "250" not in text
            assert kept(house) == 0

    run(scenario())


@pytest.mark.parametrize("kind", ["submission", "inbound"])
@pytest.mark.parametrize("balanced", [False, True])
def test_nothing_said_before_starttls_counts_after_it(
    kind: str, balanced: bool, certificate: Certificate, key: Path
) -> None:
    async def scenario() -> None:
        door = Door(kind, "starttls", balanced)
        async with door.open(certificate, key) as house:
            client = await door.enter(house, STRANGER)
            in_clear = [*HELLO, "AUTH PLAIN " + b64(f"\0user\0{PASSWORD}"), "XCLIENT ADDR=127.0.0.1"]
            assert evidence(await told(client, in_clear, pipelined=False)) == []
            assert (await client.ask("STARTTLS")).startswith("220 ")
            await client.encrypt()
            assert evidence(await told(client, attack(MAILS, RECIPIENTS), pipelined=True)) == []
            # Commands behind STARTTLS, to be read as if they had come under TLS.
            client = await door.enter(house, STRANGER)
            await client.send("EHLO x\r\nSTARTTLS\r\n" + "\r\n".join(attack(MAILS, RECIPIENTS)) + "\r\n")
            assert evidence(await _rest(client)) == []
            assert kept(house) == 0

    run(scenario())


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_an_account_beside_him_does_not_help(tls: str, certificate: Certificate, key: Path) -> None:
    """Behind the same balancer, at the same time, even after it left its client address to somebody else."""

    async def scenario() -> None:
        door = Door("submission", tls, balanced=True)
        async with door.open(certificate, key) as house:
            account = await door.enter(house, STRANGER)
            await door.secure(account)
            await account.ask("EHLO x")
            assert (await account.ask("AUTH PLAIN " + b64(f"\0user\0{PASSWORD}"))).startswith("235 ")
            assert await relayed(door, house, STRANGER, HELLO, pipelined=True) == []
            await account.ask("QUIT")
            assert await relayed(door, house, STRANGER, HELLO, pipelined=True) == []

    run(scenario())


# -- return paths ---------------------------------------------------------------------------------------------------


def forgeries(path: str) -> list[str]:
    """Each character changed to every other, dropped, doubled; cut and prolonged; dressed up; moved elsewhere."""
    local, _, domain = path.rpartition("@")
    alphabet = string.ascii_lowercase + string.digits + "-=+."
    changed = [local[:at] + one + local[at + 1 :] for at in range(len(local)) for one in alphabet if one != local[at]]
    shifted = [local[:at] + local[at + 1 :] for at in range(len(local))]
    shifted += [local[:at] + local[at] * 2 + local[at + 1 :] for at in range(len(local))]
    cut = [local[:at] for at in range(1, len(local))] + [local + one for one in alphabet]
    swapped = [local[:at] + local[at + 1] + local[at] + local[at + 2 :] for at in range(len(local) - 1)]
    dressed = [f'"{local}"', f"{local}%{domain}", f"x+{local}", f"{local}+x", f"prvs={local}", f"elsewhere!{local}"]
    elsewhere = [
        f"{local}@{other}" for other in ("other.test", "x.bounce.test", "relay.test", "[127.0.0.1]", "bounce.tes")
    ]
    locals_ = [one for one in (*changed, *shifted, *cut, *swapped, *dressed) if one != local]
    return [*(f"{one}@{domain}" for one in locals_), *elsewhere]


@pytest.mark.parametrize("balanced", [False, True])
def test_forged_return_paths(balanced: bool, certificate: Certificate, key: Path) -> None:
    async def scenario() -> None:
        paths = ReturnPaths.load(key)
        first, second = new_id(), new_id()
        good = paths.make(first, 7, "bounce.test")
        other = paths.make(second, 8, "bounce.test")
        foreign = paths.make(first, 7, "other.test").replace("other.test", "bounce.test")
        mixed = [good[:22] + other[22:], other[:22] + good[22:], foreign]
        old = _of_another_key(key, first)
        door = Door("inbound", "none", balanced)
        async with door.open(certificate, key) as house:
            client = await door.enter(house, STRANGER)
            tried = [*forgeries(good), *mixed, old]
            assert len(tried) > 1500
            text = await told(client, [*HELLO, *attack(["<>"], [f"<{one}>" for one in tried])], pipelined=True)
            assert evidence(text) == []
            assert text.count("\r\n550 ") > 1500  # they were looked at
            client = await door.enter(house, STRANGER)
            wanted = [good, good.upper(), good.title(), other]
            commands = [*HELLO, "MAIL FROM:<>", *(f"RCPT TO:<{one}>" for one in wanted)]
            assert len(evidence(await told(client, commands, pipelined=True))) == len(wanted)

    run(scenario())


def _of_another_key(key: Path, message_id: str) -> str:
    """One that was signed with a key that is no longer in the file."""
    gone = key.with_name("gone")
    add_key(gone, "gone")
    return ReturnPaths.load(gone).make(message_id, 7, "bounce.test")
