"""OpenAI's chat completions over the bundled model: whole, streamed, held to a schema, and passed on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from foveal.chat import ChatRequest
from foveal.client import Client
from foveal.errors import BadInput, Unavailable
from foveal.models import VisionLanguageModel, load_vlm
from retrieval.archive import Archive
from serve.app import create_app
from serve.keys import Keys
from serve.server import running
from serve.vlm_http import RemoteVLM, remote_vlms
from tests.serve.conftest import ColourEncoder, ColourTalker
from tests.serve.test_app import b64

ABOUT = "describe the picture"


def picture() -> Image.Image:
    image = Image.new("RGB", (320, 240), (120, 118, 110))
    image.paste((200, 30, 30), (60, 60, 140, 170))
    return image


PICTURE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64(picture())}"}}


def talk(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


def user(text: str, image: Any = PICTURE) -> dict[str, Any]:
    return {"role": "user", "content": [*([image] if image else []), {"type": "text", "text": text}]}


@pytest.fixture(scope="module")
def vlm() -> VisionLanguageModel:
    return load_vlm("bundled:vlm")


@pytest.fixture(scope="module")
def server(vlm: VisionLanguageModel, archive: Archive) -> Iterator[str]:
    with running(create_app(vlm=vlm, archive=archive, encoder=ColourEncoder())) as url:
        yield url


def said(url: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def streamed(url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    chunks: list[dict[str, Any]] = []
    with httpx.stream("POST", f"{url}/v1/chat/completions", json={**body, "stream": True}, timeout=60) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    return chunks


def refused(url: str, body: dict[str, Any], status: int) -> str:
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == status, answer.text
    return answer.json()["error"]["message"]


def test_a_question_about_a_picture_is_answered(server: str, vlm: VisionLanguageModel) -> None:
    answer = said(server, talk(user(ABOUT)))
    assert answer["object"] == "chat.completion"
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": vlm.answer(picture(), ABOUT, 256)}
    assert choice["finish_reason"] == "stop"
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert said(server, talk(user(ABOUT), max_tokens=2))["choices"][0]["finish_reason"] == "length"


def test_a_stream_is_the_same_answer_in_parts(server: str) -> None:
    whole = said(server, talk(user(ABOUT)))["choices"][0]["message"]["content"]
    *parts, last = streamed(server, talk(user(ABOUT), stream_options={"include_usage": True}))
    assert parts[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(part["choices"][0]["delta"].get("content", "") for part in parts) == whole
    assert len(parts) > len(whole.split()) / 2, "it comes word by word"
    assert parts[-1]["choices"][0]["finish_reason"] == "stop"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] > 1
    assert len({part["id"] for part in parts}) == 1


def test_earlier_turns_and_items_of_an_archive(server: str, archive: Archive) -> None:
    id = httpx.post(f"{server}/v1/search", json={"text": "red", "k": 1}).json()["hits"][0]["id"]
    for name in (f"item:{id}", f"item:{archive.path.name}/{id}"):
        turns = [
            {"role": "system", "content": "Be short."},
            user("how many things are there", {"type": "image_url", "image_url": {"url": name}}),
            {"role": "assistant", "content": "one"},
            user(ABOUT, None),
        ]
        assert said(server, talk(*turns))["choices"][0]["message"]["content"]
    assert "no item" in refused(server, talk(user(ABOUT, {**PICTURE, "image_url": {"url": "item:ffff"}})), 404)


def test_an_answer_in_json(server: str) -> None:
    schema = {
        "type": "object",
        "properties": {"boxes": {"type": "array", "maxItems": 2, "items": {"enum": ["left", "right"]}}},
        "required": ["boxes"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "found", "schema": schema}}
    answer = said(server, talk(user(ABOUT), response_format=form, max_tokens=64))
    assert set(json.loads(answer["choices"][0]["message"]["content"])["boxes"]) <= {"left", "right"}
    form["json_schema"]["schema"] = {"type": "nope"}  # type: ignore[index]
    assert "schema" in refused(server, talk(user(ABOUT), response_format=form), 422)
    assert "schema" in refused(server, talk(user(ABOUT), response_format=form, stream=True), 422)


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([{"role": "user", "content": "hello"}], "one picture"),
        ([user(ABOUT), {"role": "assistant", "content": "a box"}, user(ABOUT)], "one picture"),
        ([user("  ")], "asks nothing"),
        ([user(ABOUT), {"role": "assistant", "content": "a box"}], "asks nothing"),
        ([{"role": "assistant", "content": "a box"}, user(ABOUT)], "nothing was asked"),
        ([user(ABOUT, {"type": "image_url", "image_url": {"url": "https://example.com/a.jpg"}})], "addresses"),
    ],
)
def test_conversations_that_cannot_be_had(server: str, messages: list[Any], told: str) -> None:
    assert told in refused(server, talk(*messages), 400)


def test_half_a_character_is_no_question(server: str) -> None:
    body = '{"messages": [{"role": "user", "content": "\\ud83d"}]}'
    answer = httpx.post(f"{server}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert "JSON" in answer.json()["error"]["message"]


def test_requests_beyond_what_there_is(server: str) -> None:
    assert "that long" in refused(server, talk(user(ABOUT), max_tokens=5000), 422)
    assert "no vlm" in refused(server, talk(user(ABOUT), model="gpt"), 404)
    refused(server, talk(user(ABOUT), n=2), 422)
    with running(create_app(vlm=ColourTalker())) as url:
        assert "single questions" in refused(url, talk(user(ABOUT)), 422)


def test_who_goes_away_frees_the_model(server: str) -> None:
    for _ in range(3):
        with httpx.stream("POST", f"{server}/v1/chat/completions", json=talk(user(ABOUT), stream=True)) as answer:
            next(answer.iter_lines())
    assert said(server, talk(user(ABOUT)))["choices"]


def test_the_typed_client(server: str) -> None:
    with Client(server) as client:
        answer = client.send(ChatRequest.model_validate(talk(user(ABOUT), max_tokens=4)))
        assert answer.choices[0].message.content
        schema = {"name": "a", "schema": {"type": "object", "properties": {}, "additionalProperties": False}}
        form = {"type": "json_schema", "json_schema": schema}
        answer = client.send(ChatRequest.model_validate(talk(user(ABOUT), response_format=form)))
        assert answer.choices[0].message.content == "{}"


def test_another_server_answers_in_its_place(server: str, archive: Archive, vlm: VisionLanguageModel) -> None:
    (remote,) = remote_vlms(f"{server}/v1", family="llava")
    assert remote.model == "vlm"
    with running(create_app(vlm=remote, archive=archive, encoder=ColourEncoder())) as url:
        direct, through = said(server, talk(user(ABOUT))), said(url, talk(user(ABOUT)))
        assert through["choices"] == direct["choices"]
        parts = streamed(url, talk(user(ABOUT)))
        text = "".join(part["choices"][0]["delta"].get("content", "") for part in parts)
        assert text == direct["choices"][0]["message"]["content"]
        asked = {"image": b64(picture()), "question": ABOUT}
        assert httpx.post(f"{url}/v1/ask", json=asked, timeout=60).json()["text"] == vlm.answer(picture(), ABOUT)
        places = httpx.post(f"{url}/v1/ask", json={**asked, "question": "where is the crate"}, timeout=60).json()
        expected = vlm.locate(picture(), "crate").tolist()
        assert [one["box"] for one in places["places"]] == [pytest.approx(box, abs=4) for box in expected]
        assert "asks nothing" in refused(url, talk(user(" ")), 422)
        assert "asks nothing" in refused(url, talk(user(" "), stream=True), 422)


def test_a_server_that_is_not_there_is_named(vlm: VisionLanguageModel) -> None:
    with pytest.raises(Unavailable, match="See whether it runs"):
        remote_vlms("http://127.0.0.1:9/v1")
    with pytest.raises(BadInput, match="no address"):
        remote_vlms("127.0.0.1:9")
    gone = RemoteVLM("http://127.0.0.1:9/v1", "qwen")
    with running(create_app(models={"vlm": vlm, "gone": gone})) as url:
        answer = httpx.post(f"{url}/v1/chat/completions", json=talk(user(ABOUT), model="gone"))
        assert answer.status_code == 503
        assert "does not answer" in answer.json()["error"]["message"]
    with pytest.raises(BadInput, match="--vlm-family"):
        gone.locate(picture(), "crate")


def test_a_key_must_be_for_asking(vlm: VisionLanguageModel, tmp_path: Any) -> None:
    keys = Keys(tmp_path / "keys.sqlite")
    asking, other = keys.add("asking", ["ask"]), keys.add("other", ["search"])
    with running(create_app(vlm=vlm, keys=keys)) as url:
        for key, status in ((asking, 200), (other, 403)):
            answer = httpx.post(
                f"{url}/v1/chat/completions", json=talk(user(ABOUT), max_tokens=2), timeout=60,
                headers={"Authorization": f"Bearer {key}"},
            )  # fmt: skip
            assert answer.status_code == status
        (remote,) = remote_vlms(f"{url}/v1", key=asking)
        assert remote.answer(picture(), ABOUT)
