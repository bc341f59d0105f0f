"""``relayctl``: each word is a module of its own, imported when it is said: all of them together take twice the start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple, cast

import typer
from typer.core import TyperGroup


class Noun(NamedTuple):
    """``relayctl NOUN VERB``; the first module has the ``app``, the others add their verbs to it."""

    help: str
    modules: tuple[str, ...]


NOUNS = {
    "config": Noun("The configuration file and the environment.", ("config", "reload")),
    "account": Noun("Accounts of submitting systems.", ("account",)),
    "archive": Noun("What has happened, as it lies on disk.", ("archive",)),
    "auth": Noun("Failed authentications.", ("auth",)),
    "dkim": Noun("Keys that sign mail.", ("dkim",)),
    "dsn": Noun("What became of each recipient, for bounce processors.", ("dsn",)),
    "quota": Noun("What accounts may still send, and that it adds up.", ("quota",)),
    "queue": Noun(
        "What is queued, and stopping or holding it.", ("queue", "backup", "explain", "queue_list", "queue_verbs")
    ),
    "events": Noun("What became of the mail.", ("events",)),
    "inbound": Noun("Mail that came back.", ("inbound",)),
    "intake": Noun("Whether new mail is taken.", ("intake",)),
    "sandbox": Noun("An internet in a box, to play and to test with.", ("sandbox",)),
    "systemd": Noun("What systemd is told.", ("systemd",)),
    "streams": Noun("Groups of consumers of the events.", ("streams",)),
}
VERBS = (
    "alarms",
    "capacity",
    "explain",
    "history",
    "send-test",
    "top",
    "trace",
    "up",
)  # each in the module of its name


@cache
def command(word: str) -> Any:
    """The click command of a noun or verb of the root."""
    made = typer.Typer(add_completion=False)
    if word in NOUNS:
        modules = [import_module(f"relayctl.{name}") for name in NOUNS[word].modules]
        made.add_typer(modules[0].app, name=word, help=NOUNS[word].help)
        return cast(TyperGroup, typer.main.get_command(made)).commands[word]
    name = word.replace("-", "_")
    made.command(word)(getattr(import_module(f"relayctl.{name}"), name))
    return typer.main.get_command(made)


class Words(Mapping[str, Any]):
    def __getitem__(self, word: str) -> Any:
        if word not in NOUNS and word not in VERBS:
            raise KeyError(word)
        return command(word)

    def __iter__(self) -> Iterator[str]:
        return iter((*NOUNS, *VERBS))

    def __len__(self) -> int:
        return len(NOUNS) + len(VERBS)


class Root(TyperGroup):
    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands = cast(Any, Words())

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)


app = typer.Typer(
    cls=Root,
    name="relayctl",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # they would print local variables, secrets among them
)


@app.callback()
def root() -> None:
    """Look after a Tambo relay."""


if __name__ == "__main__":
    app()
