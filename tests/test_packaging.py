"""The release checks itself: pins, what the wheel contains, and that the documents say what the code says."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from mailqueue.events import _SPELLING, KINDS, Event
from tests.test_floors import FLOORS, packages_of

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PAGES = (
    "backup.md",
    "capacity.md",
    "configuration.md",
    "dkim.md",
    "events.md",
    "flow.md",
    "handbook.md",
    "install.md",
    "operations.md",
    "reference.md",
)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: list[str]) -> set[str]:
    return {normal(re.match(r"[A-Za-z0-9._-]+", line).group()) for line in requirements}  # type: ignore[union-attr]


def pins(path: Path) -> dict[str, list[str]]:
    """Name → hashes. Fails on whatever is neither an exact pin nor a hash."""
    found: dict[str, list[str]] = {}
    last = ""
    for line in path.read_text().splitlines():
        text = line.removesuffix("\\").strip()
        if match := re.fullmatch(r"([a-z0-9-]+)==[0-9a-z.]+(?: ; .+)?", text):
            last = match[1]
            found[last] = []
        else:
            assert re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", text), f"{path.name}: {line}"
            found[last].append(text)
    return found


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("requirements.txt", [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["build"]]),
        ("requirements-dev.txt", PROJECT["dependency-groups"]["dev"]),
    ],
)
def test_dependencies_are_pinned_with_hashes_and_nothing_else(file: str, wanted: list[str]) -> None:
    found = pins(REPOSITORY / file)
    assert names(wanted) <= found.keys(), "run make lock"
    assert all(found.values())


def test_both_files_agree_on_versions() -> None:
    lines = [(REPOSITORY / f).read_text().splitlines() for f in ("requirements.txt", "requirements-dev.txt")]
    versions = [dict(line.split(" ")[0].split("==") for line in some if "==" in line) for some in lines]
    assert {n: v for n, v in versions[0].items() if n in versions[1]}.items() <= versions[1].items()


def test_every_room_is_shipped_and_type_checked() -> None:
    rooms = {package.name for package in packages_of(REPOSITORY)}
    assert rooms <= FLOORS.keys()
    assert set(PROJECT["tool"]["mypy"]["packages"]) == rooms
    assert {name.rstrip("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]} == rooms


def test_the_wheel_contains_code_scripts_and_rules(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for package in packages_of(REPOSITORY):
        shutil.copytree(package, source / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        shipped = set(wheel.namelist())
        entries = next(wheel.read(n).decode() for n in shipped if n.endswith("entry_points.txt"))
        about = email.message_from_bytes(next(wheel.read(n) for n in shipped if n.endswith("/METADATA")))
    expected = {str(p.relative_to(source)) for p in source.glob("*/**/*") if p.suffix in (".py", ".lua", ".toml")}
    assert expected - {n for n in expected if "egg-info" in n or n.startswith("build/")} <= shipped
    assert "relayctl = relayctl.main:app" in entries
    assert about["License-Expression"] == "Apache-2.0"


def test_the_changelog_begins_with_this_version() -> None:
    newest = re.search(r"^## (\S+)", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == PROJECT["project"]["version"]


def test_every_make_target_says_what_it_does() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    targets = phony[1].split()
    for target in targets:
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target
    shown = subprocess.run(
        ["make", "-C", REPOSITORY], capture_output=True, text=True, check=True, env=plain_make()
    ).stdout
    assert all(f"make {target} " in shown for target in targets)


def plain_make() -> dict[str, str]:
    """Without what an outer make hands down."""
    return {k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k != "MFLAGS"}


def test_scripts_may_be_run() -> None:
    for path in (REPOSITORY / ".ci" / "run", *(REPOSITORY / "tools").iterdir()):
        assert os.access(path, os.X_OK), path
        subprocess.run(["bash", "-n", path], check=True)


def test_links_between_documents_lead_somewhere() -> None:
    pages = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} → {target}"


@pytest.mark.parametrize("directory", ["docs", "docs/es"])
class TestDocuments:
    def test_pages_exist(self, directory: str) -> None:
        assert {p.name for p in (REPOSITORY / directory).glob("*.md")} >= set(PAGES)

    def test_events_names_every_kind_and_field(self, directory: str) -> None:
        text = (REPOSITORY / directory / "events.md").read_text()
        fields = {_SPELLING.get(name, name) for name in Event.__slots__}
        assert {word for word in fields | set(KINDS) if f"`{word}`" not in text} == set()

    def test_example_events_are_events(self, directory: str) -> None:
        text = (REPOSITORY / directory / "events.md").read_text()
        block = re.search(r"```json\n(.*?)```", text, re.DOTALL)
        assert block is not None
        examples = block[1].replace("\n ", "").splitlines()
        assert len(examples) == 3
        for example in examples:
            event = Event.from_json(example)
            assert event.kind in KINDS
            assert re.fullmatch(r"[0-9a-v]{20}", event.id)
            assert Event.from_json(event.to_json()) == event
