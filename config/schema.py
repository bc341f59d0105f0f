"""Sections of configuration, and how what is wrong with them is put into words.

:func:`fit` turns plain data (as TOML or JSON gives it) into a :class:`Section`, or into a list of every
problem: unknown keys with what is allowed and the nearest right name, wrong values with what is allowed.
Secrets and tables are never printed, only named.
"""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

MASK = "******"
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_USERINFO = re.compile(r"://\S*@")


class Section(BaseModel):
    """A table of settings: frozen, no keys beside its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        """Pydantic would read ``port = true`` as port 1."""
        if isinstance(value, bool) and _plain(cls.model_fields[str(info.field_name)].annotation) is not bool:
            raise PydanticCustomError("wrong_kind", "true and false are not allowed here")
        return value


SectionT = TypeVar("SectionT", bound=Section)


@dataclass(frozen=True, slots=True)
class Allowed:
    """Mark in an ``Annotated`` type: what to say is allowed, where the type alone says too little."""

    text: str


@dataclass(frozen=True, slots=True)
class Problem:
    key: str  # dotted, list elements counted from 0: "relayd.listeners[1].port"
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}" if self.key else self.text


class ConfigError(Exception):
    """Configuration that is refused; ``problems`` has one sentence for each thing wrong."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


def misfit(*problems: tuple[str, str]) -> PydanticCustomError:
    """For a validator of a whole section: (key below the section, what is wrong with it), any number of them."""
    text = "; ".join(f"{key}: {text}" for key, text in problems)
    return PydanticCustomError("misfit", "{text}", {"text": text, "problems": problems})


def join(at: str, key: str | int) -> str:
    """Dotted key below ``at``; names that TOML would quote are quoted."""
    if isinstance(key, int):
        return f"{at}[{key}]"
    spelled = key if _BARE.fullmatch(key) else json.dumps(key)
    return f"{at}.{spelled}" if at else spelled


def fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Fields under the names that a file uses (``class``, not ``class_``)."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def fit(model: type[SectionT], data: Mapping[str, object], at: str = "") -> tuple[SectionT | None, list[Problem]]:
    """The section, or None with everything that is wrong; unknown keys alone still give the section."""
    known, problems = _known_part(model, data, at)
    try:
        return model.model_validate(known), problems
    except ValidationError as error:
        return None, problems + [p for e in error.errors(include_url=False) for p in _problems(model, dict(e), at)]


def nearest(name: str, names: Sequence[str]) -> str:
    """``" (did you mean x?)"`` or nothing."""
    found = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    return f" (did you mean {found[0]}?)" if found else ""


def unknown_key(name: str, names: Sequence[str]) -> str:
    return f"unknown key{nearest(name, names)}; allowed here: {', '.join(sorted(names))}"


def section_in(kind: Any) -> tuple[str, type[Section] | None]:
    """("one" | "list" | "table" | "", the Section class) that an annotation holds."""
    kind = _plain(kind)
    if isinstance(kind, type) and issubclass(kind, Section):
        return "one", kind
    origin, args = get_origin(kind), get_args(kind)
    if origin is tuple and section_in(args[0])[0] == "one":
        return "list", section_in(args[0])[1]
    if origin in (dict, Mapping) and section_in(args[1])[0] == "one":
        return "table", section_in(args[1])[1]
    return "", None


def is_secret(kind: Any) -> bool:
    return _plain(kind) is SecretStr


def leaves(section: Section, at: str = "", *, mask: bool = True) -> Iterator[tuple[str, object]]:
    """Every value with its dotted key; secrets as :data:`MASK`, passwords inside URLs masked."""
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), join(at, field.alias or name)
        if isinstance(value, Section):
            yield from leaves(value, key, mask=mask)
        elif isinstance(value, tuple) and value and isinstance(value[0], Section):
            for index, element in enumerate(value):
                yield from leaves(element, join(key, index), mask=mask)
        else:
            yield key, masked(value) if mask else value


def masked(value: object) -> object:
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, str):
        return redact(value)
    return value


def redact(text: str) -> str:
    """User and password of a URL become a mask."""
    return _USERINFO.sub(f"://{MASK}@", text)


def _known_part(model: type[BaseModel], data: Mapping[str, object], at: str) -> tuple[dict[str, Any], list[Problem]]:
    fields, known, problems = fields_of(model), {}, []
    for name, value in data.items():
        key = join(at, name)
        if name not in fields:
            problems.append(Problem(key, unknown_key(name, tuple(fields))))
            continue
        known[name], more = _known_value(fields[name].annotation, value, key)
        problems += more
    return known, problems


def _known_value(kind: Any, value: object, key: str) -> tuple[object, list[Problem]]:
    shape, model = section_in(kind)
    if model is None:
        return value, []
    if shape == "one" and isinstance(value, Mapping):
        return _known_part(model, value, key)
    if shape == "list" and isinstance(value, list | tuple):
        pairs = [_known_value(model, element, join(key, index)) for index, element in enumerate(value)]
        return [part for part, _ in pairs], [problem for _, more in pairs for problem in more]
    if shape == "table" and isinstance(value, Mapping):
        rows = {name: _known_value(model, element, join(key, name)) for name, element in value.items()}
        return {name: part for name, (part, _) in rows.items()}, [p for _, more in rows.values() for p in more]
    return value, []


def _problems(model: type[BaseModel], error: dict[str, Any], at: str) -> list[Problem]:
    key, kind, metadata = at, model, ()
    for step in error["loc"]:
        key = join(key, step)
        kind, metadata = _below(kind, step)
    context = error.get("ctx", {})
    if error["type"] == "misfit":
        return [Problem(join(key, name), text) for name, text in context["problems"]]
    if error["type"] == "missing":
        return [Problem(key, f"missing; allowed: {allowed(kind, metadata)}")]
    value = shown(error["input"], is_secret(kind)) or _noun(error["input"])
    if error["type"] == "value_error":
        return [Problem(key, f"{value} is not allowed: {context['error']}")]
    return [Problem(key, f"{value} is not allowed; allowed: {allowed(kind, metadata)}")]


def _below(kind: Any, step: str | int) -> tuple[Any, tuple[Any, ...]]:
    """Type and metadata of what lies under a step of a pydantic location; ``Any`` where that is unknown."""
    kind = _plain(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = fields_of(kind).get(str(step))
        return (field.annotation, tuple(field.metadata)) if field else (Any, ())
    origin, args = get_origin(kind), get_args(kind)
    if origin is tuple:
        return args[0], ()
    if origin in (dict, Mapping):
        return args[1], ()
    return Any, ()


def _plain(kind: Any) -> Any:
    """Without ``Annotated`` and without ``| None``."""
    if get_origin(kind) is Annotated:
        return _plain(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        options = [option for option in get_args(kind) if option is not type(None)]
        return _plain(options[0]) if len(options) == 1 else kind
    return kind


def _metadata(kind: Any) -> tuple[Any, ...]:
    """Metadata along ``Annotated`` and ``| None``, outermost last, pydantic's Field objects opened."""
    found: tuple[Any, ...] = ()
    if get_origin(kind) is Annotated:
        found = (*_metadata(get_args(kind)[0]), *kind.__metadata__)
    elif get_origin(kind) in (Union, types.UnionType):
        options = [option for option in get_args(kind) if option is not type(None)]
        found = _metadata(options[0]) if len(options) == 1 else ()
    return tuple(m for each in found for m in (each.metadata if isinstance(each, FieldInfo) else (each,)))


def allowed(kind: Any, metadata: Sequence[Any] = ()) -> str:
    """What a value of this type may be, in words."""
    marks = (*_metadata(kind), *metadata)
    kind = _plain(kind)
    said = next((mark.text for mark in marks if isinstance(mark, Allowed)), "")
    pattern = next((mark.pattern for mark in marks if getattr(mark, "pattern", None)), "")
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(json.dumps(value) for value in get_args(kind))
    if kind in (int, float):
        noun = said or ("a whole number" if kind is int else "a number")
        return noun + _bounds(marks)
    if pattern:
        return f"text like {pattern}"
    return said or _shape(kind)


def _shape(kind: Any) -> str:
    shape, _ = section_in(kind)
    if shape:
        return {"one": "a table", "list": "a list of tables", "table": "a table of tables"}[shape]
    if get_origin(kind) is tuple:
        return f"a list; each element {allowed(get_args(kind)[0])}"
    return {bool: "true or false", str: "text", SecretStr: "text"}.get(kind, "another kind of value")


def _bounds(marks: Sequence[Any]) -> str:
    def ends(name: str) -> list[float]:
        return [value for mark in marks if (value := getattr(mark, name, None)) is not None]

    words = []
    if low := ends("ge"):
        words.append(f"at least {max(low):.9g}")
    if low := ends("gt"):
        words.append(f"more than {max(low):.9g}")
    if high := ends("le"):
        words.append(f"at most {min(high):.9g}")
    if high := ends("lt"):
        words.append(f"less than {min(high):.9g}")
    return f", {' and '.join(words)}" if words else ""


def shown(value: object, secret: bool = False) -> str:
    """A value as a file would spell it, masked and at most 80 characters; "" for tables and lists of them."""
    if secret:
        return MASK
    if isinstance(value, str):
        text = json.dumps(redact(value), ensure_ascii=False)
    elif isinstance(value, bool | int | float):
        text = json.dumps(value)
    elif isinstance(value, list | tuple) and not any(isinstance(e, dict | list | tuple) for e in value):
        text = "[" + ", ".join(shown(element) or _noun(element) for element in value) + "]"
    else:
        return ""
    return text if len(text) <= 80 else text[:77] + "…"


def _noun(value: object) -> str:
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return "this list"
    return f"a value of kind {type(value).__name__}"
