"""Forms that no client should send: no boundary, parts missing, twice, of the wrong kind or endless."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from fastapi.testclient import TestClient

from tests.serve.everything import check, everything, scene

PNG = scene()
FORMS = ("/v1/detect", "/v1/prelabel", "/v1/items")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with TestClient(everything(tmp_path_factory.mktemp("odd")), raise_server_exceptions=False) as client:
        yield client


def part(name: str, value: bytes, file: str | None = None, more: bytes = b"", header: bytes | None = None) -> bytes:
    said = b'Content-Disposition: form-data; name="' + name.encode() + b'"'
    said += b"" if file is None else b'; filename="' + file.encode("utf-8", "surrogatepass") + b'"'
    return b"--b\r\n" + (said if header is None else header) + b"\r\n" + more + b"\r\n" + value + b"\r\n"


IMAGE = part("image", PNG, "a.png")
END = b"--b--\r\n"


def send(server: TestClient, path: str, body: bytes, kind: str = "multipart/form-data; boundary=b") -> httpx.Response:
    answer = server.post(path, content=body, headers={"content-type": kind})
    check(answer)
    return answer


@pytest.mark.parametrize("path", FORMS)
@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=other",
        "multipart/form-data; boundary=" + "b" * 10_000, "multipart/form-data; boundary=b\u00e4",
        "multipart/mixed; boundary=b",
        "application/x-www-form-urlencoded", "application/octet-stream", "text/plain", "image/png", "*/*", ";",
        "x" * 5000,
    ],
)  # fmt: skip
def test_a_wrong_content_type_is_a_400(server: TestClient, path: str, kind: str) -> None:
    answer = server.post(path, content=IMAGE + END, headers={"content-type": kind.encode("latin-1")})
    check(answer)
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize("path", FORMS)
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", (400,)),
        (END, (400,)),
        (b"rubbish", (400,)),
        (b"\r\n" * 1000 + IMAGE + END, (200, 201, 400)),
        (IMAGE[:60], (400,)),
        (IMAGE, (400,)),  # without its end
        (IMAGE[:-20] + END, (400, 422)),
        (part("image", PNG) + END, (400,)),  # a field, not a file
        (part("image", b"") + END, (400, 422)),
        (part("image", b"", "a.png") + END, (422,)),
        (part("picture", PNG, "a.png") + END, (400, 422)),
        (part("", PNG, "a.png") + END, (400, 422)),
        (part("x", PNG, header=b"X-Nothing: 1") + END, (400,)),
        (part("x", PNG, header=b"Content-Disposition: attachment") + END, (400,)),
        (part("x", PNG, header=b"Content-Disposition") + END, (400,)),
        (part("x", PNG, header=b"\xff\xfe: \x00") + END, (400,)),
        (IMAGE + part("archive", b"\xff\xfe") + END, (200, 400, 404)),
        (IMAGE + part("archive", b"a\0b") + END, (200, 404)),  # where the picture is sent, nothing looks at it
        (IMAGE + part("archive", PNG, "b.png") + END, (400, 422)),  # a file where a word is expected
        (IMAGE + part("archive", b"other") + part("archive", b"depot") + END, (200, 201, 422)),
        (IMAGE + part("model", b"x" * 100_000) + END, (201, 404)),
        (IMAGE + part("model", b"x" * 2_000_000) + END, (413,)),
        (IMAGE + b"".join(part(f"f{number}", b"x") for number in range(2000)) + END, (400,)),
        (b"".join(part(f"image{number}", PNG, "a.png") for number in range(300)) + END, (400,)),
        (IMAGE.replace(b"\r\n", b"\n") + END, (400,)),
        (part("image", PNG, "a.png", b"Content-Transfer-Encoding: base64\r\n") + END, (200, 201)),
        (part("image", PNG, "a.png", b"Content-Type: text/html\r\n") + END, (200, 201)),
        (part("image", PNG, "../../etc/passwd") + END, (200, 201)),
        (part("image", PNG, "a\0b.png") + END, (200, 201, 400)),
        (part("image", PNG, "\ud800.png") + END, (200, 201, 400)),
        (part("image", PNG, "x" * 3000) + END, (200, 201, 400)),
        (part("image", PNG, "a.png", b"X-Long: " + b"x" * 100_000 + b"\r\n") + END, (200, 201, 400)),
        (part("image", PNG, "a.png", b"X-Many: x\r\n" * 5000) + END, (200, 201, 400)),
    ],
)
def test_odd_forms_are_explained(server: TestClient, path: str, body: bytes, status: tuple[int, ...]) -> None:
    answer = send(server, path, body)
    assert answer.status_code in status, answer.text


def test_fields_of_a_form_are_checked_like_those_of_json(server: TestClient) -> None:
    for name, value in (("threshold", b"NaN"), ("threshold", b"2"), ("threshold", b""), ("k", b"1"), ("prompts", b"")):
        assert send(server, "/v1/detect", IMAGE + part(name, value) + END).status_code == 422, name
    assert send(server, "/v1/detect", IMAGE + part("prompts", PNG, "a") + END).status_code == 400
    for value in (
        b"NaN",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b"[" * 9000,
        b'{"a": "\\ud800"}',
        b'{"a": [1]}',
    ):
        assert send(server, "/v1/items", IMAGE + part("metadata", value) + END).status_code == 400, value
    assert send(server, "/v1/items", IMAGE + part("metadata", b'{"\\u0000": 1}') + END).status_code == 201
    long = b'{"' + b"a" * 100_000 + b'": "' + b"b" * 100_000 + b'"}'
    assert send(server, "/v1/items", IMAGE + part("metadata", long) + END).status_code == 201
    assert server.post("/v1/search", json={"text": "red"}).status_code == 200
