"""What `foveal eval vqa` keeps: each answer with its scores, which give the figures again, and a page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from adapt.dialogues import Dialogues, open_dialogues
from adapt.vlm_lessons import lessons
from adapt.vlm_score import evaluate, image_ids, load, score
from evals.measures import measures_of
from evals.results import read
from foveal.dataset import Dataset, Sample
from foveal.detections import Detections
from foveal.vlms import TransformersVLM
from tests.command import foveal
from tests.tiny_vlm import tiny_vlm

COLOURS = ("red", "blue")
TALK = (("human", "Which?"), ("gpt", "red"), ("human", "Sure?"), ("gpt", "yes"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"hf:{tiny_vlm(tmp_path_factory.mktemp('llava'), 'llava')}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Three questions about two pictures, and a box in each."""
    folder = tmp_path_factory.mktemp("data")
    lines: list[str] = []
    samples: list[Sample] = []
    for colour in COLOURS:
        path = folder / f"{colour}.png"
        image = Image.new("RGB", (80, 40), "white")
        ImageDraw.Draw(image).rectangle((0, 0, 39, 19), fill=colour)
        image.save(path)
        truth = Detections.build([[0, 0, 40, 20]], 1.0, ["box"], ("box",))
        samples.append(Sample(colour, path, 80, 40, truth))
        lines.append(json.dumps({"image": path.name, "question": "Which colour?", "answer": colour}))
    lines.append(json.dumps({"image": "blue.png", "question": "Is it full?", "answer": "no"}))
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n")
    Dataset.build(samples, ("box",)).write(folder / "boxes", "coco")
    return folder / "questions.jsonl", folder / "boxes"


@pytest.fixture
def asked(base: str, data: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> tuple[TransformersVLM, Dialogues]:
    """A model that knows what it says."""
    vlm, dialogues = load(base), open_dialogues(data)
    said = iter(["Red", "bluee", "yes", "[0.00, 0.00, 0.50, 0.50]", "[0.00, 0.00, 0.20, 0.50] and more"])
    monkeypatch.setattr(vlm, "replies", lambda questions, most: [next(said) for _ in questions])
    return vlm, dialogues


def test_items_say_what_was_asked_and_answered(asked: tuple[TransformersVLM, Dialogues]) -> None:
    measured = evaluate(*asked)
    items = measured.items
    assert items["id"] == ["red.png", "blue.png", "blue.png#1", "boxes/images/red.png", "boxes/images/blue.png"]
    assert items["exact_match"] == [1, 0, 0, None, None]
    assert items["anls"] == [1, pytest.approx(0.8), 0, None, None]
    assert items["iou"] == [None, None, None, pytest.approx(1), pytest.approx(0.4)]
    assert items["located"] == [None, None, None, 1, 0]
    assert items["phrase"] == [None, None, None, "box", "box"]
    assert items["true_boxes"][3] == [[0, 0, 0.5, 0.5]]
    np.testing.assert_allclose(items["said_boxes"][4], [[0, 0, 0.2, 0.5]])
    assert measured.figures == {
        "exact_match": pytest.approx(1 / 3),
        "anls": pytest.approx(0.6),
        "grounding_iou": pytest.approx(0.7),
        "located": 0.5,
        "count": 5,
    }
    assert measured.slices == {"question": ["which colour?", "which colour?", "is it", None, None]}


def test_later_questions_come_after_the_true_turns_before_them(
    base: str, data: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = [{"from": who, "value": text} for who, text in TALK]
    file = data[0].parent / "talk.jsonl"
    file.write_text(json.dumps({"image": "red.png", "conversations": talk}) + "\n")
    vlm, heard = load(base), list[tuple[tuple[str, str], ...]]()
    monkeypatch.setattr(vlm, "replies", lambda asked, most: [heard.append(one[1]) or "no" for one in asked])
    assert evaluate(vlm, open_dialogues([file])).items["question"] == ["Which?", "Sure?"]
    assert heard == [(), (("Which?", "red"),)]


def test_an_adaptation_sees_the_same(asked: tuple[TransformersVLM, Dialogues]) -> None:
    vlm, dialogues = asked
    validation = score(vlm, lessons(vlm, dialogues), 8)
    assert validation.figures["anls"] == pytest.approx(0.6)
    assert "count" not in validation.figures
    assert [example.value for example in validation.examples] == pytest.approx([1, 0.8, 0, 1, 0.4])
    assert [example.path.name for example in validation.examples] == [
        "red.png", "blue.png", "blue.png", "red.png", "blue.png",
    ]  # fmt: skip


def test_what_is_kept_gives_the_figures_again(base: str, data: tuple[Path, Path], tmp_path: Path) -> None:
    kept = tmp_path / "vqa.json"
    words = [word for source in data for word in ("--data", str(source))]
    shown = foveal("eval", "vqa", *words, "--vlm", base, "--max-tokens", "3", "--out", str(kept), "--json")
    assert shown.code == 0, shown.err
    result = read(kept)
    assert result.data.fingerprint == open_dialogues(data).fingerprint
    assert (result.task, result.settings, len(result)) == ("vqa", {"max_tokens": 3}, 5)
    measures = measures_of(result)
    assert set(measures) == {"exact_match", "anls", "grounding_iou", "located"}
    for name, measure in measures.items():
        assert measure.of(result.items, np.ones((1, 5)))[0] == pytest.approx(shown.json[name])
    page = kept.with_suffix(".html").read_text()
    assert "<h1>VQA</h1>" in page
    assert "wrong 2 of 2 times" in page
    assert page.count("<b>truth</b> 1 box") == 2


def test_images_are_named_from_the_folder_that_holds_them_all() -> None:
    paths = [Path("/a/b/1.png"), Path("/a/c/1.png")]
    assert list(image_ids(paths).values()) == ["b/1.png", "c/1.png"]
    assert list(image_ids(paths[:1]).values()) == ["1.png"]
