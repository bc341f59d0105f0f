"""Arguments of MAIL and RCPT as they stand on the wire (RFC 5321 §4.1.2). Pure; keeps the case of values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_PATH = re.compile(rf'<((?:{_QUOTED}|[^<>" ])*)>(?= |$)|((?:{_QUOTED}|[^<>" ])+)(?= |$)')
_ROUTE = re.compile(r"(?:@[^@,:<>]+,)*@[^@,:<>]+:")
_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([^\x00-\x20=\x7f]+))?")  # UTF-8 too (RFC 6531 §3.4)


@dataclass(frozen=True, slots=True)
class PathArgument:
    """`path` without angle brackets and source route; parameters with upper-case keywords, None where no value."""

    path: str
    parameters: Mapping[str, str | None]


_NONE: Mapping[str, str | None] = {}


def parse(keyword: str, argument: str) -> PathArgument | None:
    """``FROM:<a@b> SIZE=1`` for keyword ``FROM:``; None for what does not parse or says a parameter twice.

    Angle brackets may be missing, as many clients forget them; whether the path is a mailbox is the policy's question.
    """
    if argument[: len(keyword)].upper() != keyword:
        return None
    rest = argument[len(keyword) :].lstrip(" ")
    found = _PATH.match(rest)
    if found is None:
        return None
    path = found[1] if found[1] is not None else found[2]
    if path.startswith("@") and (route := _ROUTE.match(path)):
        path = path[route.end() :]  # RFC 5321 appendix C: accepted, ignored
    parameters = _parameters(rest[found.end() :]) if found.end() < len(rest) else _NONE
    return None if parameters is None else PathArgument(path, parameters)


def _parameters(text: str) -> Mapping[str, str | None] | None:
    parameters: dict[str, str | None] = {}
    for word in text.split(" "):
        if not word:
            continue
        found = _PARAMETER.fullmatch(word)
        if found is None or found[1].upper() in parameters:
            return None
        parameters[found[1].upper()] = found[2]
    return parameters
