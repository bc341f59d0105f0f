"""The handbook has a section for every alert, in both languages, and its commands are ones that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from benchmarks.alert_rules import rules
from benchmarks.drills import Drill, Line, drills, line
from relayctl.main import app
from tests.conftest import REPOSITORY

PAGES = [REPOSITORY / "docs" / "handbook.md", REPOSITORY / "docs" / "es" / "handbook.md"]
LABELS = {
    "handbook.md": ("Means", "At risk", "Look", "Do", "Wake", "Over when", "Drill"),
    "es/handbook.md": ("Significa", "En riesgo", "Mirar", "Hacer", "Despertar", "Terminó cuando", "Simulacro"),
}
both = pytest.mark.parametrize("page", PAGES, ids=["en", "es"])


def sections(page: Path) -> dict[str, str]:
    parts = re.split(r"^## (Tambo\w+)\n", page.read_text(), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def commands(page: Path) -> set[str]:
    """What is typed after relayctl, as far as it is the name of a verb."""
    text = page.read_text().replace("\n  ", " ")
    return {match.strip() for match in re.findall(r"relayctl((?: [a-z][a-z-]*){1,3})", text)}


@both
def test_every_alert_has_its_section_and_every_section_its_alert(page: Path) -> None:
    assert set(sections(page)) == {rule.alert for rule in rules()}


@both
def test_a_section_says_all_there_is_to_know(page: Path) -> None:
    labels = LABELS[str(page.relative_to(REPOSITORY / "docs"))]
    for alert, text in sections(page).items():
        for label in labels[:-1]:
            assert f"**{label}**" in text, (alert, label)
        severities = {rule.severity for rule in rules() if rule.alert == alert}
        head = text.partition("\n")[0]
        assert severities == set(re.findall(r"page|ticket", head)), (alert, head)


def test_the_runbook_of_an_alert_is_its_section() -> None:
    for rule in rules():
        assert rule.runbook == f"docs/handbook.md#{rule.alert.lower()}"


@both
def test_links_inside_the_page_lead_somewhere(page: Path) -> None:
    anchors = {name.lower() for name in sections(page)}
    assert set(re.findall(r"\(#(\w+)\)", page.read_text())) <= anchors


@both
def test_every_command_exists(page: Path) -> None:
    root = get_command(app)
    for words in commands(page):
        group = root
        for word in shlex.split(words):
            verbs = getattr(group, "commands", None)
            if verbs is None:
                break  # the rest is an argument
            assert word in verbs, f"relayctl {words}"
            group = verbs[word]


def test_drills_are_the_same_in_both_languages() -> None:
    """What is typed, what comes of it, and how soon; benchmarks/accept_handbook.py plays them."""
    one, other = map(drills, PAGES)
    assert one == other
    assert len(one) == sum("**Drill**" in text for text in sections(PAGES[0]).values()) >= 18


@pytest.mark.parametrize("drill", drills(PAGES[0]), ids=lambda drill: drill.alert)
def test_a_drill_begins_and_ends(drill: Drill) -> None:
    said = [line.when for line in drill.lines if line.when]
    if drill.alert == "TamboBouncesHigh":  # an hour must pass
        assert said == ["rings"]
    else:
        assert said in (["rings", "ends"], ["fires", "ends"]) or (not said and any(one.refused for one in drill.lines))
    assert bool(drill.alarm) == ("rings" in said), "an alarm with a name rings, an alert without one fires"


def test_what_stands_behind_a_command() -> None:
    assert line("a b; c      # rings within 90 s: x") == Line("a b; c", "rings", 90)
    assert line("a           # termina sola en 12 min: y") == Line("a", "ends", 720)
    assert line("a           # refused: 452") == Line("a", refused="452")
    assert line("# ends within 2 min by itself") == Line("", "ends", 120)
    assert line("printf 'a#b'  # within the hour") == Line("printf 'a#b'")


def test_both_pages_have_the_same_commands() -> None:
    one, other = (
        sorted(re.findall(r"relayctl [a-z]+(?: [a-z]+)?", page.read_text().replace("\n  ", " "))) for page in PAGES
    )
    assert one == other
