"""Other people's client libraries against a running server: OpenAI's, and Label Studio's own check of predictions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from foveal.client import picture
from foveal.formats.label_studio import labelling_config
from retrieval.archive import Archive
from serve.app import create_app
from serve.keys import Keys
from serve.server import running
from tests.serve.conftest import COLOURS, ColourDetector, ColourEncoder, ColourLabeller, ColourOpenDetector, draw
from tests.serve.everything import LABELS, everything

pytestmark = pytest.mark.slow
SDK = [
    "label-studio-sdk==2.1.2",
    "jsf==0.11.2",
    "xmljson==0.2.1",
    "lxml",
    "faker",
    "rstr",
    "smart-open",
    "wrapt",
    "pyjwt",
    "appdirs",
]
CHECK = """
import json, sys
from label_studio_sdk.label_interface import LabelInterface
asked = json.load(sys.stdin)
interface = LabelInterface(asked["config"])
interface.validate()
print(json.dumps([interface.validate_prediction(one, return_errors=True) for one in asked["predictions"]]))
"""
SCENE = draw(("red", (4, 6, 20, 30)), ("green", (22, 6, 28, 30)), ("blue", (30, 10, 60, 40)))


# OpenAI's.


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Keys]]:
    """A server that wants keys, and its keys."""
    folder = tmp_path_factory.mktemp("libraries")
    keys = Keys(folder / "keys.sqlite")
    with running(everything(folder, keys)) as url:
        yield url, keys


def asking(url: str, key: str, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, **options)


def test_openai_embeds_as_floats_and_as_it_does_by_itself(guarded: tuple[str, Keys]) -> None:
    url, keys = guarded
    client = asking(url, keys.add("embedder", ["embed"]))
    texts = ["red", "a blue box"]
    expected = ColourEncoder().encode_texts(texts)
    by_itself = client.embeddings.create(model="encoder", input=texts)  # asks for base64 and unpacks it
    packed = client.embeddings.create(model="encoder", input=texts, encoding_format="base64")
    for answer in (by_itself, client.embeddings.create(model="encoder", input=texts, encoding_format="float")):
        vectors = np.array([one.embedding for one in answer.data])
        assert vectors == pytest.approx(expected, abs=1e-6)
        assert [one.index for one in answer.data] == [0, 1]
        assert (answer.model, answer.object) == ("encoder", "list")
        assert answer.usage.total_tokens == answer.usage.prompt_tokens == 4
    assert isinstance(packed.data[0].embedding, str)
    one = client.embeddings.create(model="encoder", input="red", dimensions=5, user="somebody")
    assert one.data[0].embedding == pytest.approx(expected[0].tolist(), abs=1e-6)


def test_openai_lists_models_and_shows_one(guarded: tuple[str, Keys]) -> None:
    url, keys = guarded
    client = asking(url, keys.add("looker", ["metrics"]))
    listed = {model.id: model for model in client.models.list()}
    assert set(listed) == {"encoder", "detector", "open-detector", "vlm", "labeller", "memory"}
    assert {(model.object, model.owned_by) for model in listed.values()} == {("model", "foveal")}
    assert client.models.retrieve("encoder") == listed["encoder"]
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4'"):
        client.models.retrieve("gpt-4")


def test_openai_says_what_was_wrong(guarded: tuple[str, Keys]) -> None:
    url, keys = guarded
    client = asking(url, keys.add("wrong", ["embed"]), max_retries=0)
    with pytest.raises(openai.NotFoundError, match="no encoder 'text-embedding-3-small'"):
        client.embeddings.create(model="text-embedding-3-small", input="red")
    with pytest.raises(openai.UnprocessableEntityError, match="of one length only") as told:
        client.embeddings.create(model="encoder", input="red", dimensions=2)
    assert isinstance(told.value.body, dict)
    assert told.value.body["expected"] == "dimensions = 5"
    with pytest.raises(openai.UnprocessableEntityError, match="cannot be embedded"):
        client.embeddings.create(model="encoder", input=[""])
    with pytest.raises(openai.AuthenticationError, match="not known"):
        asking(url, "fv_other", max_retries=0).models.list()
    with pytest.raises(openai.PermissionDeniedError, match="is not for this"):
        asking(url, keys.add("searcher", ["search"]), max_retries=0).embeddings.create(model="encoder", input="red")


def test_openai_waits_when_it_is_told_to(guarded: tuple[str, Keys]) -> None:
    url, keys = guarded
    key = keys.add("slow", ["embed"], rate=1.0)
    patient, hasty = asking(url, key), asking(url, key, max_retries=0)
    hasty.embeddings.create(model="encoder", input="red")
    with pytest.raises(openai.RateLimitError) as refused:
        hasty.embeddings.create(model="encoder", input="red")
    assert int(refused.value.response.headers["retry-after"]) >= 1
    assert patient.embeddings.create(model="encoder", input="red").data


# Label Studio's.


@pytest.fixture(scope="module")
def verdict(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, list[Any]], list[list[str]]]:
    """What Label Studio's SDK has to say against predictions for a project.

    It has a folder of its own: it pins another OpenCV than this project needs.
    """
    folder = tmp_path_factory.mktemp("sdk")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *SDK]
    if subprocess.run(command, capture_output=True, timeout=280).returncode:
        pytest.skip("label-studio-sdk cannot be installed here")

    def judge(config: str, predictions: list[Any]) -> list[list[str]]:
        done = subprocess.run(
            [sys.executable, "-c", CHECK], input=json.dumps({"config": config, "predictions": predictions}),
            env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return judge


BOXES_AND_OUTLINES = """
<View>
  <Image name="photo" value="$image"/>
  <RectangleLabels name="boxes" toName="photo"><Label value="Tomato" predicted_values="red"/></RectangleLabels>
  <PolygonLabels name="outlines" toName="photo"><Label value="Sky" predicted_values="blue"/></PolygonLabels>
</View>"""
SCHEMA = ColourLabeller.ontology.schema_of_attributes
PROJECTS = {
    "boxes": LABELS,
    "boxes and outlines, by other names": BOXES_AND_OUTLINES,
    "our own": labelling_config(tuple(COLOURS), SCHEMA),
    "our own with outlines": labelling_config(tuple(COLOURS), SCHEMA, polygons=True),
}


@pytest.mark.parametrize("model", ["detector", "open_detector", "labeller"])
def test_label_studio_accepts_every_prediction(
    verdict: Callable[[str, list[Any]], list[list[str]]], model: str, archive: Archive
) -> None:
    made = {"detector": ColourDetector(), "open_detector": ColourOpenDetector(), "labeller": ColourLabeller()}[model]
    edge = draw(("red", (0, 0, 64, 48)), ("blue", (63, 47, 64, 48)), ("blue", (60, 44, 64, 48)))
    tasks = [
        {"id": number, "data": {"image": f"data:image/png;base64,{picture(image)}"}}
        for number, image in enumerate((SCENE, draw(), edge, draw(("blue", (1, 1, 4000, 3)), size=(4001, 7))))
    ]
    with running(create_app(archive=archive, encoder=ColourEncoder(), **{model: made})) as url:
        for name, config in PROJECTS.items():
            answer = httpx.post(f"{url}/label-studio/predict", json={"tasks": tasks, "label_config": config})
            assert answer.status_code == 200, (name, answer.text)
            results = answer.json()["results"]
            assert len(results[0]["result"]) >= 2, name
            assert verdict(config, results) == [[]] * 4, name
            for region in (one for result in results for one in result["result"]):
                assert len(verdict_of(region)) == 0, region


def verdict_of(region: dict[str, Any]) -> list[str]:
    """What Label Studio's server wants besides: sizes beside geometry, scores between 0 and 1."""
    missing = {"original_width", "original_height"} - region.keys() if region["type"] != "choices" else set()
    return [*missing, *(["score"] if not 0 <= region.get("score", 0.5) <= 1 else [])]


def test_label_studios_check_can_fail(verdict: Callable[[str, list[Any]], list[list[str]]]) -> None:
    value = {"x": 1, "y": 1, "width": 120, "height": 3, "rectanglelabels": ["red"]}
    wide = {"from_name": "box", "to_name": "image", "type": "rectanglelabels", "value": value}
    other = wide | {"value": value | {"width": 3, "rectanglelabels": ["purple"]}}
    good = wide | {"value": value | {"width": 3}}
    (first, second, third) = verdict(LABELS, [{"result": [one]} for one in (wide, other, good)])
    assert "out of bounds" in first[0]
    assert second
    assert third == []
