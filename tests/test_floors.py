"""The floors of the house: imports only go down, never in circles, and what a room must not know it does not import.

The table is the architecture's. A new package is refused until it has a line here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Room:
    floor: int
    may_import: frozenset[str]  # of our own packages


def room(floor: int, *may_import: str) -> Room:
    return Room(floor, frozenset(may_import))


FLOORS: Mapping[str, Room] = {
    "config": room(0),
    "mailqueue": room(1, "config"),
    "ipreputation": room(1, "config"),
    "signing": room(1, "config"),
    "returns": room(1, "config", "signing"),
    "streams": room(2, "config", "mailqueue"),
    "relayd": room(2, "config", "mailqueue", "signing", "returns"),
    "delivery": room(2, "config", "mailqueue", "ipreputation", "signing", "returns"),
    "sandbox": room(3, "config", "signing"),
    "maintenance": room(3, "config", "mailqueue", "ipreputation", "signing", "returns", "streams", "delivery"),
    "relayctl": room(
        3,
        *("config", "mailqueue", "ipreputation", "signing", "returns", "streams", "relayd", "delivery", "sandbox"),
    ),
    "panel": room(4, "config", "mailqueue", "ipreputation", "streams"),
}

# Libraries that carry a subject with them, and the rooms that may know the subject.
FOREIGN: Mapping[str, frozenset[str]] = {
    "aiosmtpd": frozenset({"relayd", "sandbox"}),
    "aiosmtplib": frozenset({"delivery", "sandbox", "relayctl"}),
    "dns": frozenset({"delivery", "sandbox", "relayctl"}),
    "redis": frozenset({"mailqueue", "ipreputation", "relayctl"}),
    "typer": frozenset({"relayctl"}),
}
COMPOSITION_ROOTS = frozenset({"main", "__main__"})  # one a process: they may also hand out a connection
BANNED_NAMES = frozenset({"utils", "util", "helpers", "helper", "common", "base", "manager", "misc"})
NOT_ROOMS = frozenset({"tests", "benchmarks", "examples", "tools", "docs", "systemd", "var", "build"})


@dataclass(frozen=True, slots=True)
class Import:
    module: str  # dotted, absolute
    line: int


def imports_of(path: Path, package: str, modules: frozenset[str]) -> Iterator[Import]:
    """Every import of a file, wherever it stands (in a function or under TYPE_CHECKING too).

    ``package`` is the one the file lies in; a ``from x import y`` names x.y when that is a module.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                origin = ".".join([*above, origin] if origin else above)
            for alias in node.names:
                full = f"{origin}.{alias.name}"
                yield Import(full if full in modules else origin, node.lineno)
        elif isinstance(node, ast.Call) and is_dynamic_import(node):
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield Import(argument.value, node.lineno)


def is_dynamic_import(node: ast.Call) -> bool:
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return called in ("import_module", "__import__") and bool(node.args)


def packages_of(root: Path) -> list[Path]:
    return sorted(
        d for d in root.iterdir() if d.is_dir() and d.name not in NOT_ROOMS and not d.name.startswith(".")
        and any(d.glob("*.py"))
    )  # fmt: skip


def modules_of(root: Path) -> dict[str, Path]:
    """Dotted name → file, of all rooms."""
    found = {}
    for package in packages_of(root):
        for path in sorted(package.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def violations(root: Path) -> list[str]:
    """What is wrong with a tree, one sentence each; empty when the house stands."""
    modules = modules_of(root)
    names = frozenset(modules)
    wrong = [f"{p.name}: has no floor" for p in packages_of(root) if p.name not in FLOORS]
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        own = module.partition(".")[0]
        if own not in FLOORS:
            continue
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        graph[module] = set()
        for found in imports_of(path, package, names):
            top = found.module.partition(".")[0]
            place = f"{path.relative_to(root)}:{found.line}"
            if top == own:
                if found.module != module:
                    graph[module].add(found.module)
            elif top in FLOORS and top not in FLOORS[own].may_import:
                wrong.append(f"{place}: {own} must not import {top}")
            elif top in FOREIGN and own not in FOREIGN[top] and not (
                top == "redis" and path.stem in COMPOSITION_ROOTS
            ):  # fmt: skip
                wrong.append(f"{place}: {own} must not know {top}")
    wrong.extend(f"circle: {' → '.join(circle)}" for circle in circles(graph))
    return wrong + bad_names(root)


def bad_names(root: Path) -> list[str]:
    rooms = [*packages_of(root), *(root / n for n in ("tests", "benchmarks") if (root / n).is_dir())]
    paths = [path for top in rooms for path in (top, *top.rglob("*")) if path.is_dir() or path.suffix == ".py"]
    return [f"{path.relative_to(root)}: says nothing as a name" for path in paths if path.stem in BANNED_NAMES]


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Circles that a depth-first walk closes, each as the modules in order with the first one repeated."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        if module in trail:
            found.append([*trail[trail.index(module) :], module])
            return
        if module in done:
            return
        for imported in sorted(graph.get(module, ())):
            visit(imported, [*trail, module])
        done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found


def test_the_house_stands() -> None:
    assert violations(REPOSITORY) == []


def test_the_table_itself_only_goes_down() -> None:
    for name, own in FLOORS.items():
        assert own.may_import <= FLOORS.keys()
        assert name not in own.may_import
        assert all(FLOORS[other].floor <= own.floor for other in own.may_import)
    assert circles({name: set(own.may_import) for name, own in FLOORS.items()}) == []


def make_tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


SOUND = {
    "config/__init__.py": "",
    "config/settings.py": "import pydantic\n",
    "mailqueue/__init__.py": "",
    "mailqueue/message.py": "from config import settings\n",
    "mailqueue/queue.py": "import redis.asyncio\nfrom mailqueue import message\nfrom . import message as m\n",
    "relayd/__init__.py": "",
    "relayd/main.py": "import redis.asyncio\n",
    "relayd/listener/__init__.py": "from .verbs import V\n",
    "relayd/listener/verbs.py": "from aiosmtpd.smtp import SMTP\nfrom ..policy import P\n",
    "relayd/policy.py": "",
    "tests/test_x.py": "import delivery, relayd, redis\n",
}


def test_a_sound_tree_passes(tmp_path: Path) -> None:
    assert violations(make_tree(tmp_path, SOUND)) == []


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"config/load.py": "import mailqueue.message\n"}, "config/load.py:1: config must not import mailqueue"),
        ({"mailqueue/queue.py": "from relayd import policy\n"}, "mailqueue must not import relayd"),
        ({"mailqueue/queue.py": "def f():\n    from ipreputation import x\n"}, "queue.py:2: mailqueue must not import"),
        ({"delivery/a.py": "import importlib\nimportlib.import_module('relayd.policy')\n"}, "must not import relayd"),
        ({"delivery/a.py": "import aiosmtpd.smtp\n"}, "delivery must not know aiosmtpd"),
        ({"delivery/a.py": "from redis.asyncio import Redis\n"}, "delivery must not know redis"),
        ({"mailqueue/queue.py": "import dns.message\n"}, "mailqueue must not know dns"),
        ({"mailqueue/message.py": "from . import queue\n"}, "circle: mailqueue.message → mailqueue.queue → mailqueue"),
        ({"relayd/policy.py": "from relayd.listener.verbs import V\n"}, "circle: relayd.listener.verbs → "),
        ({"relayd/utils.py": ""}, "relayd/utils.py: says nothing"),
        ({"relayd/helpers/x.py": ""}, "relayd/helpers: says nothing"),
        ({"tests/common.py": ""}, "tests/common.py: says nothing"),
        ({"attic/x.py": ""}, "attic: has no floor"),
    ],
)
def test_each_fault_is_seen(tmp_path: Path, files: Mapping[str, str], complaint: str) -> None:
    found = violations(make_tree(tmp_path, {**SOUND, **files}))
    assert any(complaint in line for line in found), found
