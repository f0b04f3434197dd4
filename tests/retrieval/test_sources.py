from __future__ import annotations

import io
import json
import os
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from foveal.dataset import Dataset, Sample
from foveal.errors import BadInput, Unavailable, UnknownName
from retrieval import sources_parquet, sources_web
from retrieval.ingest import embed
from retrieval.sources import Item, Sources, local_path
from retrieval.sources_item import flat, local_uri, outer
from retrieval.sources_local import Folder, glob_filter
from retrieval.sources_sidecar import parse_csv
from retrieval.sources_web import Web, is_public
from retrieval.watch import Changes, watch
from tests.command import foveal
from tests.retrieval.pixels import COLOURS, PixelEncoder, write_images


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (10, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def taken(sources: Iterable[Item]) -> dict[str, dict[str, Any]]:
    """URI -> metadata, having embedded everything."""
    rows = {}
    for batch in embed(sources, PixelEncoder(), lambda ids: {}):
        assert not batch.rejected
        rows |= {row.uri: dict(row.metadata) for row in batch.rows}
    return rows


# Files and what lies beside them.


@pytest.mark.parametrize("source", ["images", "images/sub", "images/*.png", "images/**/*.png", "images/0000.png", "."])
def test_the_sidecar_is_found_from_any_kind_of_source(tmp_path: Path, source: str) -> None:
    write_images(tmp_path / "images", 2)
    if source == "images/sub":
        (tmp_path / "images" / "sub").mkdir()
        for path in (tmp_path / "images").glob("*.png"):
            path.rename(tmp_path / "images" / "sub" / path.name)
        (tmp_path / "metadata.csv").rename(tmp_path / "images" / "metadata.csv")
    found = list(Sources.resolve(str(tmp_path / source)))
    assert found[0].metadata == {"camera": "cam0", "hour": 0, "colour": "red"}


def test_sidecar_columns_are_typed_as_a_whole() -> None:
    data = f"file_name,a,b,code,n,huge\nx.png,1,1,007,nan,{'9' * 400}\ny.png,2.5,two,012,,1\n".encode()
    assert parse_csv(data, "metadata.csv") == {
        "x.png": {"a": 1, "b": "1", "code": "007", "n": "nan", "huge": "9" * 400},
        "y.png": {"a": 2.5, "b": "two", "code": "012", "huge": "1"},
    }


def test_the_nearer_and_more_particular_sidecar_wins(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "x.png").write_bytes(png())
    (tmp_path / "a" / "metadata.csv").write_text("file_name,one,two,far\nb/x.png,csv,csv,csv\n")
    lines = [{"file_name": "x.png", "two": "jsonl", "three": "jsonl"}, {"file_name": "y.png"}]
    (folder / "metadata.csv").write_text("file_name,one,two\nx.png,csv,csv\n")
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "x.json").write_text(json.dumps({"three": "json", "four": "json"}))
    (folder / "x.png.json").write_text(json.dumps({"four": "own"}))
    item = next(iter(Sources.resolve(tmp_path / "a")))
    assert item.metadata == {"one": "csv", "two": "jsonl", "three": "json", "four": "own"}


def test_json_becomes_flat_scalars() -> None:
    record = {
        "title": "Dünen",
        "tags": ["sea", 3, "sand"],
        "geo": {"lat": 1.5, "deep": {"er": 1}, "boxes": [[1, 2]]},
        "ok": True,
        "none": None,
        "nan": float("nan"),
        "huge": 10**30,
        "payload": "x" * 5000,
        "lone": "\ud83d!",
        "when": datetime(2026, 11, 2, 9, 30),
        "empty": "",
    }
    assert flat(record, skip=("ok",)) == {
        "title": "Dünen",
        "tags": "sea; 3; sand",
        "geo.lat": 1.5,
        "huge": str(10**30),
        "lone": "\ufffd\ufffd\ufffd!",
        "when": "2026-11-02T09:30:00",
    }
    assert flat({"ok": True}) == {"ok": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", b"name,x\na,1\n", "file_name"),
        ("metadata.csv", b"file_name\n\xff\xfe", "UTF-8"),
        ("metadata.jsonl", b'{"file_name": "x.png"}\n{"name": 1}\n', "line 2"),
        ("metadata.jsonl", b"[1]\n", "line 1"),
        ("x.json", b"[1, 2]", "JSON object"),
        ("x.json", b"[" * 100_000, "JSON object"),
        ("x.png.json", b"{", "JSON object"),
        ("x.json", b'{"imageData": "' + bytes(2**20) + b'"}', "bytes about one image"),
    ],
)
def test_an_unusable_sidecar_is_noted_and_the_image_taken(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / "x.png").write_bytes(png())
    (tmp_path / name).write_bytes(content)
    found = Sources.resolve(tmp_path)
    assert [item.metadata for item in found] == [{}]
    assert name in found.notes[0]
    assert message in found.notes[0]


def test_each_image_comes_once_and_a_folder_that_cannot_be_listed_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_images(tmp_path / "images", 3)
    (tmp_path / "images" / "locked").mkdir()
    (tmp_path / "images" / ".hidden").mkdir()
    (tmp_path / "images" / ".hidden" / "x.png").write_bytes(png())
    real = os.scandir

    def guarded(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", guarded)
    found = Sources.resolve([tmp_path / "images", str(paths[0]), str(tmp_path / "images" / "*")])
    assert [item.uri for item in found] == [str(p) for p in paths]
    assert "locked cannot be listed: Permission denied" in found.notes[0]
    assert found.covers(str(tmp_path / "images" / "gone.png"))
    for uri in ("locked/x.png", ".hidden/x.png", "notes.txt"):
        assert not Sources.resolve(tmp_path / "images").covers(str(tmp_path / "images" / uri))
    assert not found.covers(str(tmp_path / "other.png"))


def test_files_whose_names_are_none_of_images_are_counted(tmp_path: Path, bucket: str) -> None:
    photos = write_images(tmp_path / "site" / "images", 2)[0].parent
    for name in ("a.HEIC", "b.heif", "noext", "photo.dat", "shard.tar", "0000.json", ".hidden", "metadata.csv"):
        (photos / name).write_bytes(png())
    found = Sources.resolve([photos, bucket, f"{bucket}/**", str(photos / "*.dat")])
    assert found.passed_over == {".md": 2, ".heic": 1, ".heif": 1, "": 1, ".dat": 1, ".tar": 1}
    archive = tmp_path / "archive"
    words = ("archive", "add", str(photos), "--archive", str(archive), "--encoder", "bundled:clip")
    said = foveal(*words, "--json")
    assert said.json["passed_over"] == {".heic": 1, ".heif": 1, "": 1, ".dat": 1, ".tar": 1}
    [line] = [line for line in said.err.splitlines() if "passed over" in line]
    assert line == (
        "passed over by the ending of their name: 1 .heic, 1 .heif, 1 without an ending, 1 .dat, 1 .tar "
        "(HEIC is not read: convert it to JPEG)"
    )
    assert line in foveal(*words).err
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "iphone.heic").write_bytes(png())
    shown = foveal("archive", "add", str(tmp_path / "phone"), "--archive", str(archive), "--encoder", "bundled:clip")
    assert "received 1 .heic (HEIC is not read" in shown.error


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("/a/*.png", "/a/x.png", True),
        ("/a/*.png", "/a/b/x.png", False),
        ("/a/**/*.png", "/a/x.png", True),
        ("/a/**/*.png", "/a/b/c/x.png", True),
        ("/a/**", "/a/b/x.png", True),
        ("/a/**/b/*", "/a/c/b/x.png", True),
        ("/a/**/b/*", "/a/c/x.png", False),
        ("/a/[xy].png", "/a/x.png", True),
        ("/a/[xy].png", "/a/z.png", False),
    ],
)
def test_a_glob_covers_what_it_would_name(pattern: str, path: str, expected: bool) -> None:
    assert glob_filter(pattern)(path) is expected


@pytest.mark.parametrize("name", ["plain.png", "with #%?.png", "Wow!", "日本.png"])
def test_local_uris_lead_back(tmp_path: Path, name: str) -> None:
    for path in (tmp_path / name, tmp_path / name / "x.png"):
        assert local_path(local_uri(path)) == path
        assert outer(local_uri(path)) == str(path)


def test_uris_of_other_things_are_no_paths(tmp_path: Path) -> None:
    raw = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff%.png"))
    assert local_uri(raw) == f"file://{tmp_path}/%FF%25.png"
    assert local_path(local_uri(raw)) == raw
    for uri in ("s3://b/x.png", "hf:///a!/1", "/a/x.tar!/m.png", "/a/x.PARQUET!/3", "relative.png"):
        assert local_path(uri) is None
    assert outer("/a/x.tar!/m.png") == "/a/x.tar"


def test_a_dataset_brings_its_labels_and_metadata(tmp_path: Path) -> None:
    path = write_images(tmp_path / "images", 1)[0]
    dataset = Dataset.build([Sample("a", path, 40, 24, label="red", metadata={"site": "north"})], ["red"])
    found = Sources.resolve(dataset)
    assert [item.metadata for item in found] == [{"sample_id": "a", "label": "red", "site": "north"}]
    assert found.total == 1
    assert not found.covers(str(path))


@pytest.mark.parametrize("source", ["nowhere", "nowhere/*.png", "archive.tar.gz", "memory://nowhere/x", "ftp://x/y"])
def test_what_is_not_there_or_not_known_is_refused(tmp_path: Path, source: str) -> None:
    with pytest.raises((BadInput, UnknownName)):
        Sources.resolve(source if "://" in source else str(tmp_path / source))


# Stores.


@pytest.fixture
def bucket() -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/bucket/a/{i}.png": png(COLOURS[i]) for i in range(4)})
    memory.pipe({"/bucket/metadata.csv": b"file_name,n\n0.png,7\n", "/bucket/a/1.json": b'{"title": "one"}'})
    memory.pipe({"/bucket/readme.md": b"#"})
    yield "memory://bucket"
    memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    ("place", "count"), [("", 4), ("/a", 4), ("/a/*.png", 4), ("/**/[01].png", 2), ("/a/0.png", 1)]
)
def test_a_store_is_listed_like_a_folder(bucket: str, place: str, count: int) -> None:
    found = Sources.resolve(bucket + place)
    assert found.total == count
    rows = taken(found)
    assert list(rows) == [f"{bucket}/a/{i}.png" for i in range(count)]
    if count == 4 and place == "":
        assert rows[f"{bucket}/a/0.png"] == {"n": 7}
        assert rows[f"{bucket}/a/1.png"] == {"title": "one"}
    assert found.covers(f"{bucket}/a/0.png")
    assert not found.covers("memory://other/a/0.png")
    assert not found.covers("/bucket/a/0.png")


def test_stamps_of_a_store_follow_its_files(bucket: str) -> None:
    def stamps() -> dict[str, str | None]:
        return {item.uri: item.stamp for item in Sources.resolve(bucket)}

    before = stamps()
    assert None not in before.values()
    fsspec.filesystem("memory").pipe("/bucket/a/2.png", png("white"))
    after = stamps()
    assert [uri for uri in after if after[uri] != before[uri]] == [f"{bucket}/a/2.png"]


def test_a_table_in_a_store_names_what_lies_beside_it(bucket: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a/0.png", "/a/1.png", f"{bucket}/a/2.png", "/etc/x.png"]}), tmp_path / "t")
    fsspec.filesystem("memory").pipe("/bucket/t.parquet", (tmp_path / "t").read_bytes())
    batch = next(embed(Sources.resolve(f"{bucket}/t.parquet"), PixelEncoder(), lambda ids: {}))
    assert [row.uri for row in batch.rows] == [f"{bucket}/a/{i}.png" for i in range(3)]
    assert batch.rejected[0].uri == f"{bucket}/etc/x.png"


def test_a_store_without_its_package_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(scheme: str) -> Any:
        raise ImportError("Install s3fs")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(Unavailable, match="pip install s3fs"):
        Sources.resolve("s3://bucket/images")
    for chained in ("simplecache::http://127.0.0.1/x.png", "http::memory://x"):
        with pytest.raises(UnknownName):
            Sources.resolve(chained)


# The web.


class Pages(BaseHTTPRequestHandler):
    """`/x.png` is an image; the rest is what a server may do instead."""

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Host"]))  # type: ignore[attr-defined]
        status = {"/moved": 302, "/gone": 404}.get(self.path, 200)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "http://169.254.169.254/latest/meta-data")
        self.end_headers()
        if status == 200:
            self.wfile.write(png() if self.path == "/x.png" else bytes(200_000))

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as running:
        running.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_an_image_of_an_allowed_host_is_fetched(server: ThreadingHTTPServer) -> None:
    url = f"http://localhost:{server.server_port}/x.png"
    found = Sources.resolve(url, web=Web(["LOCALHOST"], public=lambda address: True))
    assert list(taken(found)) == [url]
    assert server.asked == [("/x.png", f"localhost:{server.server_port}")]
    assert found.covers(url)


@pytest.mark.parametrize(
    ("path", "message"), [("/moved", "169.254.169.254"), ("/gone", "404"), ("/large", "too large")]
)
def test_redirects_errors_and_endless_answers_are_refused(
    server: ThreadingHTTPServer, path: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_web, "MAX_BYTES", 1000)
    monkeypatch.setattr("retrieval.sources_item.MAX_BYTES", 1000)
    url = f"http://localhost:{server.server_port}{path}"
    found = Sources.resolve(url, web=Web(["localhost"], public=lambda address: True))
    batch = next(embed(found, PixelEncoder(), lambda ids: {}))
    assert message in batch.rejected[0].reason
    assert len(server.asked) == 1


def test_private_addresses_are_never_asked(server: ThreadingHTTPServer) -> None:
    for host in ("localhost", "127.0.0.1"):
        url = f"http://{host}:{server.server_port}/x.png"
        batch = next(embed(Sources.resolve(url, allow=[host]), PixelEncoder(), lambda ids: {}))
        assert "private network" in batch.rejected[0].reason
    assert server.asked == []


@pytest.mark.parametrize(
    "url", ["http://example.org/x.png", "https://evil.org@good.org/x", "http:///x", "https://[::1"]
)
def test_hosts_that_are_not_allowed_are_refused_before_anything_is_asked(url: str) -> None:
    with pytest.raises(BadInput):
        Sources.resolve(url, allow=["evil.org"])


@pytest.mark.parametrize("name", ["x.tar", "sub/X.TAR", "x.parquet?key=1", "x.tar.gz"])
def test_what_holds_many_images_is_not_fetched(server: ThreadingHTTPServer, name: str) -> None:
    url = f"http://127.0.0.1:{server.server_port}/{name}"
    with pytest.raises(BadInput, match=r"not read over HTTP; expected the address of one image\. Download it"):
        Sources.resolve(url, allow=["127.0.0.1"])
    assert server.asked == []


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fd00::1", False),
        ("fe80::1", False),
        ("::ffff:127.0.0.1", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::7f00:1", False),
    ],
)
def test_public_addresses(address: str, expected: bool) -> None:
    assert is_public(address) is expected


# Tars.


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_a_webdataset_brings_what_lies_beside_each_image(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "shard.tar",
        {
            "a/0.json": b'{"caption": "json", "n": 1}',
            "a/0.txt": b" a red box \n",
            "a/0.png": png(),
            "a/0.cls": b"3",
            "a/1.left.png": png("blue"),
            "a/1.right.png": png("green"),
            "a/1.json": b"{",
            "a/2.txt": b"no image",
            "./._0.png": b"apple's",
        },
    )
    found = Sources.resolve(path)
    assert found.total is None
    assert taken(found) == {
        f"{path}!/a/0.png": {"caption": "a red box", "n": 1, "label": "3"},
        f"{path}!/a/1.left.png": {},
        f"{path}!/a/1.right.png": {},
    }
    assert "a/1.json" in found.notes[0]
    assert found.covers(f"{path}!/gone.png")
    assert not found.covers(str(path))


def test_tars_by_glob_damaged_and_gone(tmp_path: Path) -> None:
    for i in range(2):
        write_tar(tmp_path / f"{i}.tar", {f"{n}.png": png(COLOURS[n]) for n in range(4)})
    os.truncate(tmp_path / "1.tar", 512 * 5 + 30)  # header and data of two, header of the third, some of its data
    found = Sources.resolve(str(tmp_path / "*.tar"))
    batches = list(embed(found, PixelEncoder(), lambda ids: {}))
    assert len([row for batch in batches for row in batch.rows]) == 6
    assert "cut short" in batches[0].rejected[0].reason
    assert "1.tar" in found.notes[0]
    assert found.covers(f"{tmp_path}/7.tar!/0.png")
    alone = Sources.resolve(tmp_path / "1.tar")
    assert len(list(alone)) == 3
    assert not alone.covers(f"{tmp_path}/1.tar!/3.png"), "what lies behind the damage has not gone"
    (tmp_path / "not.tar").write_bytes(b"x" * 2000)
    with pytest.raises(BadInput, match="tar"):
        Sources.resolve(tmp_path / "not.tar")


def test_a_tar_is_read_once_and_each_member_at_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "big.tar", {f"{i}.png": png(COLOURS[i % 8]) for i in range(300)})
    opened: list[str] = []
    real = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *a, **k: (opened.append("tar"), real(*a, **k))[1])
    found = Sources.resolve(path)
    assert len(taken(found)) == 300
    assert len(opened) == 2  # to see what it is, and to walk it


def test_shards_may_lie_in_a_store(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    tar = write_tar(tmp_path / "x.tar", {"0.png": png(), "0.txt": b"red"})
    table = pa.table({"image": [png(), png("blue")], "n": [1, 2]})
    pq.write_table(table, tmp_path / "x.parquet")
    memory.pipe({"/shards/x.tar": tar.read_bytes(), "/shards/x.parquet": (tmp_path / "x.parquet").read_bytes()})
    try:
        rows = taken(Sources.resolve("memory://shards/*"))
        assert rows == {
            "memory://shards/x.tar!/0.png": {"caption": "red"},
            "memory://shards/x.parquet!/0": {"n": 1},
            "memory://shards/x.parquet!/1": {"n": 2},
        }
        assert list(taken(Sources.resolve("memory://shards/x.tar"))) == ["memory://shards/x.tar!/0.png"]
    finally:
        memory.rm("/shards", recursive=True)


# Parquet.


def test_parquet_holds_bytes_and_reads_each_row_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.parquet"
    pixels = [{"bytes": png(COLOURS[i % 8]), "path": f"{i}.png"} for i in range(40)]
    table = pa.table({"image": pixels, "n": list(range(40)), "mask": [b"x"] * 40, "when": [datetime(2026, 1, 1)] * 40})
    pq.write_table(table, path, row_group_size=10)
    found = Sources.resolve(path)
    groups: list[int] = []
    parquet: Any = found._origins[0]
    real = parquet._file.read_row_group

    class Counting:
        def read_row_group(self, group: int, columns: list[str]) -> Any:
            groups.append(group)
            if group == 2 and damaged:
                raise pa.ArrowInvalid("page is damaged")
            return real(group, columns=columns)

    items = list(found)
    monkeypatch.setattr(parquet, "_file", Counting())
    damaged = False
    rows = taken(items)
    assert items[0].stamp is not None
    assert found.total == len(rows) == 40
    assert rows[f"{path}!/7"] == {"n": 7, "when": "2026-01-01T00:00:00"}
    assert sorted(groups) == [0, 1, 2, 3]
    assert found.covers(f"{path}!/99")
    damaged = True
    parquet._groups.clear()
    batch = next(embed(items, PixelEncoder(), lambda ids: {}))
    assert [one.uri for one in batch.rejected] == [f"{path}!/{i}" for i in range(20, 30)]


def test_a_damaged_parquet_gives_what_it_can(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    names = [f"name {i}" for i in range(40)]
    table = pa.table({"n": names, "image": [png()] * 40})
    pq.write_table(table, path, row_group_size=10, compression="none", use_dictionary=False)
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 30] = b"\xff" * 30
    path.write_bytes(data)
    found = Sources.resolve(path)
    assert [item.uri for item in found] == [f"{path}!/{i}" for i in (*range(10), *range(20, 40))]
    assert "row group 1" in found.notes[0]
    assert not found.covers(f"{path}!/15")


def test_row_groups_are_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_parquet, "HELD", 1)
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [png()] * 50}), path, row_group_size=5)
    found = Sources.resolve(path)
    assert all(item.read() == png() for item in found)
    parquet: Any = found._origins[0]
    assert len(parquet._groups) == 2


def test_parquet_may_name_files_beside_it_but_sends_us_nowhere(tmp_path: Path, server: ThreadingHTTPServer) -> None:
    image = write_images(tmp_path / "images", 1)[0]
    allowed = f"http://localhost:{server.server_port}/x.png"
    names = ["images/0000.png", str(image), allowed, "http://127.0.0.1/x.png", "s3://secret/x.png", None, "gone.png"]
    names += [f"file://{image}", "memory://elsewhere/x.png", "odd://allowed/x.png"]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"url": names, "n": list(range(10))}), path)
    found = Sources.resolve(path, web=Web(["localhost", "allowed"], public=lambda address: True))
    batch = next(embed(found, PixelEncoder(), lambda ids: {}))
    assert {row.uri: row.metadata["n"] for row in batch.rows} == {str(image): 0, allowed: 2}
    reasons = [one.reason for one in batch.rejected]
    refused = ["not an allowed host", "names it", "names no image", "No such", "names it", "no file system 'odd'"]
    for reason, expected in zip(reasons, refused, strict=True):
        assert expected in reason
    assert len(server.asked) == 1


@pytest.mark.parametrize("columns", [{"picture": [b"x"]}, {"image": [1]}])
def test_parquet_without_images_lists_its_columns(tmp_path: Path, columns: dict[str, list[Any]]) -> None:
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(BadInput, match=next(iter(columns))):
        Sources.resolve(tmp_path / "t.parquet")
    (tmp_path / "no.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(BadInput, match="parquet"):
        Sources.resolve(tmp_path / "no.parquet")


# Hugging Face datasets.


def hub_dataset(count: int = 6) -> datasets.Dataset:
    features = datasets.Features(
        {
            "photo": datasets.Image(),
            "kind": datasets.ClassLabel(names=["cat", "dog"]),
            "note": datasets.Value("string"),
            "boxes": datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
        }
    )
    records = {
        "photo": [{"bytes": png(COLOURS[i]), "path": None} for i in range(count)],
        "kind": [i % 2 for i in range(count)],
        "note": [f"n{i}" for i in range(count)],
        "boxes": [[[0.0, 1.0]]] * count,
    }
    return datasets.Dataset.from_dict(records, features=features)


def test_a_saved_dataset_is_read_by_its_features(tmp_path: Path) -> None:
    hub_dataset().save_to_disk(tmp_path / "saved")
    for source in (tmp_path / "saved", f"hf:{tmp_path / 'saved'}"):
        found = Sources.resolve(source)
        rows = taken(found)
        assert found.total == len(rows) == 6
        assert rows[f"hf://{tmp_path / 'saved'}!/1"] == {"kind": "dog", "note": "n1"}
    again = Sources.resolve(tmp_path / "saved")
    assert [item.stamp for item in again] == [item.stamp for item in found]
    assert found.covers(f"hf://{tmp_path / 'saved'}!/99")


def test_splits_and_datasets_in_memory(tmp_path: Path) -> None:
    both = datasets.DatasetDict(train=hub_dataset(2), test=hub_dataset(3))
    both.save_to_disk(str(tmp_path / "saved"))
    assert [m["split"] for m in taken(Sources.resolve(tmp_path / "saved")).values()] == ["train"] * 2 + ["test"] * 3
    assert len(taken(Sources.resolve(both))) == 5
    assert len(taken(Sources.resolve([hub_dataset(2), hub_dataset(2)]))) == 2  # the same one twice


def test_a_dataset_without_images_lists_its_columns() -> None:
    with pytest.raises(BadInput, match="text"):
        Sources.resolve(datasets.Dataset.from_dict({"text": ["a"]}))


# Watching.


class Script(threading.Event):
    """Between two looks at the folder the next step happens; it stops after the last."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        super().__init__()
        self.steps = list(steps)

    def wait(self, timeout: float | None = None) -> bool:
        if self.steps:
            self.steps.pop(0)()
        else:
            self.set()
        return self.is_set()


def nothing() -> None:
    """A look without anything having happened."""


def test_watch_reports_what_is_complete_and_what_has_gone(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 2)
    new, data = tmp_path / "images" / "new.png", png()

    def cyan() -> None:
        Image.new("RGB", (5, 5), "cyan").save(paths[1])

    script = Script(
        nothing,
        *(partial(new.write_bytes, data[: len(data) * part // 4]) for part in range(5)),
        nothing,
        paths[0].unlink,
        cyan,
        nothing,
        nothing,
    )
    seen: list[Changes] = []
    for changes in watch(tmp_path / "images", 1.0, script):
        if new in changes.changed:
            assert new.read_bytes() == data, "it was taken while it was being written"
        seen.append(changes)
    assert seen == [
        Changes(tuple(paths), ()),
        Changes((new,), ()),
        Changes((), (paths[0],)),
        Changes((paths[1],), ()),
    ]
    only = Sources([Folder(tmp_path / "images", only=seen[-1].changed)])
    assert [(item.uri, item.metadata["camera"]) for item in only] == [(str(paths[1]), "cam1")]


def test_a_drive_that_drops_out_removes_nothing(tmp_path: Path) -> None:
    folder, away = tmp_path / "images", tmp_path / "away"
    paths = write_images(folder, 2)
    script = Script(nothing, nothing, partial(folder.rename, away), nothing, partial(away.rename, folder), nothing)
    assert list(watch(folder, 1.0, script)) == [Changes(tuple(paths), ())]
