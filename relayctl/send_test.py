"""``relayctl send-test``: one message through the running relay, and its trail until it is final."""

from __future__ import annotations

import asyncio
import ssl
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from email.utils import formatdate, make_msgid
from getpass import getpass
from typing import Annotated, Any, Literal, cast

import aiosmtplib
import typer

from config.accounts import AccountSettings
from config.schema import nearest
from config.settings import ListenerSettings, Settings
from mailqueue.queue import Queue
from relayctl.asking import interruptible
from relayctl.audit import Why, audited, record
from relayctl.config import PathOption, load_or_exit
from relayctl.queue import JsonOption, on_queue, print_json
from relayctl.spans import span
from relayctl.trail import Step, aftermath, id_in
from relayd.direct import prepared
from relayd.policy import is_mailbox
from relayd.prepare import Preparation
from relayd.replies import Reply
from relayd.server import read_keys, terms

CONNECT_SECONDS = 30.0


class NotSent(Exception):
    """The relay did not take it; the text is its own, or says what hindered us."""


def send_test(
    sender: Annotated[str, typer.Option("--from", metavar="ADDRESS", help="Reverse-path and From.")],
    recipient: Annotated[str, typer.Option("--to", metavar="ADDRESS", help="One recipient: mail really goes there.")],
    account: Annotated[str, typer.Option(help="Whose mail it is; its password is asked for.")] = "",
    via: Annotated[
        str, typer.Option(help="smtp: by a listener; queue: past it, free of quota, needs --account.")
    ] = "smtp",
    listener: Annotated[str, typer.Option(help="Its name; else the first one that will do.")] = "",
    for_: Annotated[str, typer.Option("--for", metavar="DURATION", help="How long its end is waited for.")] = "1m",
    reason: Why = "",
    config: PathOption = None,
    json: JsonOption = False,
) -> None:
    """Send a real message and follow it: exit 0 when it was delivered, else 1."""
    loaded, patience, way = load_or_exit(config), span(for_), _way(via, account)
    sender, recipient = _address(sender), _address(recipient)

    async def work(queue: Queue) -> None:
        known = {each.account.name: each.account for each in (await queue.accounts().read()).records}
        known |= {each.name: each for each in loaded.settings.accounts}
        owner = _owner(account, known)
        submit = (
            _by_smtp(loaded.settings, listener, owner) if way == "smtp" else _by_queue(queue, loaded.settings, owner)
        )
        await record(
            queue, audited("send-test", recipient, reason, None, {"from": sender, "account": account, "via": way})
        )
        wall, steps = int(time.time() * 1000), list[Step]()
        try:
            reply = await submit(sender, recipient, message(sender, recipient))
            steps.append(Step(int(time.time() * 1000) - wall, "accepted", reply))
            _say(steps[-1], json)
            async for step in aftermath(queue.shards, id_in(reply), wall, patience):
                steps.append(step)
                _say(step, json)
        except NotSent as refused:
            steps.append(Step(int(time.time() * 1000) - wall, "refused", str(refused), failed=True))
            _say(steps[-1], json)
        if json:
            print_json({"delivered": steps[-1].delivered, "steps": [asdict(step) for step in steps]})
        if not steps[-1].delivered:
            raise typer.Exit(1)

    on_queue(loaded, work)


def message(sender: str, recipient: str) -> bytes:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = sender, recipient, "Test of the relay"
    made["Date"], made["Message-ID"] = formatdate(), make_msgid(domain=sender.rpartition("@")[2] or None)
    made.set_content("An operator sent this to see that mail from here arrives. There is nothing to do.\n")
    return made.as_bytes(policy=SMTP if (sender + recipient).isascii() else SMTPUTF8)


def _address(text: str) -> str:
    if not is_mailbox(text, utf8=True):
        raise typer.BadParameter(f"{text!r} is no address; write it like me@agency.pe")
    return text


Submit = Callable[[str, str, bytes], Any]  # a coroutine that gives the text of 250, or raises NotSent


def _way(via: str, account: str) -> Literal["smtp", "queue"]:
    if via == "queue":
        if not account:
            raise typer.BadParameter("--via queue needs --account: whose mail is it?")
        return "queue"
    if via != "smtp":
        raise typer.BadParameter(f"{via!r} is no way; write smtp or queue")
    return "smtp"


def _owner(name: str, known: Mapping[str, AccountSettings]) -> AccountSettings | None:
    if name and name not in known:
        typer.echo(f"no account {name}{nearest(name, list(known))}", err=True)
        raise typer.Exit(1)
    return known.get(name)


# ── through a listener ─────────────────────────────────────────────────────────────────────────────────────────────


def _by_smtp(settings: Settings, name: str, owner: AccountSettings | None) -> Submit:
    """Without an account, or with one that has no password: as who the network says we are."""
    login = owner.login if owner is not None else None
    door = _door(settings, name, with_tls=login is not None)
    password = _password(owner.name) if owner is not None and login is not None else None

    async def submit(sender: str, recipient: str, content: bytes) -> str:
        context = _context(door) if door.tls != "none" else None
        client = aiosmtplib.SMTP(
            hostname={"0.0.0.0": "127.0.0.1", "::": "::1"}.get(door.address, door.address),  # noqa: S104 (no bind)
            port=door.port,
            use_tls=door.tls == "implicit",
            start_tls=door.tls == "starttls",
            tls_context=context,
            timeout=CONNECT_SECONDS,
        )
        try:
            await client.connect()
            if login is not None and password is not None:
                await client.login(login, password)
            options = [] if (sender + recipient).isascii() else ["SMTPUTF8"]
            _, reply = await client.sendmail(sender, [recipient], content, mail_options=options)
            with suppress(aiosmtplib.SMTPException, OSError):
                await client.quit()
        except aiosmtplib.SMTPRecipientsRefused as refused:
            raise NotSent("; ".join(f"{one.code} {one.message}" for one in refused.recipients)) from None
        except aiosmtplib.SMTPResponseException as refused:
            raise NotSent(f"{refused.code} {refused.message}") from None
        except (aiosmtplib.SMTPException, OSError) as error:
            raise NotSent(f"{door.name} ({door.address} port {door.port}): {error}") from None
        finally:
            transport = cast(asyncio.Transport | None, client.transport)
            if transport is not None:
                transport.abort()  # a polite end of TLS would outlive the loop
            client.close()
        return f"250 {reply}"

    return submit


def _door(settings: Settings, name: str, *, with_tls: bool) -> ListenerSettings:
    doors = [one for one in settings.relayd.listeners if one.kind == "submission" and one.port]
    fit = [one for one in doors if (not name or one.name == name) and (not with_tls or one.tls != "none")]
    if not fit:
        asked = f"no submission listener {name}" if name else "no submission listener"
        typer.echo(f"{asked}{' with TLS, which AUTH needs' if with_tls else ''}; --via queue goes past them", err=True)
        raise typer.Exit(1)
    return min(fit, key=lambda one: one.proxy_from != ())  # a balancer's door wants a PROXY header


def _context(door: ListenerSettings) -> ssl.SSLContext:
    """Trusts the listener's own certificate, whatever name it is for: it is on this host."""
    try:
        context = ssl.create_default_context(cafile=door.certificate)
    except OSError as error:
        raise NotSent(f"{door.certificate}: {error.strerror}") from None
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _password(name: str) -> str:
    """Asked for without echo, or a line of standard input."""
    if sys.stdin.isatty():
        with interruptible():
            return getpass(f"Password of {name}: ")
    return sys.stdin.readline().rstrip("\r\n")


# ── past it ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _by_queue(queue: Queue, settings: Settings, owner: AccountSettings | None) -> Submit:
    """Prepared and signed as a submission is, in the account's test mode: nothing is taken from its quota."""
    assert owner is not None
    account = owner.model_copy(update={"test": True})

    async def submit(sender: str, recipient: str, content: bytes) -> str:
        try:
            preparation = Preparation(terms(settings), read_keys(settings), queue.new_id)
        except (OSError, ValueError) as error:
            raise NotSent(str(error)) from None
        ready = prepared(preparation, account, sender, recipient, content, time.time())
        if isinstance(ready, Reply):
            raise NotSent(str(ready))
        verdict = await queue.put(ready.message, ready.idempotency_key, client="relayctl", warnings=ready.warnings)
        if verdict.kind != "queued":
            raise NotSent(f"the queue is at its mark ({verdict.kind})")
        return f"queued as {verdict.id}"

    return submit


def _say(step: Step, json: bool) -> None:
    if not json:
        colour = typer.colors.RED if step.failed else typer.colors.GREEN if step.delivered else None
        typer.echo(f"{step.after:7.0f} ms  {typer.style(f'{step.what:<9}', fg=colour)} {step.text}")
