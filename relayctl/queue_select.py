"""The selector that every verb over recipients has: ids and options, all of which must hold."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from config.durations import seconds
from config.load import Loaded
from config.routes import PREFIX
from config.schema import nearest
from mailqueue.message import CLASSES
from mailqueue.selection import STATES, Selection
from relayctl.queue import stop_key

OPTIONS: dict[str, tuple[Any, str, str]] = {
    "recipient": (str, "ADDRESS", "Exactly this recipient, capitals aside."),
    "destination": (str, "DOMAIN", "Recipient domain."),
    "provider": (str, "NAME", "Mailbox provider as configured; default = all others; route:<name>."),
    "account": (str, "NAME", "Account."),
    "campaign": (str, "ACCOUNT/NAME", "Campaign of an account."),
    "class": (str, "CLASS", " · ".join(CLASSES)),
    "state": (list[str], "STATE", " · ".join(STATES) + "; may be given several times."),
    "older-than": (str, "DURATION", "Accepted longer ago: 90s, 2h, 1d."),
}


def selecting(verb: Callable[..., None]) -> Callable[..., None]:
    """Gives a verb ids and options; what they say reaches it as ``selection``."""

    def called(**words: Any) -> None:
        said = {name: words.pop(_parameter(name)) for name in OPTIONS}
        selection = selection_of(words.pop("ids") or [], said)
        verb(**words, selection=selection)

    own = [p for p in inspect.signature(verb, eval_str=True).parameters.values() if p.name != "selection"]
    ids = Annotated[list[str] | None, typer.Argument(metavar="[ID…]", help="Message ids, as in `250 queued as`.")]
    added = [inspect.Parameter("ids", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ids)]
    for name, (kind, metavar, help_) in OPTIONS.items():
        option = typer.Option(f"--{name}", metavar=metavar, help=help_, show_default=False)
        said: Any = Annotated[kind | None, option]
        added.append(inspect.Parameter(_parameter(name), inspect.Parameter.KEYWORD_ONLY, default=None, annotation=said))
    called.__doc__, called.__name__ = verb.__doc__, verb.__name__
    parameters = [*added, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own)]
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    return called


def _parameter(name: str) -> str:
    return "select_" + name.replace("-", "_")


def selection_of(ids: list[str], said: dict[str, Any], now: float | None = None) -> Selection:
    """BadParameter says what is wrong and what is allowed."""
    account, campaign = said["account"] or "", said["campaign"] or ""
    if campaign:
        owner, slash, name = campaign.partition("/")
        if not (owner and slash and name):
            raise typer.BadParameter(f"{campaign!r}: write --campaign <account>/<name>")
        if account not in ("", owner):
            raise typer.BadParameter(f"campaign {campaign} is not of account {account}")
        account, campaign = owner, name
    states = [one for each in said["state"] or [] for one in each.split(",") if one]
    for value, allowed in ((said["class"] or "", CLASSES), *((state, STATES) for state in states)):
        if value and value not in allowed:
            raise typer.BadParameter(f"{value!r}{nearest(value, list(allowed))}; allowed: {', '.join(allowed)}")
    if (recipient := said["recipient"] or "") and "@" not in recipient:
        raise typer.BadParameter(f"{recipient!r} is no address; for a whole domain: --destination")
    if any(not one.isascii() or not one.isalnum() for one in ids):
        raise typer.BadParameter(
            f"{next(one for one in ids if not (one.isascii() and one.isalnum()))!r} is no message id"
        )
    destination = stop_key(f"destination:{said['destination']}")[12:] if said["destination"] else ""
    return Selection(
        ids=tuple(dict.fromkeys(ids)),
        recipient=recipient,
        destination=destination,
        provider=said["provider"] or "",
        account=account,
        campaign=campaign,
        class_=said["class"] or "",
        states=frozenset(states),
        before=_before(said["older-than"], time.time() if now is None else now),
    )


def _before(text: str | None, now: float) -> int:
    try:
        return int((now - float(str(seconds(text)))) * 1000) if text else 0
    except ValueError as error:
        raise typer.BadParameter(f"--older-than: {error}") from None


def known(selection: Selection, loaded: Loaded) -> Selection:
    """BadParameter for a provider that nobody has configured."""
    name = selection.provider
    names = [*loaded.providers.rules, "default", *(PREFIX + route.name for route in loaded.settings.routes)]
    if name and name not in names:
        raise typer.BadParameter(
            f"no provider {name}{nearest(name, names) or '; there are ' + ', '.join(sorted(names))}"
        )
    return selection
