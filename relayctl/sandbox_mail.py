"""``relayctl sandbox mail list | show | count``."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from relayctl import sandbox_sheets
from relayctl.plain import show as print_mail
from relayctl.queue import JsonOption, print_json
from relayctl.sandbox_link import HERE, DirectoryOption, ask
from relayctl.spans import span

app = typer.Typer(no_args_is_help=True)

DomainOption = Annotated[str, typer.Option(help="Of the recipient.")]
RecipientOption = Annotated[str, typer.Option(help="Part of the recipient's address.")]
SubjectOption = Annotated[str, typer.Option(help="Part of the subject.")]
SinceOption = Annotated[str, typer.Option(metavar="DURATION", help="Not older than 90s, 5m, 1h30m.")]


@app.command("list")
def list_(
    domain: DomainOption = "",
    recipient: RecipientOption = "",
    subject: SubjectOption = "",
    since: SinceOption = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, the newest first.")] = 50,
    json: JsonOption = False,
    directory: DirectoryOption = HERE,
) -> None:
    """Mails that arrived, the newest first, with the receiver's verdicts."""
    wanted = {"domain": domain.lower(), "recipient": recipient, "subject": subject, "since": _since(since)}
    mails = ask(directory, cmd="mail", op="list", limit=limit, **wanted)["mails"]
    if json:
        print_json(mails)
    else:
        sandbox_sheets.mails(mails)


@app.command()
def count(
    domain: DomainOption = "",
    recipient: RecipientOption = "",
    subject: SubjectOption = "",
    since: SinceOption = "",
    json: JsonOption = False,
    directory: DirectoryOption = HERE,
) -> None:
    """How many arrived: one copy a recipient domain."""
    wanted = {"domain": domain.lower(), "recipient": recipient, "subject": subject, "since": _since(since)}
    found = ask(directory, cmd="mail", op="count", **wanted)
    if json:
        print_json(found)
    else:
        typer.echo(found["count"])


@app.command()
def show(
    mail: Annotated[str, typer.Argument(metavar="MAIL_ID", help="One of `mail list`.")],
    json: JsonOption = False,
    directory: DirectoryOption = HERE,
) -> None:
    """One mail as it lies in the Maildir, verdicts and all; --json: what lists say of it."""
    found = ask(directory, cmd="mail", op="show", mail=mail)
    if json:
        print_json(found["mail"])
        return
    print_mail(found["content"].encode("latin-1"))


def _since(text: str) -> float:
    return time.time() - span(text) if text else 0.0
