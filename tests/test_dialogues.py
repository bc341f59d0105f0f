"""Golden dialogues: what is said is answered so, whether it comes by command, pipelined, octet by octet or whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.listening import run
from tests.story import FEEDINGS, Story, play, stories

STORIES = stories()


@pytest.mark.parametrize("feeding", FEEDINGS)
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_the_same_answers_however_it_is_fed(story: Story, feeding: str, request: pytest.FixtureRequest) -> None:
    certificate = request.getfixturevalue("certificate") if story.terms.get("tls") else None
    files = (str(certificate.certificate), str(certificate.key)) if certificate else None
    run(play(story, feeding, files))


def test_there_are_enough_of_them_and_each_says_what_it_is() -> None:
    assert len(STORIES) >= 40
    assert all(story.title.endswith(".") for story in STORIES)
    assert all(len(story.turns) > 1 for story in STORIES)
    assert Path(__file__).with_name("dialogues").is_dir()
