"""Who may do what: each protection has a test here that fails without it."""

from __future__ import annotations

import base64
import json
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from foveal.errors import BadInput
from retrieval.archive import Archive
from serve.app import create_app
from serve.audit import Audit
from serve.keys import DAY, VERBS, Keys, Refused, TooOften, verb_of
from serve.server import serve
from tests.command import foveal
from tests.serve.conftest import ColourDetector, ColourEncoder, draw
from tests.serve.test_app import b64, error

RED = {"text": "red", "k": 2}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys.sqlite")


@pytest.fixture
def guarded(keys: Keys, archive: Archive, tmp_path: Path) -> Iterator[TestClient]:
    hidden = Archive.create(tmp_path / "hidden", ColourEncoder())
    draw(("blue", (0, 0, 40, 40))).save(tmp_path / "blue.png")
    hidden.add(tmp_path / "blue.png", ColourEncoder())
    app = create_app(
        archive={"depot": archive, "hidden": hidden},
        encoder=ColourEncoder(),
        detector=ColourDetector(),
        keys=keys,
        audit=Audit(tmp_path / "audit.jsonl"),
        origins=["https://tools.example.com"],
    )
    with TestClient(app) as client:
        yield client


# The file.


def test_the_file_holds_no_key_and_nobody_else_may_read_it(keys: Keys) -> None:
    secret = keys.add("ann", ["search"])
    assert secret.encode() not in keys.file.read_bytes()
    assert keys.file.stat().st_mode & 0o077 == 0
    assert len(secret) > 40
    assert keys.admit(secret, "search").name == "ann"


@pytest.mark.parametrize(
    ("name", "verbs", "more"),
    [
        ("", ["search"], {}),
        ("ann", [], {}),
        ("ann", ["everything"], {}),
        ("ann", ["pages"], {"archives": ["depot"]}),
        ("ann", ["search"], {"rate": 0}),
        ("ann", ["search"], {"quota": -1}),
        ("ann", ["search"], {"days": 0}),
    ],
)
def test_keys_that_make_no_sense_are_not_made(keys: Keys, name: str, verbs: list[str], more: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        keys.add(name, verbs, **more)
    assert keys.list() == []


def test_a_name_is_given_once_rotated_with_grace_and_revoked(keys: Keys) -> None:
    old = keys.add("ann", ["search"], archives=["depot"], rate=5, quota=100, days=10)
    with pytest.raises(BadInput):
        keys.add("ann", ["search"])
    new = keys.rotate("ann", grace_hours=1)
    first, second = keys.admit(old, "search"), keys.admit(new, "search")
    assert (first.verbs, first.archives, first.rate, first.quota) == (
        second.verbs, second.archives, second.rate, second.quota,
    )  # fmt: skip
    assert first.expires == pytest.approx(time.time() + 3600, abs=5)
    assert second.expires == pytest.approx(time.time() + 10 * DAY, abs=5)
    keys.rotate("ann", grace_hours=0)
    for secret in (old, new):
        with pytest.raises(Refused):
            keys.admit(secret, "search")
    assert keys.revoke("ann") == 3
    for unknown in (keys.revoke, keys.rotate):
        with pytest.raises(BadInput):
            unknown("ann")


def test_quotas_hold_across_restarts_and_rates_refill(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000_000.0]
    monkeypatch.setattr("serve.keys.time.time", lambda: now[0])
    secret = keys.add("ann", ["search"], quota=3)
    for _ in range(2):
        keys.admit(secret, "search")
    keys.save_counts()
    again = Keys(keys.file)
    again.admit(secret, "search")
    with pytest.raises(TooOften) as refused:
        again.admit(secret, "search")
    assert refused.value.retry_after == pytest.approx(DAY - now[0] % DAY, abs=1)
    now[0] += DAY
    again.admit(secret, "search")

    quick = keys.add("bob", ["search"], rate=2)
    for _ in range(2):
        keys.admit(quick, "search")
    with pytest.raises(TooOften):
        keys.admit(quick, "search")
    now[0] += 0.5
    keys.admit(quick, "search")


# The server.


def test_without_a_key_nothing_but_health_and_the_contract_is_answered(guarded: TestClient) -> None:
    for path in ("/v1/models", "/v1/archives", "/metrics", "/", "/label-studio/health", "/v1/nothing"):
        found = guarded.get(path)
        assert error(found, 401)["type"] == "Refused"
        assert found.headers["www-authenticate"] == "Bearer"
    error(guarded.post("/v1/search", json=RED, headers=bearer("fv_wrong")), 401)
    assert guarded.get("/livez").status_code == guarded.get("/openapi.json").status_code == 200


def test_every_address_of_the_contract_needs_a_verb_that_exists(guarded: TestClient) -> None:
    app: Any = guarded.app
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            verb = verb_of(method.upper(), path)
            if path.startswith("/v1/models"):
                assert verb == ""
            elif path in ("/livez", "/readyz", "/openapi.json"):
                assert verb is None
            else:
                assert verb in set(VERBS) - {"pages"}, f"{method} {path} would be open to {verb}"


def test_a_key_does_what_its_verbs_say_and_no_more(guarded: TestClient, keys: Keys) -> None:
    search, detect = bearer(keys.add("ann", ["search"])), bearer(keys.add("bob", ["detect"]))
    body = {"image": b64(draw(("red", (4, 6, 20, 30))))}
    hit = guarded.post("/v1/search", json=RED, headers=search).json()["hits"][0]
    assert guarded.get(hit["image_url"], headers=search).status_code == 200
    assert guarded.post("/v1/detect", json=body, headers=detect).status_code == 200
    error(guarded.post("/v1/search", json=RED, headers=detect), 403)
    error(guarded.post("/v1/detect", json=body, headers=search), 403)
    error(guarded.delete(f"/v1/items/{hit['id']}", headers=search), 403)
    error(guarded.post("/v1/search/feedback", json={"text": "red"}, headers=search), 403)
    error(guarded.get("/metrics", headers=search), 403)
    assert guarded.get("/v1/models", headers=detect).status_code == 200
    basic = base64.b64encode(f"x:{keys.add('studio', ['detect'])}".encode()).decode()
    assert guarded.get("/label-studio/health", headers={"Authorization": f"Basic {basic}"}).status_code == 200
    error(guarded.get("/x-anylabeling/health", headers={"Token": "fv_wrong"}), 401)
    token = {"Token": keys.add("labeller", ["detect"])}
    assert guarded.get("/x-anylabeling/health", headers=token).status_code == 200


def test_a_key_sees_its_own_archives_only(guarded: TestClient, keys: Keys) -> None:
    every, one = bearer(keys.add("ann", ["search"])), bearer(keys.add("bob", ["search"], archives=["depot"]))
    secret = guarded.post("/v1/search", json={"text": "blue", "archive": "hidden"}, headers=every).json()["hits"][0]
    names = [card["name"] for card in guarded.get("/v1/archives", headers=one).json()["archives"]]
    assert names == guarded.get("/indices-list", headers=one).json() == ["depot"]
    error(
        guarded.post("/knn-service", json={"text": "blue", "num_images": 1, "indice_name": "hidden"}, headers=one), 404
    )
    assert "hidden" not in json.dumps(error(guarded.get("/v1/items/00?archive=hidden", headers=one), 404)["expected"])
    error(guarded.post("/v1/search", json={"text": "blue", "archive": "hidden"}, headers=one), 404)
    error(guarded.get(secret["image_url"], headers=one), 404)
    error(guarded.post("/v1/search", json={"image_id": secret["id"], "archive": "hidden"}, headers=one), 404)


def test_a_running_server_learns_of_new_and_revoked_keys(guarded: TestClient, keys: Keys) -> None:
    other = Keys(keys.file)  # another process
    secret = other.add("ann", ["search"])
    assert guarded.post("/v1/search", json=RED, headers=bearer(secret)).status_code == 200
    other.revoke("ann")
    error(guarded.post("/v1/search", json=RED, headers=bearer(secret)), 401)


def test_a_key_that_asks_too_often_is_told_when_to_come_back(guarded: TestClient, keys: Keys) -> None:
    header = bearer(keys.add("ann", ["search"], rate=1))
    assert guarded.post("/v1/search", json=RED, headers=header).status_code == 200
    found = guarded.post("/v1/search", json=RED, headers=header)
    error(found, 429)
    assert int(found.headers["retry-after"]) >= 1


def test_the_audit_log_says_who_saw_what_and_holds_no_content(guarded: TestClient, keys: Keys, tmp_path: Path) -> None:
    header = bearer(keys.add("ann", ["search", "write"]))
    answer = guarded.post("/v1/search", json={"text": "a red secret", "k": 2}, headers=header)
    ids = [hit["id"] for hit in answer.json()["hits"]]
    guarded.post("/v1/search/feedback", json={"text": "a red secret", "right": ids[:1]}, headers=header)
    guarded.post("/v1/search", json=RED)
    guarded.get("/livez")
    text = (tmp_path / "audit.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["key"], line["path"], line["status"]) for line in lines] == [
        ("ann", "/v1/search", 200), ("ann", "/v1/search/feedback", 200), (None, "/v1/search", 401),
    ]  # fmt: skip
    assert lines[0]["items"] == {"depot": ids}
    assert lines[0]["request"] == answer.headers["x-request-id"]
    assert lines[1]["items"] == {"depot": ids[:1]}
    assert "secret" not in text


def test_the_pages_ask_for_a_key_once(guarded: TestClient, keys: Keys) -> None:
    html = {"Accept": "text/html"}
    sent = guarded.get("/ask", headers=html, follow_redirects=False)
    assert (sent.status_code, sent.headers["location"]) == (303, "/login?next=/ask")
    page = guarded.get("/login", params={"next": '/"><script>alert(1)</script>'}).text
    assert "<script>" not in page
    weak = keys.add("bob", ["search"])
    assert "is not for this" in guarded.post("/login", data={"key": weak}).text
    secret = keys.add("ann", ["pages"])
    for elsewhere in ("https://evil.example.com", "//evil.example.com", "/\\evil.example.com"):
        entered = guarded.post("/login", data={"key": secret, "next": elsewhere}, follow_redirects=False)
        assert (entered.status_code, entered.headers["location"]) == (303, "/")
    cookie = entered.headers["set-cookie"]
    assert re.search(r"HttpOnly", cookie)
    assert re.search(r"SameSite=strict", cookie)
    assert guarded.get("/").json()["name"] == "foveal"
    id = next(iter(guarded.post("/v1/search", json=RED).json()["hits"]))["id"]
    assert guarded.get(f"/v1/items/{id}/image").status_code == 200
    error(guarded.delete(f"/v1/items/{id}"), 403)


def test_only_named_web_pages_may_call(guarded: TestClient, keys: Keys) -> None:
    header = bearer(keys.add("ann", ["search"]))
    asked = {**header, "Origin": "https://tools.example.com"}
    assert guarded.get("/v1/archives", headers=asked).headers["access-control-allow-origin"] == asked["Origin"]
    other = guarded.get("/v1/archives", headers={**header, "Origin": "https://evil.example.com"})
    assert "access-control-allow-origin" not in other.headers
    preflight = {"Origin": "https://tools.example.com", "Access-Control-Request-Method": "POST"}
    assert guarded.options("/v1/search", headers=preflight).status_code == 200


def test_nobody_else_is_served_without_keys() -> None:
    app = create_app(detector=ColourDetector())
    with pytest.raises(BadInput, match="keys"):
        serve(app, "0.0.0.0", 0)


def test_a_file_without_keys_is_noticed_at_the_start(tmp_path: Path) -> None:
    file = tmp_path / "kyes.sqlite"
    shown = foveal("serve", "--archive", "not/here", "--keys", str(file))  # before models are loaded
    assert shown.code == 1
    assert f"foveal keys add NAME --verb search --keys {file}" in shown.error
    file.write_text("U1FMaXRlIGZvcm1hdCAz" * 100)
    assert "not a database" in foveal("serve", "--archive", "not/here", "--keys", str(file)).error


def test_a_web_page_cannot_reach_a_local_server_by_a_name_of_its_own(app: FastAPI) -> None:
    """DNS rebinding: a page's host name resolves to 127.0.0.1, and the browser sends its requests here."""
    app.state.local_only = True
    try:
        with TestClient(app) as client:
            for host in ("evil.example.com", "evil.example.com:8000", "127.0.0.1.evil.example.com"):
                error(client.get("/v1/models", headers={"Host": host}), 400)
            for host in ("127.0.0.1:8000", "localhost", "[::1]:8000"):
                assert client.get("/v1/models", headers={"Host": host}).status_code == 200
    finally:
        app.state.local_only = False


@given(st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH"]), st.text("/abv1.%searchitmpod", max_size=30))
def test_an_address_is_never_open_by_accident(method: str, path: str) -> None:
    verb = verb_of(method, "/" + path)
    assert verb in VERBS or (verb == "" and path.startswith("v1/models"))


def test_a_damaged_file_of_keys_lets_nobody_in(guarded: TestClient, keys: Keys) -> None:
    header = bearer(keys.add("ann", ["search"]))
    assert guarded.get("/v1/archives", headers=header).status_code == 200
    with sqlite3.connect(keys.file) as database:
        database.execute("DROP TABLE keys")
    error(guarded.get("/v1/archives", headers=header), 401)
    keys.file.write_bytes(b"not a database, whatever it says" * 100)
    assert guarded.get("/v1/archives", headers=header).status_code == 500
