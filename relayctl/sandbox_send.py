"""``relayctl sandbox send``: mail into the relay of ``relayctl up``, as its demo account, so that there is something to see."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Iterator
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from pathlib import Path
from typing import Annotated, Any

import typer

from relayctl.sandbox_link import HERE, DirectoryOption, account, refuse

PER_CONNECTION = 1000
SECONDS = 60.0
TAKEN = 250


def send(
    recipients: Annotated[list[str], typer.Argument(metavar="RECIPIENT…", help="For instance persona@gmail.test.")],
    count: Annotated[
        int, typer.Option(min=1, max=100_000, help="Messages each; from 2 on the address is numbered.")
    ] = 1,
    sender: Annotated[str, typer.Option("--from", metavar="ADDRESS", help="Default: the one of endpoints.json.")] = "",
    subject: Annotated[str, typer.Option()] = "A message",
    campaign: Annotated[str, typer.Option()] = "",
    urgent: Annotated[bool, typer.Option("--urgent", help="Class transactional, which goes before bulk.")] = False,
    directory: DirectoryOption = HERE,
) -> None:
    """Submit messages, one a recipient, and say what the relay answered; exit 1 at the first that is refused."""
    where = account(directory)
    if sender:
        (valid,) = addresses([sender], 1)
        where["account"]["sender"] = valid
    made = (message(where, each, subject, campaign, urgent) for each in addresses(recipients, count))
    try:
        taken, last, ended = submit(where, directory, made)
    except smtplib.SMTPResponseException as error:  # at the greeting, or the login's
        refuse(f"the relay did not take it: {spelled(error.smtp_code, error.smtp_error)}")
    except (smtplib.SMTPException, OSError) as error:
        refuse(f"the relay did not take it: {error}")
    if not ended:
        refuse(f"the relay did not take it: {last} ({taken} taken before)")
    typer.echo(f"{taken} taken, the last one: {last}")


def addresses(recipients: list[str], count: int) -> Iterator[str]:
    """``a@x.test`` twice → a1@x.test, a2@x.test; usage error for what is no address."""
    for recipient in recipients:
        local, at, domain = recipient.rpartition("@")
        if not (local and at and domain):
            raise typer.BadParameter(f"{recipient!r} is no address")
        for number in range(1, count + 1):
            yield recipient if count == 1 else f"{local}{number}@{domain}"


def message(where: dict[str, Any], recipient: str, subject: str, campaign: str, urgent: bool) -> EmailMessage:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = where["account"]["sender"], recipient, subject
    made["Date"], made["Message-ID"] = formatdate(), make_msgid(domain="gob.test")
    if campaign:
        made["X-Tambo-Campaign"] = campaign
    if urgent:
        made["X-Tambo-Class"] = "transactional"
    made.set_content("Sent by relayctl sandbox send.\n")
    return made


def submit(where: dict[str, Any], directory: Path, messages: Iterator[EmailMessage]) -> tuple[int, str, bool]:
    """(how many were taken, the last reply, whether all were); ends at the first that is refused.

    SMTPException or OSError: no session, or its end."""
    taken, said = 0, ""
    (door,) = where["submission"]
    trusting = ssl.create_default_context(cafile=str(directory / "certificate.pem"))
    client: smtplib.SMTP | None = None
    try:
        for made in messages:
            if client is None or taken % PER_CONNECTION == 0:
                if client is not None:
                    client.quit()
                client = smtplib.SMTP(door["address"], door["port"], timeout=SECONDS)
                client.starttls(context=trusting)
                client.login(where["account"]["user"], where["account"]["password"])
            code, reply = transaction(client, where["account"]["sender"], made)
            said = spelled(code, reply)
            if code != TAKEN:
                return taken, said, False
            taken += 1
    finally:
        if client is not None:
            client.close()
    return taken, said, True


def transaction(client: smtplib.SMTP, sender: str, made: EmailMessage) -> tuple[int, bytes]:
    """The reply that decided: that of the dot, or the first refusal before it."""
    code, reply = client.mail(sender)
    if code == TAKEN:
        code, reply = client.rcpt(made["To"])
    if code != TAKEN:
        return code, reply
    try:
        return client.data(made.as_bytes())
    except smtplib.SMTPDataError as error:
        return error.smtp_code, error.smtp_error if isinstance(error.smtp_error, bytes) else error.smtp_error.encode()


def spelled(code: int, reply: bytes | str) -> str:
    return f"{code} {reply.decode('utf-8', 'replace') if isinstance(reply, bytes) else reply}"
