"""Answers as they grow, with the bundled model: held to a schema, drawn by a seed, cut where they should be."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from foveal.errors import BadInput
from foveal.generation import Asking, Style, anything, cut, surely
from foveal.models import load_vlm
from foveal.vlms import TransformersVLM

ABOUT = "describe the picture"
SCHEMA = {
    "type": "object",
    "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 9}, "colour": {"enum": ["red", "blue"]}},
    "required": ["count", "colour"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def vlm() -> TransformersVLM:
    model = load_vlm("bundled:vlm")
    assert isinstance(model, TransformersVLM)
    return model


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    made = [Image.new("RGB", (320, 240), (120, 118, 110)) for _ in range(2)]
    made[0].paste((200, 30, 30), (60, 60, 140, 170))
    made[1].paste((30, 60, 210), (180, 40, 260, 200))
    return made


def test_what_is_heard_grows_to_the_answer_and_neighbours_do_not_matter(
    vlm: TransformersVLM, images: list[Image.Image]
) -> None:
    heard: dict[int, list[str]] = {0: [], 1: []}
    asked = [
        Asking(image, question, heard=lambda said, n=n: heard[n].append(said) is None)
        for n, (image, question) in enumerate(zip(images, (ABOUT, "how many things are there"), strict=True))
    ]
    replies = vlm.generate(asked)
    for number, one in enumerate(asked):
        assert replies[number].text == vlm.answer(one.image, one.question)
        assert heard[number][-1] == replies[number].text
        assert all(b.startswith(a) for a, b in zip(heard[number], heard[number][1:], strict=False))
        assert replies[number].whole
    assert replies[0].completion_tokens > replies[1].completion_tokens >= 2
    assert replies[0].prompt_tokens > 100  # the picture's among them


def test_who_hangs_up_ends_the_answer(vlm: TransformersVLM, images: list[Image.Image]) -> None:
    (whole,) = vlm.generate([Asking(images[0], ABOUT)])
    (reply,) = vlm.generate([Asking(images[0], ABOUT, heard=lambda said: len(said) < 8)])
    assert reply.completion_tokens < whole.completion_tokens
    assert whole.text.startswith(reply.text)


def test_answers_are_cut_at_tokens_and_at_stop_words(vlm: TransformersVLM, images: list[Image.Image]) -> None:
    (whole,) = vlm.generate([Asking(images[0], ABOUT)])
    (short,) = vlm.generate([Asking(images[0], ABOUT)], Style(max_tokens=2))
    assert (short.completion_tokens, short.whole) == (2, False)
    word = whole.text.split()[-1]
    heard: list[str] = []
    (stopped,) = vlm.generate([Asking(images[0], ABOUT, stops=(word,), heard=lambda said: heard.append(said) is None)])
    assert stopped.whole
    assert stopped.text == whole.text[: whole.text.index(word)].rstrip()
    assert word not in "".join(heard)


def test_the_same_seed_draws_the_same_answer(vlm: TransformersVLM, images: list[Image.Image]) -> None:
    def drawn(seed: int) -> str:
        return vlm.generate([Asking(images[0], ABOUT)], Style(temperature=2.0, seed=seed, max_tokens=24))[0].text

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(4)}) > 1


def test_an_answer_follows_its_schema(vlm: TransformersVLM, images: list[Image.Image]) -> None:
    style = Style(max_tokens=48, schema=json.dumps(SCHEMA))
    for reply in vlm.generate([Asking(image, ABOUT) for image in images], style):
        said = json.loads(reply.text)
        assert set(said) == {"count", "colour"}
        assert said["count"] in range(10)
        assert said["colour"] in ("red", "blue")
    (free,) = vlm.generate([Asking(images[0], ABOUT)], Style(max_tokens=64, schema=anything()))
    assert free.text.startswith("{")


@pytest.mark.parametrize("schema", ['{"type": "nope"}', "[1", '{"$ref": "#/nowhere"}'])
def test_a_schema_that_cannot_be_followed_is_refused(
    vlm: TransformersVLM, images: list[Image.Image], schema: str
) -> None:
    with pytest.raises(BadInput, match="schema"):
        vlm.generate([Asking(images[0], ABOUT)], Style(schema=schema))


def test_what_may_yet_become_a_stop_word_is_held_back() -> None:
    assert cut("one two END three", ["END", "two"]) == ("one", True)
    assert cut("one two", ["END"]) == ("one two", False)
    assert surely("one EN", ["END"]) == "one "
    assert surely("one END", ["ENDING"]) == "one "
    assert surely("caf\ufffd", []) == "caf"
