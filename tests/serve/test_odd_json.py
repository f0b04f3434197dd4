"""JSON that no client should send, in every place of every request: an error that says so, never a failure."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.serve.everything import LABELS, WAYS, check, everything, scene

IMAGE = base64.b64encode(scene()).decode()
GOOD: dict[str, dict[str, Any]] = {way.path: dict(way.body(IMAGE)) for way in WAYS if way.body is not None} | {
    "/v1/search": {
        "text": "red",
        "k": 2,
        "filter": "width > 2",
        "parts": [{"text": "blue", "weight": 0.5}],
        "negative": "green",
        "words": "blue",
        "liked": [],
        "collapse": {"cosine": 0.9},
    },
    "/v1/search/feedback": {"text": "red", "right": []},
    "/v1/detect": {"image": IMAGE, "prompts": ["red"], "threshold": 0.1},
    "/v1/classify": {"image": IMAGE, "boxes": [[0, 0, 4, 4]]},
    "/v1/ask": {"question": "is it red", "about": "red", "image": None},
    "/metadata": {"ids": [1], "indice_name": "depot"},
    "/label-studio/setup": {"schema": LABELS, "project": "1.2"},
    "/label-studio/webhook": {
        "action": "ANNOTATION_CREATED",
        "project": {"id": 1},
        "annotation": {"id": 1, "result": [{"a": 1}], "updated_at": "2026"},
        "task": {"id": 1, "data": {"image": "x"}},
    },
}
HEADERS = {"content-type": "application/json", "x-nuclio-function-name": "detector"}
DEEP = "[" * 300 + "]" * 300
# Whole bodies that are no JSON, or more than JSON.
BODIES = (
    b"", b"   ", b"\0", b"{", b"}", b'{"a":}', b"[1,2", b'{"a":1,}', b"{'a':1}", b'{"a":1}{"b":2}',
    b"NaN", b"-Infinity",
    b'"\\ud800"', b'{"\\ud800":1}', b"[" * 50_000, b'{"a":' * 50_000, DEEP.encode(), b"1" * 5000,
    b'{"text":' + b"1" * 5000 + b"}", b"\xff\xfe{}", '{"text":"red"}'.encode("utf-16"), b'{"text":"\xed\xa0\x80"}',
    b'{"text":"\xe4"}', b'{"k":NaN}',
)  # fmt: skip
WHOLE = (b"null", b"1", b'"x"', b"[]", b"true")  # JSON, but no object
FEW = ("null", "-1", "1e999", '"a\\u0000b"', "[]", "{}", "[[0,0,1e39,1e39]]", '"../../etc/passwd"')
# Put in the place of each value of a good request.
MANY = (
    *FEW, "true", "0", "-1e999", "1" * 400, "9" * 4000, "0.1", "1e-320", '""', '" "', '"\\u0000"',
    '"' + "x" * 100_000 + '"',
    '"\\u202e\\u200b"', "[[]]", "[null]", "[1]", '["a"]', '{"a":1}', '"depot"', '"data:image/png;base64,"', '"data:,"',
    '"http://127.0.0.1/a.png"', '"file:///etc/passwd"', '"é"', '"=="', "18446744073709551616", "-9223372036854775809",
    "[1e999,0,1,1]", "[[0,0,1e300,1e300]]", '[["a",0,1,1]]', '["\\u0000"]', '"' + "'; DROP TABLE x; --" + '"', '"%00"',
    "[" * 40 + "]" * 40,
)  # fmt: skip
UNREADABLE = ('"\\ud800"', '"a\\udfffb"', '["\\ud800"]', '{"\\ud800":1}', "NaN", "[-Infinity]", DEEP)  # anywhere: a 400


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with TestClient(everything(tmp_path_factory.mktemp("odd")), raise_server_exceptions=False) as client:
        yield client


def places(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The way to each value in a value, itself first."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*at, key))


def replaced(value: Any, place: tuple[str | int, ...], raw: str) -> str:
    """The JSON of a value with `raw` in one place."""
    if not place:
        return raw
    changed = copy.deepcopy(value)
    holder = changed
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = "<here>"
    return json.dumps(changed).replace('"<here>"', raw)


def send(server: TestClient, path: str, body: bytes | str) -> int:
    answer = server.post(path, content=body, headers=HEADERS)
    check(answer)
    return answer.status_code


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("path", sorted(GOOD))
def test_odd_bodies_are_explained(server: TestClient, path: str) -> None:
    assert send(server, path, json.dumps(GOOD[path])) in (200, 201), "the request that all others are made from"
    for body in BODIES:
        status = send(server, path, body)
        assert status == 400 or (not body and status == 422), body[:80]
    for body in WHOLE:
        assert send(server, path, body) == 422, body
    for place in places(GOOD[path]):
        for raw in UNREADABLE:
            assert send(server, path, replaced(GOOD[path], place, raw)) == 400, (place, raw[:40])
        for raw in FEW:
            send(server, path, replaced(GOOD[path], place, raw))
    twice = json.dumps(GOOD[path])
    assert send(server, path, twice[:-1] + "," + twice[1:]) in (
        200,
        201,
    )  # of a field that is given twice the last counts


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("path", sorted(GOOD))
def test_odd_values_anywhere_are_explained(server: TestClient, path: str) -> None:
    properties = server.get("/openapi.json").json()
    good = GOOD[path] | dict.fromkeys(_optional(properties, path) - GOOD[path].keys())
    assert send(server, path, json.dumps(good)) in (200, 201)
    for place in places(good):
        for raw in MANY:
            send(server, path, replaced(good, place, raw))


def _optional(document: dict[str, Any], path: str) -> set[str]:
    """Names of a request's fields that may be null."""
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    fields: dict[str, Any] = schema["properties"]
    return {name for name, told in fields.items() if {"type": "null"} in told.get("anyOf", ())}
