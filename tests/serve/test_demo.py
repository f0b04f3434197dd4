from __future__ import annotations

import re

import pytest
from fastapi.testclient import TestClient

from retrieval.archive import Archive
from serve.app import create_app
from tests.serve.conftest import ColourDetector, ColourEncoder, ColourOpenDetector, ColourTalker


@pytest.fixture(scope="module")
def client(archive: Archive) -> TestClient:
    return TestClient(
        create_app(archive=archive, encoder=ColourEncoder(), detector=ColourDetector(), vlm=ColourTalker(), demo=True)
    )


def test_pages_stand_beside_the_api(client: TestClient) -> None:
    for path in ("/", "/detect", "/ask"):
        page = client.get(path)
        assert page.status_code == 200
        assert "text/html" in page.headers["content-type"]
    assert client.get("/v1/models").json()["object"] == "list"
    assert client.get("/v1/nothing").json()["error"]["type"] == "HTTPError"


def test_pages_report_nothing_and_take_no_font_from_elsewhere(client: TestClient) -> None:
    config = client.get("/config").json()
    assert config["analytics_enabled"] is False
    assert config["stylesheets"] == []
    assert not re.search(r"url\(['\"]?https?:", client.get("/theme.css").text)
    assert not re.search(r"url\(|@import", config["css"])


def test_pages_offer_no_api_of_their_own(client: TestClient) -> None:
    assert client.get("/gradio_api/info").json()["named_endpoints"] == {}


def test_only_pages_that_can_work_are_there() -> None:
    only_detect = TestClient(create_app(models={"eyes": ColourOpenDetector()}, demo=True))
    config = only_detect.get("/config").json()
    assert [page[0] for page in config["pages"]] == ["", "models"]
    assert "Look for" in str(config["components"])
    only_ask = TestClient(create_app(vlm=ColourTalker(), demo=True)).get("/config").json()
    assert [page[0] for page in only_ask["pages"]] == ["", "models"]
    assert "Ask in plain words" in str(only_ask["components"])
    only_embed = TestClient(create_app(encoder=ColourEncoder(), demo=True)).get("/config").json()
    assert [page[0] for page in only_embed["pages"]] == [""]
    assert "What answers here" in str(only_embed["components"])
