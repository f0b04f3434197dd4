"""The ask page's handlers, without a browser: about one picture, and about the archive with what speaks for it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from retrieval.archive import Archive
from serve.app import create_app
from serve.demo.ask import PICTURE, AskPage
from tests.serve.conftest import ColourEncoder, ColourTalker, draw

pytestmark = pytest.mark.anyio


@pytest.fixture
def page(archive: Archive) -> AskPage:
    return AskPage(create_app(archive=archive, encoder=ColourEncoder(), vlm=ColourTalker()).state.engine)


async def test_the_archive_answers_with_the_pictures_it_rests_on(page: AskPage) -> None:
    status, said = await page.ask_archive("is there something red", "", 3)
    assert "looked at 3 pictures" in status
    assert "<b>yes</b>" in said
    assert said.count("says so") == 2 * 3  # to see, and to hear
    assert said.count("<img") == 3


async def test_what_the_archive_does_not_hold_is_said(page: AskPage) -> None:
    _, said = await page.ask_archive("what colour is the thing", "hour > 100", 3)
    assert "does not hold the answer" in said
    assert "no image fits the filter" in said.lower()
    assert "fv-none" in said


async def test_mistakes_are_explained(page: AskPage) -> None:
    assert "kamera" in (await page.ask_archive("is it red", "kamera = 1", 3))[1]
    assert "Ask something" in (await page.ask_archive("", "", 3))[1]
    assert "Choose a picture" in (await page.ask("is it red", None))[3]
    assert "not an image" in (await page.choose(b"no picture"))[3]


async def test_a_talk_about_a_picture_goes_on(page: AskPage) -> None:
    file = io.BytesIO()
    draw(("red", (4, 6, 20, 30)), size=(80, 50)).save(file, "PNG")
    talk, *_, picture = await page.choose(file.getvalue())
    assert 'viewBox="0 0 80 50"' in picture
    talk, _, answers, _ = await page.ask("which colours are there", talk)
    talk, _, answers, picture = await page.ask("where is the red thing", talk)
    assert [turn[1] for turn in talk.turns] == ["red", "here"]
    assert answers.index("here") < answers.index("<b>red</b>")
    assert "red thing" in picture
    assert (await page.ask("", talk))[0] == talk


def test_without_an_archive_there_is_one_manner(tmp_path: Path) -> None:
    assert AskPage(create_app(vlm=ColourTalker()).state.engine).modes == [PICTURE]
