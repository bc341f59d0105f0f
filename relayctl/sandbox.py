"""``relayctl sandbox``: the internet in a box – steer it, read what arrived, let something come back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from relayctl import sandbox_mail, sandbox_scenarios, sandbox_sheets
from relayctl.queue import JsonOption
from relayctl.sandbox_link import HERE, DirectoryOption, ask, refuse, runs
from relayctl.sandbox_send import send
from relayctl.spans import span
from sandbox import __main__ as process

app = typer.Typer(no_args_is_help=True)
dns = typer.Typer(no_args_is_help=True)
app.add_typer(dns, name="dns", help="What the sandbox's names say, and their failures.")
app.add_typer(sandbox_mail.app, name="mail", help="What arrived.")
app.add_typer(sandbox_scenarios.app, name="scenario", help="Days that can be played.")
app.command()(send)

ForOption = Annotated[
    str, typer.Option("--for", metavar="DURATION", help="90s, 5m; then as before. Default: for good.")
]
Scenario = Annotated[str, typer.Option("--scenario", metavar="NAME|FILE", help="See `relayctl sandbox scenario list`.")]


@app.callback()
def sandbox() -> None:
    """An internet in a box, on loopback: DNS and mail hosts that behave as told, and what arrived there."""


@app.command()
@app.command("start", hidden=True)
def run(
    scenario: Scenario = "",
    directory: DirectoryOption = HERE,
    dns_: Annotated[str, typer.Option("--dns", metavar="ADDRESS:PORT", help="Port 0 = any free one.")] = "127.0.0.1:0",
    port: Annotated[int, typer.Option(help="Of the mail hosts; 0 = any free one.")] = 0,
    returns: Annotated[str, typer.Option(metavar="ADDRESS:PORT", help="Where bounces go: an inbound listener.")] = "",
    keys: Annotated[Path | None, typer.Option(help="Signing directory, whose records are in the DNS.")] = None,
) -> None:
    """The sandbox alone, in the foreground, for a relay that is started otherwise; Ctrl-C ends it."""
    place = directory.absolute() / "sandbox"
    if runs(directory):
        refuse(f"a sandbox already runs in {directory.absolute()}")
    place.mkdir(parents=True, exist_ok=True)
    words = ["--dns", dns_, "--port", str(port), "--directory", str(place), "--store"]
    words += ["--control", str(place / "control"), "--ready", str(place / "endpoints.json")]
    for name, value in (("--scenario", scenario), ("--returns", returns), ("--keys", keys)):
        words += [name, str(value)] if value else []
    raise typer.Exit(process.main(words))


@app.command()
def behave(
    domain: Annotated[str, typer.Argument(metavar="DOMAIN", help="Or one host, which can be down or normal.")],
    behaviour: Annotated[str, typer.Argument(metavar="BEHAVIOUR", help="One of `behaviours`; normal = as planned.")],
    source: Annotated[list[str] | None, typer.Option(help="Only mail from this address; may be repeated.")] = None,
    share: Annotated[float, typer.Option(help="Of its steps, spread evenly: 0.3 = three in ten.")] = 1.0,
    for_: ForOption = "",
    directory: DirectoryOption = HERE,
) -> None:
    """How a domain treats mail from now on."""
    ask(
        directory,
        cmd="behaviour",
        domain=domain.lower(),
        set=behaviour,
        sources=source or [],
        share=share,
        for_seconds=span(for_) if for_ else None,
    )
    whom = f" for {', '.join(source)}" if source else ""
    typer.echo(f"{domain}: {behaviour}{whom}{f', {share:.0%}' if share != 1 else ''}{f', for {for_}' if for_ else ''}")


@app.command()
def behaviours(json: JsonOption = False, directory: DirectoryOption = HERE) -> None:
    """All behaviours and what each does; the shapes of mail that comes back."""
    found = ask(directory, cmd="behaviours")
    if json:
        _print(found)
    else:
        sandbox_sheets.behaviours(found)


@dns.command("set")
def dns_set(
    mode: Annotated[str, typer.Argument(metavar="MODE", help="normal, servfail, refused, silent.")],
    domain: Annotated[str, typer.Option(help="This name and those below; default: all.")] = "",
    for_: ForOption = "",
    directory: DirectoryOption = HERE,
) -> None:
    """How the DNS answers from now on."""
    seconds = span(for_) if for_ else None
    ask(directory, cmd="dns", mode=mode, domain=domain.lower(), for_seconds=seconds)
    typer.echo(f"dns {domain or 'of all names'}: {mode}{f', for {for_}' if for_ else ''}")


@dns.command("show")
def dns_show(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    type_: Annotated[str, typer.Argument(metavar="TYPE", help="MX, A, AAAA, TXT, CNAME, PTR.")] = "MX",
    json: JsonOption = False,
    directory: DirectoryOption = HERE,
) -> None:
    """What the DNS says about a name now; exit 1 when nothing."""
    found = ask(directory, cmd="lookup", name=name, type=type_)
    if json:
        _print(found)
    for record in found["records"] if not json else ():
        typer.echo(record)
    if not found["records"]:
        refuse(found.get("failed") or f"{name} has no {type_.upper()}")


@app.command()
def report(json: JsonOption = False, directory: DirectoryOption = HERE) -> None:
    """What arrived by domain, what the hosts said, which limits were broken, what came back."""
    found = ask(directory, cmd="report")
    if json:
        _print(found)
    else:
        sandbox_sheets.report(found)


@app.command()
def bounce(
    mail: Annotated[str, typer.Argument(metavar="MAIL_ID", help="One of `mail list`.")],
    shape: Annotated[str, typer.Option(help="One of `behaviours`' shapes.")] = "dsn",
    recipient: Annotated[str, typer.Option(help="Which of the mail's; default: the first.")] = "",
    json: JsonOption = False,
    directory: DirectoryOption = HERE,
) -> None:
    """Something that arrived is bounced late, by mail, now."""
    _send_back(directory, mail, shape, recipient, json)


@app.command()
def complain(
    mail: Annotated[str, typer.Argument(metavar="MAIL_ID", help="One of `mail list`.")],
    shape: Annotated[str, typer.Option(help="complaint or complaint-redacted.")] = "complaint",
    recipient: Annotated[str, typer.Option(help="Which of the mail's; default: the first.")] = "",
    json: JsonOption = False,
    directory: DirectoryOption = HERE,
) -> None:
    """The recipient of something that arrived says that it is spam, now."""
    _send_back(directory, mail, shape, recipient, json)


def _send_back(directory: Path, mail: str, shape: str, recipient: str, json: bool) -> None:
    """Exit 1 where the relay did not take it."""
    found = ask(directory, cmd="bounce", mail=mail, shape=shape, recipient=recipient)
    if json:
        _print(found)
    else:
        typer.echo(f"{shape} about {found['recipient']} to <{found['to']}>: {found['reply']}")
    if not found["reply"].startswith("2"):
        raise typer.Exit(1)


def _print(found: dict[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    sys.stdout.buffer.flush()
