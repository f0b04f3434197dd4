"""The search page's handlers, without a browser: what a visitor looks for, finds, marks, and shares."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qsl

import gradio as gr
import pytest
from PIL import Image

from foveal.errors import BadInput
from retrieval.archive import Archive
from retrieval.feedback import Feedback
from serve.app import create_app
from serve.demo.finding import SearchPage, Shown
from serve.demo.looking import Looking, region_of
from serve.demo.shared import may_write
from serve.engine import Engine
from serve.keys import Keys
from tests.serve.conftest import ColourEncoder, draw

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(pictures: Path, tmp_path: Path) -> Archive:
    """An archive of its own, because marks are kept beside it."""
    made = Archive.create(tmp_path / "depot", ColourEncoder())
    made.add(pictures, ColourEncoder())
    return made


@pytest.fixture
def page(store: Archive) -> SearchPage:
    engine: Engine = create_app(archive=store, encoder=ColourEncoder()).state.engine
    return SearchPage(engine)


def colours(shown: Shown) -> list[str]:
    return [Path(hit.uri).name.partition("-")[0] for hit in shown.hits]


async def test_minus_and_filter_and_words_narrow_a_search(page: SearchPage) -> None:
    plain = (await page.find(Looking(text="red blue", k=6)))[0]
    assert set(colours(plain)) == {"red", "blue"}
    minus = (await page.find(Looking(text="red blue", minus="blue", k=3)))[0]
    assert set(colours(minus)) == {"red"}
    found = (await page.find(Looking(text="red blue", where="camera = 'north'", k=12)))[0]
    assert len(found.hits) == 6
    worded = (await page.find(Looking(words="blue-6")))[0]
    assert worded.hits[0].uri.endswith("blue-6.png")
    assert worded.hits[0].keywords == ("blue-6",)


async def test_only_what_it_should_not_show_is_explained(page: SearchPage) -> None:
    shown, said, _, results, *_ = await page.find(Looking(minus="red"))
    assert (shown.hits, said) == ((), "")
    assert "nothing to look for yet" in results
    with pytest.raises(BadInput):
        await Looking(where="hour > 3").query(page.engine)


async def test_a_region_of_an_upload_is_what_hits_are_like(page: SearchPage, tmp_path: Path) -> None:
    draw(("red", (0, 0, 32, 48)), ("blue", (32, 0, 64, 48))).save(tmp_path / "both.png")
    shown = (await page.picture(str(tmp_path / "both.png"), Shown(Looking(k=3))))[0]
    assert isinstance(shown.asked.image, Image.Image)
    left, _, bar, *_ = await page.act("region", "0,0,0.45,1", shown, True)
    assert colours(left) == ["red"] * 3
    assert "width:45.00%" in bar
    assert colours((await page.act("region", "0.55,0,1,1", left, True))[0]) == ["blue"] * 3
    assert (await page.act("whole", "", left, True))[0].asked.region is None
    assert (await page.act("remove", "", left, True))[0].asked.empty


@pytest.mark.parametrize("text", ["", "0,0,1", "0,0,0.001,1", "nan,0,1,1", "0.9,0,0.1,1", "a,b,c,d"])
def test_no_region(text: str) -> None:
    assert region_of(text) is None


async def test_a_region_of_an_item_reaches_beyond_its_whole(page: SearchPage) -> None:
    first = (await page.find(Looking(text="green", k=1)))[0].hits[0]
    whole = (await page.find(Looking(like=first.id, k=2)))[0]
    assert whole.hits[0].similarity == pytest.approx(1)
    part = (await page.find(Looking(like=first.id, region=(0.13, 0.2, 0.35, 0.8), k=2)))[0]
    assert part.hits[0].similarity != pytest.approx(1)
    assert colours(part) == ["green", "green"]


async def test_marks_refine_and_are_kept_and_can_be_taken_back(page: SearchPage, store: Archive) -> None:
    shown = (await page.find(Looking(text="red blue", k=12)))[0]
    red, blue = (next(hit.id for hit in shown.hits if colour in hit.uri) for colour in ("red", "blue"))
    shown = (await page.act("right", blue, shown, True))[0]
    shown, *_, marks, _ = await page.act("wrong", red, shown, True)
    assert "1 right, 1 wrong" in marks
    kept = {(one.text, one.id): one.relevant for one in Feedback(store.path / "feedback.sqlite").read()}
    assert kept == {("red blue", blue): True, ("red blue", red): False}
    before = colours(shown)
    refined = (await page.act("refine", "", shown, True))[0]
    assert refined.asked.liked == (blue,)
    assert colours(refined)[:3] == ["blue"] * 3 != before[:3]
    again = (await page.act("right", red, refined, True))[0]
    assert (again.liked, again.disliked) == ((blue, red), ())
    taken = (await page.act("right", red, again, True))[0]
    assert taken.liked == (blue,)
    assert {one.id for one in Feedback(store.path / "feedback.sqlite").read()} == {blue}
    assert (await page.act("forget", "", taken, True))[0].asked.liked == ()


async def test_a_key_that_may_not_write_refines_and_keeps_nothing(page: SearchPage, store: Archive) -> None:
    shown = (await page.find(Looking(text="red blue", k=12)))[0]
    shown, *_, marks, _ = await page.act("right", shown.hits[0].id, shown, False)
    assert len(shown.liked) == 1
    assert "may not write" in marks
    assert Feedback(store.path / "feedback.sqlite").read() == []


def test_what_a_key_may_is_read_from_the_request(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.sqlite")
    looks, writes = keys.add("looks", ["pages"]), keys.add("writes", ["pages", "write"])

    def request(secret: str | None) -> gr.Request:
        key = None if secret is None else keys.admit(secret, "pages")
        return gr.Request(SimpleNamespace(scope={"foveal.key": key}))  # pyright: ignore[reportArgumentType]

    assert [may_write(request(secret)) for secret in (None, looks, writes)] == [True, False, True]


async def test_pages_follow_each_other_without_repeats(page: SearchPage) -> None:
    shown = (await page.find(Looking(text="red", k=5)))[0]
    while shown.cursor is not None:
        shown, _, _, results, *_ = await page.act("more", "", shown, True)
        assert ('data-do="more"' in results) == (shown.cursor is not None)
    assert len({hit.id for hit in shown.hits}) == len(shown.hits) == 12


async def test_near_duplicates_are_folded_and_said(page: SearchPage) -> None:
    shown, said, _, results, *_ = await page.find(Looking(text="red", k=12, fold=True))
    assert len(shown.hits) < 12
    assert "folded away" in said
    assert re.search(r"\+\d+ alike", results)


async def test_nothing_matches_and_the_nearest_all_the_same(page: SearchPage) -> None:
    shown, _, _, results, *_ = await page.find(Looking(words="zebra"))
    assert "Nothing here matches" in results
    assert "zebra" in results
    shown, said, *_ = await page.act("anyway", "", shown, True)
    assert shown.asked.anyway
    assert "although" in said or not shown.hits


async def test_hits_explain_themselves(page: SearchPage) -> None:
    results = (await page.find(Looking(text="red", minus="blue", words="red", k=2)))[3]
    for said in ("text &#x27;red&#x27;", "not text &#x27;blue&#x27;", "similarity", "words"):
        assert said in results


def test_a_link_carries_everything_but_an_upload() -> None:
    asked = Looking(
        "a red crate & more", "blue", "cam-1", "hour >= 3", "ab12", None, (0.1, 0.2, 0.5, 0.75), 0.3, 12, True, True,
        ("aa", "bb"), ("cc",), "night",
    )  # fmt: skip
    assert Looking.of_link(dict(parse_qsl(asked.link.lstrip("?")))) == asked
    assert Looking().link == "?"
    upload = replace(asked, like="", image=draw(("red", (0, 0, 9, 9))))
    assert Looking.of_link(dict(parse_qsl(upload.link.lstrip("?")))) == replace(asked, like="", region=None, share=0.5)


def test_a_link_that_says_nonsense_is_read_as_far_as_it_goes() -> None:
    values = {"q": "red", "k": "many", "share": "nan", "like": "../x", "region": "1", "right": "zz,ab", "fold": "yes"}
    assert Looking.of_link(values) == Looking("red", liked=("ab",))
    assert Looking.of_link({"k": "1e9"}).k == 60
