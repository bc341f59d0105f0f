"""The reply rules: when the first digit of a refusal blames the wrong party.

A rule turns a refusal into another result because of what its text says, for instance a 5xx that speaks
of our address' reputation into a transient one. Rules are data (``replies.toml``), carry samples that
must match and counter-samples that must not, and are refused as a whole when one of them is wrong.

Patterns are searched, case-insensitively, in the *line* of a reply: its code, its enhanced code if it has
one, its text; white space collapsed, words with an ``@`` replaced by ``@`` (a recipient's own address never
triggers a rule), at most :data:`LINE_LIMIT` characters. The first rule that matches wins.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

PHASES = (
    "connect",
    "greeting",
    "ehlo",
    "starttls",
    "tls",
    "auth",
    "mail",
    "rcpt",
    "data",
    "content",
    "end-of-data",
    "quit",
)  # the values of delivery.reply.Phase, which this floor may not import; a test holds them equal
LINE_LIMIT = 1000  # characters; the text is the peer's, so matching it has to have a bound
SHIPPED = Path(__file__).with_name("replies.toml")

_SAMPLE = re.compile(r"(\d{3})[ -](?:([245]\.\d{1,3}\.\d{1,3})(?: |$))?(.*)", re.DOTALL)
_DOUBLE_ESCAPE = re.compile(r"\\\\")
_UNBOUNDED = re.compile(r"(?<!\\)[*+]|,\}")


class RulesRefused(ValueError):
    """The rule file is unusable; the text lists every fault with the rule's id."""


def one_line(code: int, status: str, text: str) -> str:
    """The form of a reply that patterns see (described above)."""
    words: list[str] = []
    room = LINE_LIMIT
    for word in text[: 4 * LINE_LIMIT].split():
        if status and word == status:
            continue  # it stands in front of every line of a multi-line reply
        words.append("@" if "@" in word else word)
        room -= len(words[-1]) + 1
        if room <= 0:
            break
    head = f"{code} {status} " if status else f"{code} "
    return (head + " ".join(words))[:LINE_LIMIT]


@dataclass(frozen=True, slots=True)
class Rule:
    """``phases`` empty = any; ``codes`` are prefixes ("5", "55", "550"); ``scope`` "" = the phase's own."""

    id: str
    phases: frozenset[str]
    codes: tuple[str, ...]
    pattern: re.Pattern[str]
    result: str
    scope: str
    another_source: bool

    def matches(self, phase: str, code: int, line: str) -> bool:
        if self.phases and phase not in self.phases:
            return False
        return str(code).startswith(self.codes) and self.pattern.search(line) is not None


@dataclass(frozen=True, slots=True)
class Rules:
    """An ordered set of rules."""

    rules: tuple[Rule, ...] = ()

    def match(self, phase: str, code: int, line: str) -> Rule | None:
        """The first rule that applies to this line (see :func:`one_line`), or None."""
        for rule in self.rules:
            if rule.matches(phase, code, line):
                return rule
        return None


Code = Annotated[str, Field(pattern=r"^[45](?:xx|[0-9]x|[0-9]{2})$")]
PhaseName = Literal[
    "connect", "greeting", "ehlo", "starttls", "tls", "auth", "mail", "rcpt", "data", "content", "end-of-data", "quit"
]


class _Entry(BaseModel):
    """A rule as it stands in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{1,39}$")
    phases: tuple[PhaseName, ...] = ()
    codes: tuple[Code, ...] = ("5xx",)
    pattern: str = Field(min_length=3)
    result: Literal["transient", "permanent"] = "transient"
    scope: Literal["", "session", "site", "message", "recipient"] = ""
    another_source: bool = False
    samples: tuple[str, ...] = Field(min_length=1)
    counter_samples: tuple[str, ...] = ()

    def rule(self) -> Rule:
        return Rule(
            id=self.id,
            phases=frozenset(self.phases),
            codes=tuple(code.rstrip("x") for code in self.codes),
            pattern=re.compile(self.pattern, re.IGNORECASE),
            result=self.result,
            scope=self.scope,
            another_source=self.another_source,
        )


def load_rules(path: Path | str | None = None) -> Rules:
    """Reads and checks a rule file (None = the one that comes with the package); RulesRefused, OSError."""
    source = SHIPPED if path is None else Path(path)
    return parse_rules(source.read_text("utf-8"), str(source))


def parse_rules(text: str, name: str = "replies.toml") -> Rules:
    """Checks every rule alone, then its samples against the whole set; RulesRefused names all faults."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RulesRefused(f"{name}: {error}") from None
    rows = table.pop("rule", [])
    faults = [f"unknown key {key!r}; allowed: [[rule]]" for key in table]
    if not isinstance(rows, list):
        raise RulesRefused(f"{name}: write each rule as [[rule]]")
    entries: list[_Entry] = []
    for number, row in enumerate(rows, 1):
        label = f"rule {row.get('id', number)!r}" if isinstance(row, dict) else f"rule {number}"
        try:
            entries.append(_Entry.model_validate(row))
        except ValidationError as error:
            faults += [f"{label}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    faults += [f"rule {entry.id!r}: {fault}" for entry in entries for fault in _pattern_faults(entry.pattern)]
    faults += list(_duplicates(entries))
    if not faults:  # samples only say something about patterns that compile
        rules = Rules(tuple(entry.rule() for entry in entries))
        faults = [
            f"rule {e.id!r}: {fault}"
            for e, rule in zip(entries, rules.rules, strict=True)
            for fault in _sample_faults(e, rule, rules)
        ]
        if not faults:
            return rules
    raise RulesRefused(f"{name}: " + "; ".join(faults))


def _pattern_faults(pattern: str) -> Iterator[str]:
    """Mistakes seen in the field's own rule files: they make a rule silently dead, or costly."""
    try:
        compiled = re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        yield f"pattern: {error}"
        return
    if _DOUBLE_ESCAPE.search(pattern):
        yield r"pattern: doubled backslash; in a '''literal''' string write \[ and not \\["
    if compiled.groups:
        yield r"pattern: bare parenthesis; write \( for a literal one and (?: for a group"
    if _UNBOUNDED.search(pattern):
        yield r"pattern: unbounded repetition; write {0,40} instead of * and \x2a, \x2b for the characters"
    if compiled.search(""):
        yield "pattern: matches anything"


def _duplicates(entries: list[_Entry]) -> Iterator[str]:
    ids: set[str] = set()
    patterns: dict[tuple[str, frozenset[str], frozenset[str]], str] = {}
    for entry in entries:
        if entry.id in ids:
            yield f"rule {entry.id!r}: id used twice"
        ids.add(entry.id)
        key = (entry.pattern.lower(), frozenset(entry.phases), frozenset(entry.codes))
        if key in patterns:
            yield f"rule {entry.id!r}: same pattern, phases and codes as {patterns[key]!r}"
        patterns[key] = entry.id


def _sample_faults(entry: _Entry, rule: Rule, rules: Rules) -> Iterator[str]:
    phases = entry.phases or PHASES
    for sample in entry.samples:
        parsed = read_sample(sample)
        if parsed is None:
            yield f"sample is no reply (code, text): {sample!r}"
            continue
        code, line = parsed
        for phase in phases:
            first = rules.match(phase, code, line)
            if not rule.matches(phase, code, line):
                yield f"does not match its sample {sample!r}"
            elif first is not rule and first is not None:
                yield f"never sees its sample {sample!r} at {phase}: rule {first.id!r} stands before it"
            else:
                continue
            break
    for sample in entry.counter_samples:
        parsed = read_sample(sample)
        if parsed is None:
            yield f"counter-sample is no reply (code, text): {sample!r}"
        elif any(rule.matches(phase, *parsed) for phase in phases):
            yield f"matches its counter-sample {sample!r}"


def read_sample(sample: str) -> tuple[int, str] | None:
    """``"550-5.7.1 text\\n550 5.7.1 more"`` → (code, line) with the codes of later lines taken out; None if no reply."""
    first = _SAMPLE.fullmatch(sample)
    if first is None:
        return None
    code, status, text = first.group(1), first.group(2) or "", first.group(3)
    text = re.sub(rf"(?m)^{code}[ -]", "", text)
    return int(code), one_line(int(code), status, text)
