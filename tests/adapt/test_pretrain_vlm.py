"""The bundled VLM's recipe: questions follow from the truth, and packing many of them changes none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from adapt.pretrain import PATCH
from adapt.pretrain_data import SceneViews, render_scenes
from adapt.pretrain_dialogues import box_text, draw
from adapt.pretrain_vlm import ANSWER, BEGIN, END, IMAGE, PAD, QUESTION, SIDE, Reader, build_model, build_tokenizer
from foveal.world import render
from foveal.worldkit.catalogue import COLOURS, KINDS


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> SceneViews:
    folder = tmp_path_factory.mktemp("scenes") / "base"
    return SceneViews(render_scenes(folder, "base", 6, seed=3, size=224, workers=1))


@pytest.fixture(scope="module")
def reader(views: SceneViews, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    rng = np.random.default_rng(0)
    texts = [
        QUESTION.format(question) + ANSWER + f" {answer}"
        for i in range(len(views))
        for question, answer in draw(views.plain(i, 32, PATCH), 40, rng)
    ]
    tokenizer: Any = build_tokenizer(texts, tmp_path_factory.mktemp("tokenizer"))
    torch.manual_seed(0)
    ids = (tokenizer.convert_tokens_to_ids(word) for word in (IMAGE, PAD, BEGIN, END))
    return Reader(build_model(len(tokenizer), *ids), tokenizer, "cpu")


def test_answers_follow_from_the_truth(views: SceneViews) -> None:
    rng = np.random.default_rng(1)
    for i in range(len(views)):
        view = views.plain(i, 32, PATCH)
        kinds = [thing.kind for thing in view.things]
        for question, answer in draw(view, 60, rng):
            words = question.split()
            if words[:2] == ["where", "is"]:
                named = [t for t in view.things if question.endswith((f"the {t.kind}", f"the {t.phrase}"))]
                assert answer in [box_text(t.box) for t in named]
            elif words[:2] == ["is", "there"]:
                assert answer == ("yes" if any(question.endswith(f" {kind}") for kind in kinds) else "no")
            elif question == "how many things are there":
                assert answer == (["zero", "one", "two", "three", "four", "five", "six", "seven", "eight"])[len(kinds)]
            elif words[:2] == ["what", "colour"]:
                (thing,) = [t for t in view.things if question == f"what colour is the {t.kind}"]
                assert answer in COLOURS
                assert answer in thing.words


def test_wordings_are_those_of_the_world(views: SceneViews) -> None:
    """What the model is examined in, it has been taught in the same words."""
    rng = np.random.default_rng(2)
    taught = {_shape(q) for i in range(len(views)) for q, _ in draw(views.plain(i, 32, PATCH), 80, rng)}
    asked = {_shape(q.question) for seed in range(20) for q in render(seed, "base").questions}
    assert asked <= taught


def _shape(question: str) -> str:
    for kind in sorted(KINDS.values(), key=lambda kind: -len(kind.plural)):
        question = question.replace(kind.plural, "KINDS").replace(kind.name, "KIND")
    return question.replace("is there an ", "is there a ")


def test_each_packed_question_is_answered_as_if_asked_alone(reader: Reader, views: SceneViews) -> None:
    view = views.plain(0, SIDE, PATCH)
    dialogues = draw(view, 6, np.random.default_rng(3))
    reader.model.eval()
    pixels = torch.from_numpy(view.pixels)[None]
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        together = _packed_logits(reader, pixels, dialogues)
        for (question, answer), packed in zip(dialogues, together, strict=True):
            said = [*reader.ids(f" {answer}"), reader.end]
            ids = reader.ids(BEGIN + "USER: ") + [reader.tokenizer.convert_tokens_to_ids(IMAGE)] * (SIDE // PATCH) ** 2
            ids += reader.ids(QUESTION.format(question) + ANSWER) + said
            logits = reader.model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0]
            torch.testing.assert_close(packed, logits[-len(said) - 1 : -1], atol=2e-4, rtol=1e-4)


def _packed_logits(reader: Reader, pixels: torch.Tensor, dialogues: list[tuple[str, str]]) -> list[torch.Tensor]:
    packed = reader.pack([dialogues], (SIDE // PATCH) ** 2)
    model = reader.model.model.language_model
    seen = reader.features(pixels, learn=False)
    words = model.embed_tokens(packed["ids"])
    at = len(reader.before)
    embedded = torch.cat([words[:, :at], seen, words[:, at + seen.shape[1] :]], dim=1)
    hidden = model(
        inputs_embeds=embedded, attention_mask=packed["mask"], position_ids=packed["positions"]
    ).last_hidden_state
    rows = reader.model.lm_head(hidden[packed["targets"] >= 0])
    return list(rows.split([len(reader.ids(f" {answer}")) + 1 for _, answer in dialogues]))


def test_the_chat_template_writes_what_the_recipe_trained_on(reader: Reader) -> None:
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "is there a crate"}]},
        {"role": "assistant", "content": "yes"},
    ]
    text = reader.tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == f"{BEGIN}USER: {IMAGE}\nis there a crate ASSISTANT: yes{END}"
    assert reader.ids(text) == [
        *reader.before,
        reader.tokenizer.convert_tokens_to_ids(IMAGE),
        *reader.ids(QUESTION.format("is there a crate") + ANSWER),
        *reader.ids(" yes"),
        reader.end,
    ]
