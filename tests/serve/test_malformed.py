"""Requests made from the server's own OpenAPI document, as it says they should be and as it says they should not.

schemathesis writes them; of the fields that name something some get what is really there, so that they get far.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import CheckFunction
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.python import asgi

from foveal.client import picture
from retrieval.sources_web import Web
from serve.keys import Keys
from serve.label_studio import Pictures
from tests.serve.everything import LABELS, everything, scene

SHAPE = {"type", "message", "expected", "received", "remedy"}
IMAGE = picture(scene())
PICTURED = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{IMAGE}"}}
# What fields of these names are given, wherever they are.
REAL: dict[str, tuple[Any, ...]] = {
    "image": (IMAGE, f"data:image/png;base64,{IMAGE}", "http://127.0.0.1:9/a.png"),
    "urls": (["http://127.0.0.1:9/a.png"],),
    "archive": ("depot", None),
    "indice_name": ("depot", None),
    "model": ("detector", "encoder", "labeller", "memory", "vlm", None),
    "text": ("red", None),
    "action": ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED", "TASKS_DELETED"),
    "label_config": (LABELS,),
    "schema": (LABELS,),
    "messages": ([{"role": "user", "content": [{"type": "text", "text": "red?"}, PICTURED]}],),
    "data": ({"image": f"data:image/png;base64,{IMAGE}"},),
    "url": (f"data:image/png;base64,{IMAGE}", "http://127.0.0.1/a.png"),
    "filter": ("width > 2", None),
    "box": ([0, 0, 9, 9],),
    "boxes": ([[0, 0, 9, 9]], None),
    "metadata": ('{"camera": "north"}',),
    "name": ("detector", "labeller"),
    "x-nuclio-function-name": ("detector", "labeller"),
}
IDS = ("image_id", "id", "liked", "right", "wrong")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    # An allowed host, which then turns out to be a private one.
    yield everything(tmp_path_factory.mktemp("malformed"), pictures=Pictures(web=Web(("127.0.0.1",))))
    asgi.shutdown_lifespans()


def planted(value: Any, chance: random.Random, ids: list[str], share: float) -> Any:
    """The value with a share of what it names replaced by what is there."""
    if isinstance(value, list):
        return [planted(one, chance, ids, share) for one in value]
    if type(value).__name__ == "Binary":
        return type(value)(scene()) if chance.random() < share else value
    if not isinstance(value, dict):
        return value
    changed = {key: planted(one, chance, ids, share) for key, one in value.items()}
    for key in changed:
        if chance.random() < share and isinstance(key, str) and type(changed[key]).__name__ != "Binary":
            if key in REAL:
                changed[key] = chance.choice(REAL[key])
            elif key in IDS:
                changed[key] = [chance.choice(ids)] if isinstance(changed[key], list) else chance.choice(ids)
    return changed


def errors_have_one_shape(context: Any, response: Any, case: Case) -> None:
    """A check of schemathesis: failures are meant ones, and every error looks alike."""
    if response.status_code >= 500:
        assert response.status_code == 503, response.text
        assert int(response.headers["retry-after"][0]) >= 1
    if response.status_code >= 400:
        body = response.json()
        assert set(body) == {"error"}
        assert set(body["error"]) == SHAPE
        assert body["error"]["type"]
        assert body["error"]["message"]
        assert "Traceback" not in response.text


CHECKS: list[CheckFunction] = [
    errors_have_one_shape,
    schemathesis.checks.response_schema_conformance,
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_headers_conformance,
]


def fuzz(app: FastAPI, examples: int, key: str | None = None) -> tuple[Counter[str], list[str]]:
    """(Answers by operation and status, what was wrong with some) of that many requests to each operation."""
    seen, wrong = Counter[str](), dict[str, str]()
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    with asgi.get_client(app) as session:
        session.headers.update(headers)
        ids = [hit["id"] for hit in _asked(session, "search", text="red", k=3).get("hits", [])]
        ids += [_asked(session, "jobs", urls=["http://127.0.0.1:9/a.png"]).get("id", "00")]
        for operation in (
            found.ok() for found in schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations()
        ):
            cases = st.one_of([operation.as_strategy(mode) for mode in GenerationMode])

            @settings(
                max_examples=examples, derandomize=True, database=None, deadline=None,
                suppress_health_check=list(HealthCheck), phases=[Phase.generate],
            )  # fmt: skip
            @given(case=cases, seed=st.integers(0, 2**32))
            def ask(case: Case, seed: int) -> None:
                chance = random.Random(seed)
                share = chance.choice((0.0, 0.5, 1.0))
                case.body = planted(case.body, chance, ids, share)
                for field in ("path_parameters", "headers", "query"):
                    if case.operation.label == "DELETE /v1/items/{id}":
                        break
                    setattr(case, field, planted(dict(getattr(case, field) or {}), chance, ids, share))
                answer = case.call(session=session)
                seen[f"{case.operation.label} {answer.status_code}"] += 1
                try:
                    case.validate_response(answer, checks=CHECKS)
                except (Failure, FailureGroup) as error:
                    wrong.setdefault(f"{case.operation.label} {answer.status_code}", str(error)[:1500])

            ask()
    return seen, list(wrong.values())


def _asked(session: Any, route: str, **body: Any) -> dict[str, Any]:
    return session.post(f"http://{asgi.HOST}/v1/{route}", json=body).json()


def operations(seen: Counter[str], statuses: str) -> set[str]:
    """Operations that were answered with one of these statuses."""
    return {name.rpartition(" ")[0] for name in seen if name[-3] in statuses}


def test_requests_from_the_document_are_answered_as_it_says(app: FastAPI) -> None:
    seen, wrong = fuzz(app, 25)
    assert not wrong, "\n\n".join(wrong)
    assert seen.total() > 400
    both = operations(seen, "2") & operations(seen, "4")
    assert len(both) >= 12, f"only these were answered in both ways: {both}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_requests_are_answered_as_the_document_says(app: FastAPI) -> None:
    seen, wrong = fuzz(app, 650)
    assert not wrong, "\n\n".join(wrong)
    with_body = sum(count for name, count in seen.items() if name.startswith("POST"))
    assert with_body > 10_000
    assert operations(seen, "2") >= operations(seen, "45") - {"DELETE /v1/items/{id}"}


def test_a_key_that_may_nothing_is_answered_as_the_document_says(app: FastAPI, tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.sqlite")
    (tmp_path / "more").mkdir()
    closed = everything(tmp_path / "more", keys=keys)
    for secret in (keys.add("none", ["metrics"], rate=1e9), "fv_wrong"):
        seen, wrong = fuzz(closed, 3, secret)
        assert not wrong, "\n\n".join(wrong)
        assert {name[-3:] for name in seen} >= {"403" if secret != "fv_wrong" else "401"}
