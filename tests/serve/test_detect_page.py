"""The detect page's handlers, without a browser: each model is asked once, and drawn at any threshold."""

from __future__ import annotations

from typing import Any

import pytest

from foveal.detections import Detections
from serve.app import create_app
from serve.demo.detect import DetectPage, Looked
from tests.serve.conftest import ColourDetector, ColourLabeller, ColourOpenDetector, draw

pytestmark = pytest.mark.anyio
SCENE = draw(("red", (4, 6, 20, 30)), ("yellow", (30, 10, 60, 40)))


class Counting(ColourDetector):
    """Says how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def detect(self, *given: Any, **named: Any) -> list[Detections]:
        self.asked += 1
        return super().detect(*given, **named)


async def looks(page: DetectPage, prompts: str | None = None) -> list[Looked]:
    return [looked async for looked in page.look(SCENE, prompts)]


async def test_models_answer_one_after_the_other() -> None:
    models: dict[str, Any] = {"a": ColourOpenDetector(), "b": ColourLabeller(), "c": ColourDetector()}
    page = DetectPage(create_app(models=models).state.engine)
    steps = await looks(page)
    assert [[one.kind for one in step.seen if one.found is not None] for step in steps] == [
        [], ["detector"], ["detector", "open-detector"], ["detector", "open-detector", "labeller"],
    ]  # fmt: skip
    assert all(one.said.endswith((" ms", " s")) for one in steps[-1].seen)
    _, teacher, labeller = (one.found for one in steps[-1].seen)
    assert teacher is not None
    assert labeller is not None
    assert set(teacher.label_names) == {"red", "yellow"}  # without prompts: the student's classes
    assert labeller.probabilities is not None
    assert "reject" in page.drawn(steps[-1], 0.05)[1]


async def test_the_threshold_asks_no_model_again() -> None:
    eyes = Counting()
    page = DetectPage(create_app(detector=eyes).state.engine)
    looked = (await looks(page))[-1]
    assert "2 boxes" in page.drawn(looked, 0.5)[0]
    assert "Nothing above" in page.drawn(looked, 1.01)[1]
    assert eyes.asked == 1


async def test_a_teacher_alone_wants_names_and_a_bad_one_is_told_in_its_column() -> None:
    page = DetectPage(create_app(models={"eyes": ColourOpenDetector()}).state.engine)
    assert "Name what to look for" in page.drawn((await looks(page, " , "))[-1], 0.5)[1]
    found = (await looks(page, "a red thing"))[-1].seen[0].found
    assert found is not None
    assert list(found.label_names) == ["a red thing"]
    assert "given twice" in page.drawn((await looks(page, "red, red"))[-1], 0.5)[1]
