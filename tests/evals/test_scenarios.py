"""Scenario suites: what they may say, what holds their pictures fast, and verdicts worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from evals.pages import page
from evals.results import Data, Stopwatch, Subject
from evals.scenario_form import Detect, Search
from evals.scenario_growth import Draft, grow
from evals.scenario_judging import Found, Subjects, judge_boxes
from evals.scenario_suite import Suite, load
from evals.scenarios import in_words, measure
from foveal.detections import Detections, FloatArray
from foveal.errors import BadInput, ConfigError, FovealError, IntegrityError

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
NAMES = tuple(COLOURS)


class Painter:
    """Sees one box over a whole picture, of its mean colour, as sure as that colour is pure."""

    name, fingerprint, dimension, logit_scale = "painter", "0", 3, 5.0

    def detect(self, images: Sequence[Image.Image], threshold: float) -> list[Detections]:
        found: list[Detections] = []
        for image in images:
            mean = np.asarray(image).reshape(-1, 3).mean(axis=0)
            box = [0, 0, image.width, image.height]
            boxes = Detections.build([box], min(mean.max() / 255, 1), [int(mean.argmax())], NAMES)
            found.append(boxes[boxes.scores >= threshold])
        return found

    def encode_images(self, images: Sequence[Image.Image]) -> FloatArray:
        return _unit([np.asarray(image).reshape(-1, 3).mean(axis=0) for image in images])

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        return _unit([[name in text for name in NAMES] for text in texts])

    def answer(self, image: Image.Image, question: str, max_tokens: int = 64) -> str:
        return f"The {NAMES[int(np.asarray(image).reshape(-1, 3).mean(axis=0).argmax())]}."

    def locate(self, image: Image.Image, phrase: str, max_tokens: int = 128) -> FloatArray:
        return np.zeros((0, 4), np.float32)


def _unit(rows: Sequence[Any]) -> FloatArray:
    values = np.asarray(rows, dtype=np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9)


PAINTER = Painter()
EVERYTHING = Subjects(PAINTER.detect, NAMES, PAINTER, PAINTER)


def paint(path: Path, colour: str, strength: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), tuple(round(strength * v) for v in COLOURS[colour])).save(path)


def case(name: str, expect: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "name": name, "expect": expect, "severity": "major", "owner": "me", "why": "it fell down once",
        "added": "2026-01-02", **({} if "slice" in more else {"images": ["red.png"]}), **more,
    }  # fmt: skip


def suite(folder: Path, *cases: dict[str, Any], lock: bool = True, **head: Any) -> Suite:
    for name in NAMES:
        paint(folder / f"{name}.png", name)
    file = folder / "suite.yaml"
    file.write_text(yaml.safe_dump({**head, "cases": list(cases)}, sort_keys=False))
    loaded = load(file)
    if lock:
        loaded.write_lock()
    return loaded


@pytest.mark.parametrize(
    ("expect", "passed", "margin"),
    [
        ({"detect": {"present": ["red"], "score": 0.4}}, 1, 0.6),
        ({"detect": {"present": ["blue"], "score": 0.4}}, 0, -0.4),
        ({"detect": {"absent": ["red"], "score": 0.4}}, 0, -0.6),
        ({"detect": {"absent": ["blue"], "score": 0.4}}, 1, 0.4),
        ({"detect": {"count": {"red": 1}, "score": 0.4}}, 1, 0.4),
        ({"detect": {"count": {"red": {"min": 2}}, "score": 0.4}}, 0, -0.4),
        ({"detect": {"boxes": [{"class": "red", "box": [0, 0, 8, 6]}]}}, 1, 0.25),
        ({"detect": {"boxes": [{"class": "red", "box": [0, 0, 8, 6], "iou": 0.9}]}}, 0, -0.15),
        ({"detect": {"clear": [{"class": "red", "box": [0, 0, 8, 6]}]}}, 0, -0.25),
        ({"detect": {"clear": [{"class": "blue", "box": [0, 0, 8, 6]}]}}, 1, 0.5),
        ({"classify": {"class": "red", "among": ["red", "blue"]}}, 1, (np.exp(5) - 1) / (np.exp(5) + 1)),
        (
            {"classify": {"class": "red", "among": ["red", "blue"], "confidence": 0.999}},
            0,
            1 / (1 + np.exp(-5)) - 0.999,
        ),
        ({"classify": {"class": "blue", "among": ["red", "blue"]}}, 0, -(np.exp(5) - 1) / (np.exp(5) + 1)),
        ({"answer": {"question": "which colour?", "accepted": ["blue", "red"]}}, 1, 0.0),
        ({"answer": {"question": "which colour?", "accepted": ["rod"]}}, 0, -1 / 3),
        ({"answer": {"question": "which colour?", "accepted": ["the reds."], "anls": 0.8}}, 1, 8 / 9 - 0.8),
    ],
)
def test_a_verdict_and_its_margin(tmp_path: Path, expect: dict[str, Any], passed: int, margin: float) -> None:
    found = measure(suite(tmp_path, case("one", expect)), EVERYTHING)
    assert found.items["passed"] == [passed]
    assert found.items["margin"] == [pytest.approx(margin, abs=1e-5)]
    assert found.items["reason"][0]


def test_counting_looks_at_the_box_that_is_one_too_many() -> None:
    found = Detections.build([[0, 0, 9, 9]] * 3, [0.9, 0.6, 0.2], ["red", "red", "red"], NAMES)
    seen = judge_boxes(Detect(count={"red": 1}, score=0.3), found)
    assert (seen.held, seen.margin) == (False, pytest.approx(-0.3))
    assert "2 red, at most 1" in seen.reason
    assert judge_boxes(Detect(count={"red": 2}, score=0.3), found).margin == pytest.approx(0.1)


def test_searches_find_within_so_many_or_nothing(tmp_path: Path) -> None:
    loaded = suite(
        tmp_path,
        case("found", {"search": {"text": "red", "within": 4}}),
        case("late", {"search": {"text": "red", "within": 1}}),
        case("never", {"search": {"text": "green", "within": 4}}),
        case("none", {"search": {"text": "yeti", "nothing": True}}, images=[]),
        case("some", {"search": {"text": "red", "nothing": True}}, images=[]),
    )
    digest = loaded.contents()["found"]["red.png"]

    def search(asked: Search) -> Found:
        if asked.text == "yeti":
            return Found((), (), "nothing is near enough")
        return Found(("0", digest if asked.text == "red" else "1"), ("a.png", "b.png"))

    found = measure(loaded, Subjects(search=search))
    assert found.items["passed"] == [1, 0, 0, 1, 0]
    assert found.items["margin"] == [0.5, -1.0, -1.0, 1.0, -1.0]
    assert "not among the first 2 found; first is a.png" in found.items["reason"][2]


def test_a_share_of_the_pictures_may_be_enough(tmp_path: Path) -> None:
    three = [f"{name}.png" for name in NAMES]
    asked = {"detect": {"absent": ["blue"], "score": 0.5}}
    loaded = suite(
        tmp_path,
        case("all", asked, images=three),
        case("most", asked, images=three, threshold=0.6, severity="blocker"),
    )
    found = measure(loaded, EVERYTHING)
    assert found.items["passed"] == [0, 1]
    assert found.items["margin"] == [pytest.approx(-0.5), pytest.approx(0.5)]
    assert found.items["seen"][0][0]["image"] == "blue.png"
    assert "2 of 3 pictures hold, 3 needed" in found.items["reason"][0]
    assert found.figures["by_severity"] == {
        "blocker": {"cases": 1, "passed": 1, "pass_rate": 1.0},
        "major": {"cases": 1, "passed": 0, "pass_rate": 0.0},
    }
    assert (found.figures["pass_rate"], found.figures["blockers_failed"]) == (0.5, 0)


def test_what_does_not_always_hold_is_flaky_and_does_not_pass(tmp_path: Path) -> None:
    turns = iter([0.9, 0.9, 0.1, 0.9, 0.9, 0.9])

    def moody(images: Sequence[Image.Image], threshold: float) -> list[Detections]:
        return [Detections.build([[0, 0, 8, 8]], next(turns), ["red"], NAMES)]

    asked = {"detect": {"present": ["red"], "score": 0.5}}
    loaded = suite(tmp_path, case("a", asked, severity="blocker"), case("b", asked))
    found = measure(loaded, Subjects(moody), repeats=3)
    assert found.items["flaky"] == [1, 0]
    assert found.items["passed"] == [0, 1]
    assert found.items["held"] == [pytest.approx(2 / 3), 1.0]
    assert (found.figures["flaky"], found.figures["blockers_failed"]) == (1, 1)


def test_noise_shows_what_holds_by_a_hair(tmp_path: Path) -> None:
    paint(tmp_path / "edge.png", "red", 0.5)
    bar = 128 / 255  # what the picture has exactly
    asked = case("edge", {"detect": {"present": ["red"], "score": bar}}, images=["edge.png"])
    loaded = suite(tmp_path, asked, case("plain", {"detect": {"present": ["red"]}}))
    assert measure(loaded, EVERYTHING, repeats=6).figures["flaky"] == 0
    shaken = measure(loaded, EVERYTHING, repeats=6, noise=2)
    assert shaken.items["flaky"] == [1, 0]
    assert measure(loaded, EVERYTHING, repeats=6, noise=2).items == shaken.items


def test_pictures_are_held_fast(tmp_path: Path) -> None:
    asked = {"detect": {"present": ["red"]}}
    loaded = suite(tmp_path, case("one", asked), case("two", asked, images=["red.png", "blue.png"]), lock=False)
    with pytest.raises(BadInput, match="foveal scenarios lock"):
        loaded.verify()
    loaded.write_lock()
    load(loaded.path).verify()
    paint(tmp_path / "blue.png", "green")
    with pytest.raises(IntegrityError, match=r"case 'two': image blue\.png has changed") as error:
        load(loaded.path).verify()
    assert "case 'one'" not in str(error.value)
    (tmp_path / "blue.png").unlink()
    with pytest.raises(BadInput, match=r"case 'two': image 'blue\.png' is not there"):
        load(loaded.path)
    loaded = suite(tmp_path, case("two", asked), case("three", asked), lock=False)
    with pytest.raises(IntegrityError, match=r"image blue.png is missing; case 'three' is new"):
        loaded.verify()
    loaded.lock_path.write_text("{}")
    with pytest.raises(IntegrityError, match="damaged"):
        loaded.verify()


def test_the_fingerprint_follows_pictures_and_expectations(tmp_path: Path) -> None:
    first = suite(tmp_path, case("one", {"detect": {"present": ["red"]}})).fingerprint
    assert suite(tmp_path, case("one", {"detect": {"present": ["red"]}})).fingerprint == first
    assert suite(tmp_path, case("one", {"detect": {"present": ["blue"]}})).fingerprint != first
    other = suite(tmp_path, case("one", {"detect": {"present": ["red"]}}))
    paint(tmp_path / "red.png", "red", 0.9)
    assert load(other.path).fingerprint != first


def test_slices_follow_the_metadata(tmp_path: Path) -> None:
    lines: list[str] = []
    for number, (name, light) in enumerate([("red", "day"), ("blue", "night"), ("green", "night")]):
        paint(tmp_path / "data" / f"{number}.png", name)
        lines.append(json.dumps({"image": f"{number}.png", "caption": name, "light": light}))
    (tmp_path / "data" / "captions.jsonl").write_text("\n".join(lines))
    asked = {"detect": {"absent": ["red"], "score": 0.5}}
    loaded = suite(tmp_path, case("night", asked, slice={"light": "night"}), data="data")
    assert [sample.id for sample in loaded.pictures["night"]] == ["1.png", "2.png"]
    assert measure(loaded, EVERYTHING).figures["pass_rate"] == 1.0
    for wrong, said in (
        ({"lite": "night"}, "no metadata 'lite'.*one of light"),
        ({"light": "dusk"}, "one of day, night"),
    ):
        with pytest.raises(BadInput, match=said):
            suite(tmp_path, case("night", asked, slice=wrong), data="data")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"severity": "huge"},
            r"case 'one': severity does not fit; expected 'blocker', 'major' or 'minor'; received 'huge'",
        ),
        ({"sverity": "minor"}, r"case 'one' has no key 'sverity'.*Did you mean severity"),
        ({"expect": {"detect": {"presnt": ["red"]}}}, r"'expect.detect.presnt'.*Did you mean expect.detect.present"),
        ({"expect": {"detect": {}}}, "expect.detect does not fit; expected one of present, absent, count"),
        ({"expect": {}}, "exactly one of detect, classify, search, answer"),
        ({"expect": {"detect": {"boxes": [{"class": "red", "box": [5, 5, 1, 9]}]}}}, r"boxes\.0.*x1 < x2"),
        ({"expect": {"classify": {"class": "red"}}}, "classes to choose from.*among"),
        ({"expect": {"classify": {"class": "rod", "among": ["red", "blue"]}}}, "'rod' cannot be chosen.*red, blue"),
        ({"images": []}, "one of images and slice is needed"),
        ({"images": ["redd.png"]}, "case 'one': image 'redd.png' is not there"),
        ({"slice": {"light": "day"}, "images": []}, "slice needs the suite's `data`"),
        ({"owner": None}, "owner does not fit"),
        ({"threshold": 1.5}, "threshold does not fit; expected less than or equal to 1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(FovealError, match=said):
        suite(tmp_path, {**case("one", {"detect": {"present": ["red"]}}), **change})


def test_names_must_differ_and_classes_be_known(tmp_path: Path) -> None:
    one = case("one", {"detect": {"present": ["red"]}})
    with pytest.raises(ConfigError, match="two cases are called 'one'"):
        suite(tmp_path, one, one)
    with pytest.raises(ConfigError, match="one of cases, data, suite"):
        suite(tmp_path, one, dta="x")
    with pytest.raises(BadInput, match=r"case 'one': expect.detect names 'yeti'.*one of red, green, blue"):
        measure(suite(tmp_path, case("one", {"detect": {"absent": ["yeti"]}})), EVERYTHING)
    loaded = suite(tmp_path, one, case("two", {"answer": {"question": "?", "accepted": ["red"]}}))
    with pytest.raises(BadInput, match=r"'two' is for answer.*--vlm REF.*--only detect"):
        measure(loaded, Subjects(PAINTER.detect))
    assert measure(loaded.only(["detect"]), Subjects(PAINTER.detect)).figures["cases"] == 1
    assert [one.name for one in loaded.only(["two"]).cases] == ["two"]
    with pytest.raises(BadInput, match="no case 'three'"):
        loaded.only(["three"])


def draft(folder: Path, colour: str, *, removed: bool = False) -> Draft:
    paint(folder / f"{colour}.png", colour)
    box = Detections.build([[0, 0, 8, 8]], 1.0, [colour], NAMES)
    none = Detections.empty(NAMES)
    return Draft(folder / f"{colour}.png", none if removed else box, box if removed else none)


def test_corrections_become_cases_and_the_rest_of_the_file_stays(tmp_path: Path) -> None:
    loaded = suite(tmp_path / "suite", case("one", {"detect": {"present": ["red"]}}))
    text = "# what must not fail\n" + loaded.path.read_text()
    loaded.path.write_text(text)
    drafts = [draft(tmp_path / "photos", "green"), draft(tmp_path / "photos", "blue", removed=True)]
    names = grow(loaded.path, drafts, owner="me", severity="blocker", source="job 7")
    assert names == ["green: must find 1 green", "blue: wrongly found 1 blue"]
    assert loaded.path.read_text().startswith(text.rstrip())
    grown = load(loaded.path)
    grown.verify()
    assert [one.severity for one in grown.cases] == ["major", "blocker", "blocker"]
    assert {sample.path.parent.name for sample in grown.samples()} == {"suite", "suite-images"}
    (tmp_path / "photos" / "green.png").unlink()  # the suite has its own copy
    assert measure(grown, EVERYTHING).items["passed"] == [1, 1, 0]
    assert grow(loaded.path, drafts[1:], owner="me", severity="blocker", source="job 7") == []


def test_a_suite_grows_from_nothing_and_may_leave_pictures_where_they_are(tmp_path: Path) -> None:
    file = tmp_path / "new" / "suite.yaml"
    assert len(grow(file, [draft(tmp_path, "red")], owner="me", severity="minor", source="x", copy=False)) == 1
    loaded = load(file)
    loaded.verify()
    assert loaded.pictures["red: must find 1 red"][0].path == (tmp_path / "red.png").resolve()
    assert not (file.parent / "suite-images").exists()


def test_a_suite_that_cannot_be_added_to_is_left_alone(tmp_path: Path) -> None:
    loaded = suite(tmp_path, case("one", {"detect": {"present": ["red"]}}))
    flow = json.dumps(yaml.safe_load(loaded.path.read_text()), default=str)
    loaded.path.write_text(flow)
    with pytest.raises(BadInput, match="`cases` as its last key"):
        grow(loaded.path, [draft(tmp_path / "p", "green")], owner="me", severity="minor", source="x")
    assert loaded.path.read_text() == flow
    suite(tmp_path, case("one", {"detect": {"present": ["red"]}}))
    paint(tmp_path / "red.png", "red", 0.7)
    with pytest.raises(BadInput, match="has changed"):
        grow(loaded.path, [draft(tmp_path / "p", "green")], owner="me", severity="minor", source="x")


def test_every_case_is_shown_with_what_was_expected_and_seen(tmp_path: Path) -> None:
    loaded = suite(
        tmp_path,
        case("green is found", {"detect": {"boxes": [{"class": "green", "box": [0, 0, 4, 4]}]}}, severity="blocker"),
        case("it is called <red>", {"classify": {"class": "red", "among": ["red", "blue"]}}),
    )
    measured = measure(loaded, EVERYTHING)
    data = Data(source="suite.yaml", fingerprint=loaded.fingerprint, images=1)
    result = Stopwatch().result("scenarios", measured, Subject(reference="painter"), data)
    html = page(result, loaded.dataset()).html()
    assert html.count("data:image/webp") == 2
    assert html.index("green is found") < html.index("it is called &lt;red&gt;")
    assert in_words(loaded.cases[0]) in html
    assert "no green near its place, 0.5 needed" in html
