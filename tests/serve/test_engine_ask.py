"""Questions about a picture, through the engine that the page uses."""

from __future__ import annotations

import anyio
import pytest
from fastapi import FastAPI

from foveal.errors import BadInput
from serve.app import create_app
from serve.engine import Answer
from serve.limits import NotFound
from tests.serve.conftest import ColourEncoder, ColourTalker, draw

SCENE = draw(("red", (4, 6, 20, 30)), ("blue", (30, 10, 60, 40)))


@pytest.fixture(scope="module")
def talking() -> FastAPI:
    return create_app(vlm=ColourTalker())


def ask(app: FastAPI, question: str, model: str | None = None) -> Answer:
    async def run() -> Answer:
        return await app.state.engine.ask(SCENE, question, model=model)

    return anyio.run(run)


def test_words_are_answered_by_the_model(talking: FastAPI) -> None:
    assert ask(talking, "is there a red thing ") == Answer("vlm", "yes", None)


@pytest.mark.parametrize("question", ["where is the blue thing", "Where is the blue thing?", "where are blue thing ?"])
def test_where_is_answered_with_boxes(talking: FastAPI, question: str) -> None:
    answer = ask(talking, question)
    assert answer.text == "here"
    assert answer.places is not None
    assert answer.places.names == ("blue thing",)
    assert answer.places.boxes.tolist() == [[30, 10, 60, 40]]


def test_what_is_not_there_is_nowhere(talking: FastAPI) -> None:
    answer = ask(talking, "where is the green thing")
    assert answer.text == "nowhere"
    assert answer.places is not None
    assert len(answer.places) == 0


@pytest.mark.parametrize("question", ["", "  ", "x" * 2001])
def test_a_question_of_no_or_too_many_words_is_refused(talking: FastAPI, question: str) -> None:
    with pytest.raises(BadInput, match="question"):
        ask(talking, question)


def test_a_server_without_such_a_model_says_how_to_get_one() -> None:
    with pytest.raises(NotFound) as caught:
        ask(create_app(encoder=ColourEncoder()), "is there a red thing")
    assert "--vlm" in str(caught.value)


def test_unknown_name_lists_the_models(talking: FastAPI) -> None:
    with pytest.raises(NotFound, match="other"):
        ask(talking, "is there a red thing", model="other")
