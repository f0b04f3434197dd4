"""Questions to an archive of coloured pictures, answered by a model that sees their colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evals.vqa import normalised
from foveal.detections import FloatArray
from foveal.errors import BadImage, BadInput
from retrieval.archive import Archive
from retrieval.grounding import AnswersMany, answer, combined, subject
from retrieval.query import SearchQuery
from retrieval.results import Hit, Results
from tests.retrieval.pixels import PixelEncoder, write_images

PALETTE = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0), "white": (255,) * 3}


class Eye:
    """Says which colour a picture is, or whether it is the one asked for."""

    name = "eye"
    fingerprint = "eye-1"

    def __init__(self) -> None:
        self.calls = 0

    def answer(self, image: Image.Image, question: str, max_tokens: int = 64) -> str:
        self.calls += 1
        mean = np.asarray(image, dtype=np.float32).mean(axis=(0, 1))
        seen = min(PALETTE, key=lambda name: float(np.abs(mean - PALETTE[name]).sum()))
        asked = [name for name in PALETTE if name in question.split()]
        return ("Yes." if seen == asked[0] else "No.") if asked else seen

    def locate(self, image: Image.Image, phrase: str, max_tokens: int = 128) -> FloatArray:
        return np.zeros((0, 4), np.float32)


class Eyes(Eye):
    """The same, several at a time."""

    def replies(
        self, asked: Sequence[tuple[Image.Image, Sequence[tuple[str, str]], str]], max_tokens: int = 64
    ) -> list[str]:
        said = [self.answer(image, question, max_tokens) for image, _, question in asked]
        self.calls = 1
        return said


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    folder = tmp_path_factory.mktemp("grounding")
    write_images(folder / "images", 24)
    made = Archive.create(folder / "archive", PixelEncoder())
    made.add([folder / "images"], PixelEncoder())
    return made


def test_an_answer_cites_the_images_it_rests_on(archive: Archive) -> None:
    vlm = Eye()
    found = answer("is there a blue", archive, PixelEncoder(), vlm, k=3)
    assert (found.searched, found.text, found.nothing, vlm.calls) == ("blue", "Yes.", False, 3)
    assert [c.answer for c in found.citations] == ["Yes."] * 3
    assert all(c.supports and c.uri.endswith(".png") and c.reason is None for c in found.citations)
    assert sum(c.weight for c in found.citations) == pytest.approx(1)
    assert found.agreement == pytest.approx(1)
    hits = archive.search(SearchQuery(text="blue", k=3), PixelEncoder())
    assert [(c.id, c.similarity, c.probability) for c in found.citations] == [
        (hit.id, hit.similarity, hit.probability) for hit in hits
    ]


def test_a_model_that_takes_several_questions_gets_them_in_one_call(archive: Archive) -> None:
    eyes = Eyes()
    assert isinstance(eyes, AnswersMany)
    assert not isinstance(Eye(), AnswersMany)
    assert answer("what is it", archive, PixelEncoder(), eyes, about="green").text == "green"
    assert eyes.calls == 1


def test_the_nearer_image_has_the_greater_vote(archive: Archive) -> None:
    found = answer("what is it", archive, PixelEncoder(), Eye(), about="yellow", k=8)
    weights = [c.weight for c in found.citations]
    assert weights == sorted(weights, reverse=True)
    assert found.text == "yellow"
    assert {c.supports for c in found.citations if c.answer != "yellow"} <= {False}


@pytest.mark.parametrize(("question", "text"), [("is there a blue", "no"), ("what colour is the blue", "")])
def test_what_the_archive_does_not_hold_is_said(archive: Archive, question: str, text: str) -> None:
    found = answer(question, archive, PixelEncoder(), Eye(), filter="width > 4000")
    assert found.nothing
    assert (found.text, found.citations) == (text, ())
    assert found.reason is not None
    assert "filter" in found.reason


def test_images_that_cannot_be_seen_are_cited_with_the_reason(archive: Archive) -> None:
    first = archive.search(SearchQuery(text="red", k=1), PixelEncoder())[0].id

    def picture(hit: Hit) -> Image.Image:
        if hit.id == first:
            raise BadImage("it is gone")
        return Image.new("RGB", (8, 8), "red")

    found = answer("is there a red", archive, PixelEncoder(), Eye(), k=2, picture=picture)
    assert [(c.answer, c.reason) for c in found.citations] == [(None, "it is gone"), ("Yes.", None)]
    assert [c.weight for c in found.citations] == [0, 1]
    assert found.text == "Yes."

    def never(hit: Hit) -> Image.Image:
        raise BadImage("it is gone")

    lost = answer("is there a red", archive, PixelEncoder(), Eye(), picture=never)
    assert (lost.text, lost.nothing) == ("", False)
    assert lost.reason == "none of the images that match could be looked at"


def test_a_lost_file_is_seen_by_its_thumbnail(tmp_path: Path) -> None:
    for path in write_images(tmp_path / "images", 3, colour="blue"):
        Image.new("RGB", (64, 64), "blue").save(path)
    made = Archive.create(tmp_path / "archive", PixelEncoder())
    made.add([tmp_path / "images"], PixelEncoder())
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    assert answer("is there a blue", made, PixelEncoder(), Eye()).text == "Yes."


@pytest.mark.parametrize("question", ["", " ", "x" * 2001])
def test_no_question_and_too_long_ones_are_refused(archive: Archive, question: str) -> None:
    with pytest.raises(BadInput, match="question"):
        answer(question, archive, PixelEncoder(), Eye())
    with pytest.raises(BadInput, match="k lies outside"):
        answer("is there a red", archive, PixelEncoder(), Eye(), k=0)


@pytest.mark.parametrize(
    ("question", "about"),
    [
        ("what colour is the drone", "drone"),
        ("How many red crates are there?", "red crates"),
        ("is there a crate", "crate"),
        ("what state is the red crate in", "red crate"),
        ("is the crate left of the drum", "crate left of the drum"),
        ("what is the colour of the drone?", "drone"),
        ("Where are the forklifts?", "forklifts"),
        ("which camera is on the wall", "camera on the wall"),
        ("how many people are in the room", "people in the room"),
        ("wo ist die Kiste", "wo ist die Kiste"),
        ("what?", "what"),
    ],
)
def test_what_a_question_is_about(question: str, about: str) -> None:
    assert subject(question) == about


@given(st.text(min_size=1, max_size=60).filter(str.strip))
def test_every_question_is_about_something(question: str) -> None:
    assert subject(question) or not question.strip(" ?!.\t\n\r\f\v") or not question.split()


weighted = st.lists(
    st.tuples(st.sampled_from(["yes", "No.", "two", "3", "red", "Red"]), st.floats(0.01, 1)), min_size=1, max_size=8
)


@given(weighted)
def test_the_vote_is_one_of_the_answers_whatever_their_order(said: list[tuple[str, float]]) -> None:
    text, agreement = combined([s for s, _ in said], [w for _, w in said])
    assert text in {s for s, _ in said}
    assert 0 < agreement <= 1 + 1e-9
    turned = said[::-1]
    again, _ = combined([s for s, _ in turned], [w for _, w in turned])
    shares: dict[str, float] = {}
    for s, w in said:
        shares[normalised(s)] = shares.get(normalised(s), 0) + w
    if len(set(shares.values())) == len(shares):
        assert normalised(again) == normalised(text)


def test_numbers_give_the_median_and_words_the_majority() -> None:
    assert combined(["2", "two", "90"], [0.3, 0.3, 0.4]) == ("2", pytest.approx(0.6))
    assert combined(["2", "3", "90"], [0.3, 0.3, 0.4])[0] == "3"
    assert combined(["red", "blue", "Red."], [0.3, 0.4, 0.2])[0] == "red"
    assert combined([], []) == ("", 0.0)
    assert combined(["no", "Yes.", "no"], [0.5, 0.1, 0.4], anywhere=True) == ("Yes.", pytest.approx(0.1))
    assert combined(["no", "Yes.", "no"], [0.5, 0.1, 0.4])[0] == "no"


def test_images_that_do_not_show_the_thing_have_no_vote(archive: Archive) -> None:
    vlm = Eyes()
    found = answer("what colour is the blue?", archive, PixelEncoder(), vlm, k=8)
    assert (found.text, found.agreement, found.nothing) == ("blue", pytest.approx(1), False)
    assert {c.shows for c in found.citations} == {True, False}
    assert all((c.answer is not None, c.weight > 0) == (c.shows, c.shows) for c in found.citations)
    unchecked = answer("what colour is the blue?", archive, PixelEncoder(), Eye(), k=8, check=False)
    assert {c.shows for c in unchecked.citations} == {None}
    assert all(c.answer is not None for c in unchecked.citations)


@pytest.mark.parametrize(("question", "text"), [("is there a blue", "No."), ("what colour is the blue", "")])
def test_what_the_model_sees_nowhere_is_not_there(archive: Archive, question: str, text: str) -> None:
    found = answer(question, archive, PixelEncoder(), Eye(), filter="colour = 'red'", k=2)
    assert found.nothing
    assert found.reason == "the model sees no 'blue' in the 2 images that match best"
    assert (found.text, len(found.citations)) == (text, 2)


def test_the_model_looks_even_where_the_search_finds_nothing(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    def search(query: SearchQuery, encoder: PixelEncoder) -> Results:
        found = Archive.search(archive, query, encoder)
        hits = found.hits if query.anyway else ()
        return Results(hits, kept=found.kept, reason="no image shows 'blue'")

    monkeypatch.setattr(archive, "search", search)
    seen = answer("is there a blue", archive, PixelEncoder(), Eye())
    assert (seen.text, seen.nothing, seen.reason) == ("Yes.", False, None)
    trusted = answer("is there a blue", archive, PixelEncoder(), Eye(), check=False)
    assert (trusted.text, trusted.nothing, trusted.reason) == ("no", True, "no image shows 'blue'")
    both = answer("is there a blue", archive, PixelEncoder(), Eye(), check=False, anyway=True)
    assert (both.text, both.nothing) == ("Yes.", True)
