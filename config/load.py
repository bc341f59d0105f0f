"""One TOML file and the environment become :class:`Loaded`, or :class:`ConfigError` with every problem at once.

The environment wins over the file: ``TAMBO__SECTION__KEY`` (nested by ``__``), lists whole and as JSON:
``TAMBO__QUEUE__URL``, ``TAMBO__DELIVERY__NAMESERVERS='["127.0.0.1:5353"]'``. Values of the environment
are text and read as the key's kind; an empty one means "none" where a key may have no value. Between the two stand the
service manager's credentials (:mod:`config.credentials`).
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin

from pydantic import SecretStr

from config import check, credentials, route_files
from config.providers import Providers
from config.schema import ConfigError, Problem, Section, fields_of, fit, join, leaves, nearest, section_in
from config.settings import Settings

__all__ = ["DEFAULT_PATH", "ConfigError", "Loaded", "default_path", "load"]

DEFAULT_PATH = "/etc/tambo/tambo.toml"
PREFIX = "TAMBO__"


@dataclass(frozen=True, slots=True)
class Loaded:
    settings: Settings
    origins: Mapping[str, str]  # dotted key → "default" | "file <path>" | "environment NAME" | "credential NAME"
    providers: Providers
    warnings: tuple[str, ...] = ()
    passwords: Mapping[str, SecretStr] = field(default_factory=dict, repr=False)  # of routes, by name


def default_path(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("TAMBO_CONFIG") or DEFAULT_PATH)


def load(path: str | Path, environ: Mapping[str, str] = os.environ) -> Loaded:
    """Read, merge, validate. The rules of :mod:`config.check` are tried once every single value is right."""
    path = Path(path)
    data = read_toml(path)
    problems = _settle_paths(data, path.parent, environ)
    places, unread = _from_outside(environ, data)
    problems += unread
    settings, wrong = fit(Settings, data)
    problems += [_sourced(problem, places) for problem in wrong]
    providers: Providers | None = None
    passwords: Mapping[str, SecretStr] = {}
    if settings is not None:
        passwords, unreadable = route_files.read(settings.routes)
        problems += [_sourced(problem, places) for problem in [*check.problems(settings), *unreadable]]
        try:
            providers = Providers.load(settings.delivery.providers)
        except ConfigError as error:
            problems += error.problems
    if problems or settings is None or providers is None:
        raise ConfigError(problems)
    origins, warnings = _origins(settings, data, places, path), tuple(str(w) for w in check.warnings(settings))
    return Loaded(settings, origins, providers, warnings, passwords)


def read_toml(path: Path) -> dict[str, Any]:
    """The file's tables; ConfigError names the file, and the line of what is no TOML."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError([f"{path}: no such file"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    try:
        return tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}: not UTF-8 (at line {line})"]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path}: not valid TOML: {error}"]) from None


def _settle_paths(data: dict[str, Any], directory: Path, environ: Mapping[str, str]) -> list[str]:
    """A relative path inside the file is relative to the file; a credential is where the service manager put it."""
    relayd = data.get("relayd")
    listeners = relayd.get("listeners") if isinstance(relayd, dict) else None
    elements = listeners if isinstance(listeners, list) else []
    routes = data.get("routes")
    ways = routes if isinstance(routes, list) else []
    tables = [
        (data.get("delivery"), "providers"),
        *((data.get("signing"), name) for name in ("directory", "return_path_key")),
        *((element, name) for element in elements for name in ("certificate", "key")),
        *((way, name) for way in ways for name in ("ca_file", "password_file")),
    ]
    problems = []
    for table, name in tables:
        if not (isinstance(table, dict) and isinstance(table.get(name), str) and table[name]):
            continue
        if table[name].startswith(credentials.SCHEME):
            try:
                table[name] = credentials.path_of(table[name], environ)
            except ValueError as error:
                problems.append(f"{name}: {error}")
        else:
            table[name] = str((directory / table[name]).absolute())
    return problems


def _variables(model: type[Section] = Settings, path: tuple[str, ...] = ()) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Every variable that there is → (path of the key, its annotation)."""
    found: dict[str, tuple[tuple[str, ...], Any]] = {}
    for name, facts in fields_of(model).items():
        shape, section = section_in(facts.annotation)
        if shape == "one" and section is not None:
            found |= _variables(section, (*path, name))
        else:
            found[PREFIX + "__".join((*path, name)).upper()] = ((*path, name), facts.annotation)
    return found


def _from_outside(environ: Mapping[str, str], data: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Puts credentials into ``data``, then variables; gives {dotted key: what it came from} and what is wrong."""
    variables = _variables()
    places, problems = _from_credentials(environ, data, variables)
    for name in sorted(name for name in environ if name.startswith(PREFIX)):
        if name not in variables:
            problems.append(_unknown_variable(name, tuple(variables)))
            continue
        path, kind = variables[name]
        try:
            value = _variable_value(environ[name], kind)
        except ValueError as error:
            problems.append(f"{name}: {error}")
            continue
        if _put(data, path, value):
            places[".".join(path)] = f"environment {name}"
    return places, problems


def _from_credentials(
    environ: Mapping[str, str], data: dict[str, Any], variables: Mapping[str, tuple[tuple[str, ...], Any]]
) -> tuple[dict[str, str], list[str]]:
    given, problems = credentials.values(environ)
    known = {".".join(path): (path, kind) for path, kind in variables.values()}
    places: dict[str, str] = {}
    for key, text in given.items():
        name = f"credential {credentials.PREFIX}{key}"
        if key not in known:
            near = nearest(key, list(known))
            problems.append(f"{name}: unknown key{near}; a value's credential is named like tambo.queue.password")
            continue
        path, kind = known[key]
        try:
            value = _variable_value(text, kind)
        except ValueError as error:
            problems.append(f"{name}: {error}")
            continue
        if _put(data, path, value):
            places[key] = name
    return places, problems


def _unknown_variable(name: str, names: tuple[str, ...]) -> str:
    """Name the section's other variables where the section exists, else the sections."""
    section = name[: name.rfind("__") + 2]
    beside = [other for other in names if other.startswith(section) and "__" not in other[len(section) :]]
    if section == PREFIX or not beside:
        beside = sorted({PREFIX + other.split("__")[1] for other in names})
    near = nearest(name, [other.lower() for other in names])
    return f"{name}: unknown variable{near.upper().replace('DID YOU MEAN', 'did you mean')}; allowed here: {', '.join(beside)}"


def _variable_value(text: str, kind: Any) -> object:
    """ValueError when a list is no JSON list; its text is not repeated (it may hold secrets)."""
    bare = section_in(kind)[0] == "list" or get_origin(kind) is tuple
    if bare:
        try:
            value = json.loads(text)
        except ValueError:
            raise ValueError('write the whole list as JSON, for instance ["a", "b"]') from None
        if not isinstance(value, list):
            raise ValueError('write the whole list as JSON, for instance ["a", "b"]')
        return value
    return None if text == "" and type(None) in getattr(kind, "__args__", ()) else text


def _put(data: dict[str, Any], path: tuple[str, ...], value: object) -> bool:
    """False when the file has something else than a table on the way (which is reported on its own)."""
    for name in path[:-1]:
        data = data.setdefault(name, {})
        if not isinstance(data, dict):
            return False
    data[path[-1]] = value
    return True


def _sourced(problem: Problem, places: Mapping[str, str]) -> str:
    place = _place(problem.key, places)
    return f"{problem} (from {place})" if place else str(problem)


def _place(key: str, places: Mapping[str, str]) -> str:
    return places.get(key) or next((name for start, name in places.items() if key.startswith(f"{start}[")), "")


def _origins(settings: Settings, data: dict[str, Any], places: Mapping[str, str], path: Path) -> dict[str, str]:
    written = set(_written(data))
    origins = {}
    for key, _ in leaves(settings):
        origin = _place(key, places) or f"file {path}"
        origins[key] = origin if key in written else "default"
    return origins


def _written(data: Mapping[str, Any], at: str = "") -> list[str]:
    keys = []
    for name, value in data.items():
        key = join(at, name)
        if isinstance(value, dict):
            keys += _written(value, key)
            continue
        keys.append(key)
        if isinstance(value, list):
            for index, element in enumerate(value):
                if isinstance(element, dict):
                    keys += _written(element, join(key, index))
    return keys
