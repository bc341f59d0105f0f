"""``relayctl auth standing | clear``: who is refused after failed authentications, and an end to it."""

from __future__ import annotations

import ipaddress
from typing import Annotated

import typer

from mailqueue.failures import FailureLimits, Failures, Standing, user_hash
from mailqueue.queue import Queue
from relayctl.audit import Why, audited, record
from relayctl.config import PathOption, load_or_exit
from relayctl.queue import JsonOption, on_queue, print_json

app = typer.Typer(no_args_is_help=True)

Address = Annotated[str, typer.Option("--address", metavar="IP", help="A client's address.")]
User = Annotated[str, typer.Option("--user", help="An AUTH name.")]


@app.command()
def standing(address: Address = "", user: User = "", config: PathOption = None, json: JsonOption = False) -> None:
    """How long the address, or the user, is still refused."""
    _on_failures(config, address, user, clear=False, json=json)


@app.command()
def clear(
    address: Address = "", user: User = "", reason: Why = "", config: PathOption = None, json: JsonOption = False
) -> None:
    """Forget their failures; relayd asks again within half a minute."""
    _on_failures(config, address, user, clear=True, reason=reason, json=json)


def _on_failures(config: PathOption, address: str, user: str, *, clear: bool, json: bool, reason: str = "") -> None:
    if not address and not user:
        raise typer.BadParameter("name --address, --user or both")
    if address:
        try:
            ipaddress.ip_address(address)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    loaded = load_or_exit(config)

    async def work(queue: Queue) -> None:
        failures = Failures(queue.shards[0], FailureLimits.of(loaded.settings.relayd))
        found = await failures.ask(address, user)
        if clear:
            before, after = _facts(found), {"address_seconds": 0, "user_seconds": 0}
            subject = " ".join(filter(None, (address and f"address:{address}", user and f"user:{user_hash(user)}")))
            await record(queue, audited("auth clear", subject, " ".join(reason.split()), before, after))
            found = await failures.clear(address, user)
        if json:
            print_json(_facts(found))
        else:
            _tell(address, user, found)

    on_queue(loaded, work)


def _facts(found: Standing) -> dict[str, object]:
    return {"address_seconds": found.address, "user_seconds": found.user, "known": found.known}


def _tell(address: str, user: str, found: Standing) -> None:
    for name, seconds in ((address, found.address), (user, found.user)):
        if name:
            typer.echo(f"{name}: " + (f"refused for {seconds:.0f} s" if seconds else "not refused"))
    if address and user:
        typer.echo(f"{user} has {'' if found.known else 'not '}succeeded from {address} within a week")
