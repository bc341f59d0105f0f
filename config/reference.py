"""The configuration reference, in English and Spanish, made from the settings themselves (``relayctl config reference``).

What a key means is text of ``reference/<language>.toml``: "<dotted key>" = "<meaning>", with ``[]`` behind a list of
tables. Keys that begin with ``~`` are the page's own words, with ``~~`` how that language says what is allowed.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from itertools import groupby

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from config.durations import DURATION_FORMS, spelled
from config.reload import NEEDS_RESTART
from config.schema import allowed, fields_of, section_in
from config.settings import Settings

LANGUAGES = ("en", "es")
DURATION = "a duration"


@dataclass(frozen=True, slots=True)
class Key:
    """``path``: "relayd.listeners[].port"; ``default``: as a file spells it, "" = must be given, "–" = none."""

    path: str
    allowed: str
    default: str
    restart: bool

    @property
    def section(self) -> str:
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def variable(self) -> str:
        """Of the environment; "" for keys inside lists, which come as one JSON value."""
        return "" if "[]" in self.path else "TAMBO__" + self.path.replace(".", "__").upper()


def keys(model: type[BaseModel] = Settings, at: str = "") -> Iterator[Key]:
    """All keys; those of a table come behind those beside it."""
    below: list[tuple[str, type[BaseModel]]] = []
    for name, field in fields_of(model).items():
        path = f"{at}.{name}" if at else name
        shape, inner = section_in(field.annotation)
        if inner is not None:
            below.append((path + ("[]" if shape == "list" else ""), inner))
        if inner is None or shape == "list":
            words = allowed(field.annotation, tuple(field.metadata)).replace(DURATION_FORMS, DURATION)
            restart = bool(NEEDS_RESTART.fullmatch(path.replace("[]", "[0]")))
            yield Key(path, words, _default(field, duration=DURATION in words), restart)
    for path, table in below:
        yield from keys(table, path)


def _default(field: FieldInfo, *, duration: bool) -> str:
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, BaseModel | SecretStr):
        return "–"
    if duration:
        many = isinstance(value, tuple)
        return json.dumps([spelled(one) for one in value] if many else spelled(value))
    return json.dumps(value, ensure_ascii=False, default=list)


def texts(language: str) -> Mapping[str, str]:
    """ValueError: not one of :data:`LANGUAGES`."""
    if language not in LANGUAGES:
        raise ValueError(f"no reference in {language!r}; there are: {', '.join(LANGUAGES)}")
    file = resources.files("config") / "reference" / f"{language}.toml"
    found: Mapping[str, str] = tomllib.loads(file.read_text("utf-8"))
    return found


def page(language: str) -> str:
    """The whole reference as Markdown. KeyError: a key without text."""
    said = texts(language)
    parts = [f"# {said['~title']}\n\n{said['~note']}\n"]
    for section, rows in groupby(keys(), lambda key: key.section):
        title = re.sub(r"(.*)\[\]$", r"[[\1]]", section) if section.endswith("[]") else f"[{section}]"
        columns = " | ".join((said["~key"], said["~allowed"], said["~default"], said["~meaning"]))
        parts.append(
            f"\n## {title.replace('[]', '') if section else said['~top']}\n\n| {columns} |\n|---|---|---|---|\n"
        )
        parts += [_row(key, said) for key in rows]
    return "".join(parts)


def _row(key: Key, said: Mapping[str, str]) -> str:
    default = f"`{key.default}`" if key.default not in ("", "–") else key.default or said["~required"]
    meaning = said[key.path] + (f" **{said['~restart']}**" if key.restart else "")
    cells = (f"`{key.name}`", _translated(key.allowed, said), default, meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _translated(words: str, said: Mapping[str, str]) -> str:
    """What :func:`allowed` says, phrase by phrase (keys that begin with ``~~``), the longest first."""
    phrases = {name[2:]: text for name, text in said.items() if name.startswith("~~")}
    longest_first = sorted(phrases, key=len, reverse=True)
    if not longest_first:
        return words
    return re.sub("|".join(map(re.escape, longest_first)), lambda match: phrases[match[0]], words)
