"""Label Studio's webhook: what annotators do is kept, the latest word counts, and it comes back as an export."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from foveal.formats import label_studio
from serve.app import create_app
from serve.corrections import Corrections
from tests.serve.conftest import ColourDetector, draw
from tests.serve.test_app import error


def region(label: str, x: float = 25.0) -> dict[str, Any]:
    value = {"x": x, "y": 25.0, "width": 50.0, "height": 50.0, "rectanglelabels": [label]}
    return {
        "id": "r1", "type": "rectanglelabels", "from_name": "label", "to_name": "image", "original_width": 64,
        "original_height": 48, "image_rotation": 0, "value": value,
    }  # fmt: skip


def event(action: str, id: int, label: str, at: str, *, task: int = 1, project: int = 3) -> dict[str, Any]:
    """What Label Studio sends of one annotation."""
    return {
        "action": action,
        "project": {"id": project, "title": "Depot", "label_config": "<View/>"},
        "task": {"id": task, "data": {"image": f"{task}.png"}, "is_labeled": True},
        "annotation": {"id": id, "result": [region(label)], "was_cancelled": False, "updated_at": at, "task": task},
    }


@pytest.fixture
def keeping(tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(create_app(detector=ColourDetector(), corrections=Corrections(tmp_path / "c.sqlite"))) as client:
        yield client


def tell(client: TestClient, body: dict[str, Any]) -> Any:
    response = client.post("/label-studio/webhook", json=body)
    assert response.status_code == 201, response.text
    assert response.json()["status"] == "ok"
    return response.json()["result"]["kept"]


def labels(client: TestClient, project: int | None = None) -> list[tuple[int, list[str]]]:
    tasks = client.get("/label-studio/corrections", params={} if project is None else {"project": project}).json()
    return [
        (task["id"], [a["result"][0]["value"]["rectanglelabels"][0] for a in task["annotations"]]) for task in tasks
    ]


def test_the_latest_word_on_an_annotation_counts_whatever_comes_first(keeping: TestClient) -> None:
    assert tell(keeping, event("ANNOTATION_UPDATED", 7, "blue", "2026-11-02T10:00:05Z")) == 1
    tell(keeping, event("ANNOTATION_CREATED", 7, "red", "2026-11-02T10:00:00Z"))
    tell(keeping, event("ANNOTATION_CREATED", 8, "green", "2026-11-02T10:00:09Z", task=2))
    tell(keeping, event("ANNOTATION_CREATED", 7, "yellow", "2026-11-02T10:00:00Z", project=4))
    assert labels(keeping, 3) == [(1, ["blue"]), (2, ["green"])]
    assert labels(keeping, 4) == [(1, ["yellow"])]
    assert len(labels(keeping)) == 3


def test_what_is_deleted_stays_so_and_leaves_nothing_behind(keeping: TestClient, tmp_path: Path) -> None:
    tell(keeping, event("ANNOTATION_CREATED", 7, "red", "2026-11-02T10:00:00Z"))
    tell(keeping, event("ANNOTATION_CREATED", 8, "green", "2026-11-02T10:00:00Z", task=2))
    gone = {"action": "ANNOTATIONS_DELETED", "project": {"id": 3}, "annotations": [{"id": 7}, {"id": 99}]}
    assert tell(keeping, gone) == 2
    tell(keeping, event("ANNOTATION_UPDATED", 7, "red", "2026-11-02T11:00:00Z"))  # sent before, delivered after
    tell(keeping, event("ANNOTATION_UPDATED", 99, "red", "2026-11-02T11:00:00Z"))
    assert labels(keeping) == [(2, ["green"])]
    tell(keeping, {"action": "TASKS_DELETED", "project": {"id": 3}, "tasks": [{"id": 2}]})
    assert labels(keeping) == []


def test_several_annotations_come_at_once(keeping: TestClient) -> None:
    first, second = (event("ANNOTATIONS_CREATED", n, "red", f"2026-11-02T10:00:0{n}Z", task=n) for n in (1, 2))
    both = {**first, "annotation": [first["annotation"], second["annotation"]], "task": [first["task"], second["task"]]}
    assert tell(keeping, both) == 2
    assert labels(keeping) == [(1, ["red"]), (2, ["red"])]
    error(keeping.post("/label-studio/webhook", json={**both, "task": [first["task"]]}), 422)


def test_what_is_kept_can_be_read_as_an_export(keeping: TestClient, tmp_path: Path) -> None:
    tell(keeping, event("ANNOTATION_CREATED", 7, "red", "2026-11-02T10:00:00Z"))
    draw(("red", (16, 12, 48, 36))).save(tmp_path / "1.png")
    tasks = keeping.get("/label-studio/corrections").json()
    (tmp_path / "corrections.json").write_text(json.dumps(tasks))
    (sample,) = label_studio.read(tmp_path / "corrections.json")
    assert sample.truth is not None
    assert (sample.truth.label_names, sample.truth.boxes.tolist()) == (["red"], [[16, 12, 48, 36]])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"action": "ANNOTATION_CREATED"}, 422),
        ({"action": "ANNOTATION_CREATED", "project": {"id": 3}}, 422),
        ({"action": "ANNOTATION_CREATED", "project": {"id": 3}, "annotation": {"id": 1}, "task": {"id": 1}}, 422),
        ({"project": {"id": 3}}, 422),
    ],
)
def test_webhooks_without_their_content_are_explained(keeping: TestClient, body: dict[str, Any], status: int) -> None:
    error(keeping.post("/label-studio/webhook", json=body), status)
    assert labels(keeping) == []


def test_other_events_and_servers_that_keep_nothing_say_so(keeping: TestClient) -> None:
    unknown = {"status": "Unknown event"}
    assert keeping.post("/label-studio/webhook", json={"action": "PROJECT_UPDATED"}).json() == unknown
    with TestClient(create_app(detector=ColourDetector())) as bare:
        body = event("ANNOTATION_CREATED", 7, "red", "2026-11-02T10:00:00Z")
        assert bare.post("/label-studio/webhook", json=body).json() == unknown
        assert "--corrections" in error(bare.get("/label-studio/corrections"), 404)["remedy"]


def test_what_was_acknowledged_is_there_after_a_restart(tmp_path: Path) -> None:
    for number in range(3):
        with TestClient(
            create_app(detector=ColourDetector(), corrections=Corrections(tmp_path / "c.sqlite"))
        ) as client:
            tell(client, event("ANNOTATION_CREATED", number, "red", "2026-11-02T10:00:00Z", task=number))
            assert len(labels(client)) == number + 1
