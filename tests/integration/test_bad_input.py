"""What a user gets wrong: one line that names the thing, what was expected and the remedy; and nothing half written."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from foveal import world
from tests.command import foveal, shell
from tests.tiny import tiny_clip, tiny_owl

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small rendered world."""
    out = tmp_path_factory.mktemp("bad") / "site"
    world.write(out, "site", 6, seed=5, size=96, workers=1)
    return out


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Random tiny models, by reference."""
    folder = tmp_path_factory.mktemp("models")
    return {"clip": f"open_clip:{tiny_clip(folder / 'clip')}", "owl": f"hf:{tiny_owl(folder / 'owl')}"}


@pytest.fixture
def archive(site: Path, models: dict[str, str], tmp_path: Path) -> Path:
    """An archive of the world's images."""
    out = tmp_path / "archive"
    made = foveal("archive", "add", str(site / "images"), "--archive", str(out), "--encoder", models["clip"], "--json")
    assert made.json["added"] == 6
    return out


@pytest.fixture
def unchanged(tmp_path: Path) -> Iterator[None]:
    """Fails a test that leaves anything new or changed in its folder, hidden leftovers included."""

    def tree() -> dict[str, int]:
        return {str(p): p.stat().st_size for p in tmp_path.rglob("*") if p.is_file() or not any(p.iterdir())}

    before = tree()
    yield
    assert tree() == before


def _ontology(path: Path, *names: str) -> Path:
    path.write_text("classes:\n" + "".join(f"  - {name}\n" for name in names))
    return path


@pytest.fixture
def spoiled(site: Path, tmp_path: Path) -> Path:
    """A folder with two good images, and a truncated, an empty and a renamed text file."""
    folder = tmp_path / "photos"
    folder.mkdir()
    good = sorted((site / "images").iterdir())
    for source in good[:2]:
        shutil.copy(source, folder)
    (folder / "cut.jpg").write_bytes(good[2].read_bytes()[:400])
    (folder / "empty.png").touch()
    (folder / "notes.jpg").write_text("no image")
    return folder


def test_unreadable_files_are_quarantined_and_counted_and_work_goes_on(
    spoiled: Path, models: dict[str, str], tmp_path: Path
) -> None:
    line = [
        "archive",
        "add",
        str(spoiled),
        "--archive",
        str(tmp_path / "archive"),
        "--encoder",
        models["clip"],
        "--json",
    ]
    shown = foveal(*line)
    assert shown.code == 0, shown.err
    assert (shown.json["added"], shown.json["quarantined"], shown.json["images"]) == (2, 3, 2)
    reasons = {Path(entry["path"]).name: entry["reason"] for entry in shown.json["reasons"]}
    assert set(reasons) == {"cut.jpg", "empty.png", "notes.jpg"}
    assert all("Traceback" not in reason and "\n" not in reason for reason in reasons.values())
    assert foveal("archive", "check", "--archive", str(tmp_path / "archive"), "--json").code == 0


def test_prelabelling_skips_unreadable_files_and_says_which(
    spoiled: Path, site: Path, models: dict[str, str], tmp_path: Path
) -> None:
    kinds = _ontology(tmp_path / "kinds.yaml", *world.kinds("site"))
    shown = foveal(
        *("prelabel", str(spoiled), "--ontology", str(kinds), "--gold", str(site / "instances.json")),
        *("--teacher", models["owl"], "--encoder", models["clip"], "--out", str(tmp_path / "labels"), "--json"),
    )
    assert shown.code == 0, shown.err
    assert shown.json["images"] == 2
    assert {Path(name).name for name, _ in shown.json["skipped"]} == {"cut.jpg", "empty.png", "notes.jpg"}


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("clip:ViT-B-32", ["clip", "open_clip"]),
        ("ViT-B-32", ["ViT-B-32", "hf:org/model"]),
        ("open_clip:ViT-B-23/laion2b_s34b_b79k", ["ViT-B-23", "ViT-B-32"]),
        ("open_clip:ViT-B-32/laion2b", ["laion2b", "laion2b_s34b_b79k"]),
        ("bundled:clp", ["clp", "clip"]),
        ("hf:./no-such-folder", ["no-such-folder", "hub"]),
        ("bundled:clip+no-adapter", ["no-adapter", "foveal adapt"]),
        ("onnx:model", ["onnx", "encoder"]),
    ],
)
def test_an_unknown_encoder(site: Path, tmp_path: Path, reference: str, said: list[str]) -> None:
    shown = foveal("archive", "add", str(site / "images"), "--archive", str(tmp_path / "new"), "--encoder", reference)
    assert shown.code == 1
    assert not [word for word in said if word not in shown.error], shown.error


@pytest.mark.usefixtures("unchanged")
def test_an_unknown_student_lists_the_choices(site: Path, tmp_path: Path) -> None:
    shown = foveal("distill", str(site), "--student", "yolo", "--out", str(tmp_path / "student"))
    assert shown.code == 1
    assert "yolo" in shown.error
    assert "d-fine-n" in shown.error


@pytest.mark.usefixtures("unchanged")
def test_an_unknown_teacher_is_named_before_any_work(site: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    kinds = _ontology(tmp_path_factory.mktemp("o") / "kinds.yaml", "cone")
    out = tmp_path_factory.mktemp("o") / "labels"
    shown = foveal(
        *("prelabel", str(site / "images"), "--ontology", str(kinds), "--gold", str(site / "instances.json")),
        *("--teacher", "owl:v2", "--encoder", "bundled:clip", "--out", str(out)),
    )
    assert shown.code == 1
    assert "'owl'" in shown.error
    assert not list(out.parent.glob("*labels*"))


def test_an_unknown_artifact_names_what_there_is(tmp_path: Path) -> None:
    shown = foveal("serve", "--detector", "artifact:depot@production", "--registry", str(tmp_path), "--port", "0")
    assert shown.code == 1
    assert "depot" in shown.error


def test_a_class_listed_twice(site: Path, models: dict[str, str], tmp_path: Path) -> None:
    kinds = _ontology(tmp_path / "kinds.yaml", "cone", "barrel", "Cone")
    shown = foveal(
        *("prelabel", str(site / "images"), "--ontology", str(kinds), "--gold", str(site / "instances.json")),
        *("--teacher", models["owl"], "--encoder", models["clip"], "--out", str(tmp_path / "labels")),
    )
    assert shown.code == 1
    assert str(kinds) in shown.error
    assert "'Cone'" in shown.error
    assert "twice" in shown.error
    assert list(tmp_path.iterdir()) == [kinds]


def test_a_coco_category_listed_twice(site: Path, tmp_path: Path) -> None:
    truth = json.loads((site / "instances.json").read_text())
    truth["categories"][1]["name"] = truth["categories"][0]["name"]
    (site / "twice.json").write_text(json.dumps(truth))
    shown = foveal("distill", str(site / "twice.json"), "--out", str(tmp_path / "student"))
    (site / "twice.json").unlink()
    assert shown.code == 1
    assert repr(truth["categories"][0]["name"]) in shown.error
    assert "Rename or remove" in shown.error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["distill", "gold"])
def test_a_coco_file_that_points_at_missing_images(
    site: Path, models: dict[str, str], tmp_path: Path, command: str
) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(site, folder)
    lost = sorted((folder / "images").iterdir())[:2]
    for path in lost:
        path.unlink()
    truth = str(folder / "instances.json")
    if command == "distill":
        shown = foveal("distill", truth, "--out", str(tmp_path / "out"))
    else:
        kinds = _ontology(tmp_path / "kinds.yaml", *world.kinds("site"))
        shown = foveal(
            *("prelabel", str(site / "images"), "--ontology", str(kinds), "--gold", truth),
            *("--teacher", models["owl"], "--encoder", models["clip"], "--out", str(tmp_path / "out")),
        )
    assert shown.code == 1
    assert truth in shown.error
    assert lost[0].name in shown.error
    assert "2" in shown.error
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("max_second=5", ["max_second", "Did you mean max_seconds?"]),
        ("batch=many", ["batch", "integer", "many"]),
        ("batch=0", ["batch", "greater than or equal to 1"]),
        ("precision=float16", ["precision", "bfloat16"]),
        ("max_seconds", ["max_seconds", "key=value"]),
    ],
)
def test_a_wrong_override(site: Path, tmp_path: Path, override: str, said: list[str]) -> None:
    shown = foveal("distill", str(site), "--out", str(tmp_path / "student"), "--set", override)
    assert shown.code == 1
    assert not [word for word in said if word not in shown.error], shown.error


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_second: 5\n", ["max_second", "max_seconds", "config.yaml"]),
        ("batch: 8\nbatch: 16\n", ["batch", "twice"]),
        ("- batch\n", ["config.yaml", "keys"]),
        ("batch: [8\n", ["config.yaml", "YAML", "line 2"]),
        (None, ["config.yaml", "No such file"]),
    ],
)
def test_a_wrong_config_file(site: Path, tmp_path: Path, text: str | None, said: list[str]) -> None:
    config = tmp_path / "config.yaml"
    if text is not None:
        config.write_text(text)
    shown = foveal("distill", str(site), "--out", str(tmp_path / "student"), "--config", str(config))
    assert shown.code == 1
    assert not [word for word in said if word not in shown.error], shown.error
    assert [p for p in tmp_path.iterdir() if p != config] == []


def test_a_filter_over_an_unknown_column(archive: Path) -> None:
    shown = foveal("archive", "search", "--archive", str(archive), "--text", "a cone", "--filter", "camra = 'cam-11'")
    assert shown.code == 1
    assert "camra" in shown.error
    assert "camera" in shown.error


def test_a_filter_that_is_none(archive: Path) -> None:
    shown = foveal("archive", "search", "--archive", str(archive), "--text", "a cone", "--filter", "camera = = 'x'")
    assert shown.code == 1
    assert "camera = = 'x'" in shown.error


def test_a_search_without_a_query(archive: Path) -> None:
    shown = foveal("archive", "search", "--archive", str(archive))
    assert shown.code == 1
    assert "--text" in shown.error


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    "line",
    [
        ["archive", "search", "--archive", "missing", "--text", "a cone"],
        ["archive", "add", "missing", "--archive", "new"],
        ["eval", "retrieval", "--data", "missing"],
        ["gate", "missing.yaml", "--results", "missing.json"],
        ["export", "missing"],
        ["adapt", "clip", "--base", "bundled:clip", "--data", "missing", "--out", "new"],
    ],
    ids=lambda line: " ".join(line[:2]),
)
def test_a_path_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    shown = foveal(*line)
    assert shown.code == 1
    assert "missing" in shown.error


@pytest.mark.parametrize("command", [["delete", "--yes", "--from"], ["clusters", "-k", "2", "--vocabulary"]])
def test_a_list_that_is_no_text(archive: Path, site: Path, tmp_path: Path, command: list[str]) -> None:
    picture = min((site / "images").iterdir())
    for file, reason in ((picture, "not UTF-8"), (tmp_path / "none.txt", "No such file"), (tmp_path, "directory")):
        shown = foveal("archive", command[0], "--archive", str(archive), *command[1:], str(file))
        assert shown.code == 1
        assert f"{file} cannot be read: " in shown.error
        assert reason in shown.error


def test_a_list_from_another_editor(archive: Path, tmp_path: Path) -> None:
    hits = foveal("archive", "search", "--archive", str(archive), "--text", "a cone", "-k", "2", "--json").json["hits"]
    (tmp_path / "ids.txt").write_text("\ufeff" + " \r\n\r\n".join(hit["id"] for hit in hits), "utf-8")
    shown = foveal(
        "archive", "delete", "--archive", str(archive), "--yes", "--from", str(tmp_path / "ids.txt"), "--json"
    )
    assert shown.json == {"deleted": 2, "images": 4}


def test_an_overlong_name_is_not_repeated(archive: Path) -> None:
    shown = foveal("archive", "search", "--archive", str(archive), "--image", "x" * 100_000)
    assert shown.code == 1
    assert "File name too long" in shown.error
    assert len(shown.error) < 500


def test_an_archive_of_another_encoder(archive: Path, site: Path, tmp_path: Path) -> None:
    other = f"open_clip:{tiny_clip(tmp_path / 'other', seed=1)}"
    before = sorted(p.stat().st_mtime_ns for p in archive.rglob("*"))
    shown = foveal("archive", "add", str(site / "images"), "--archive", str(archive), "--encoder", other)
    assert shown.code == 1
    assert str(archive) in shown.error
    assert "foveal archive add" in shown.error
    assert sorted(p.stat().st_mtime_ns for p in archive.rglob("*")) == before


def test_a_port_in_use(archive: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        shown = foveal("serve", "--archive", str(archive), "--port", str(port), "--no-demo")
    assert shown.code == 1
    assert str(port) in shown.error
    assert "another --port" in shown.error


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("command", ["world", "archive add", "adapt clip", "distill", "prelabel"])
def test_a_full_disk(small_disk: Path, site: Path, models: dict[str, str], tmp_path: Path, command: str) -> None:
    out = small_disk / "out"
    spare = 200_000 if command == "world" else 40_000
    (small_disk / "ballast").write_bytes(b"0" * (2 * 2**20 - spare))
    kinds = _ontology(tmp_path / "kinds.yaml", *world.kinds("site"))
    lines = {
        "world": ["world", str(out), "--count", "60", "--workers", "2"],
        "archive add": ["archive", "add", str(site / "images"), "--archive", str(out), "--encoder", models["clip"]],
        "adapt clip": [
            *("adapt", "clip", "--base", models["clip"], "--data", str(site), "--out", str(out)),
            *("--set", "epochs=1"),
        ],
        "distill": ["distill", str(site), "--out", str(out), "--set", "epochs=1"],
        "prelabel": [
            *("prelabel", str(site / "images"), "--ontology", str(kinds), "--gold", str(site / "instances.json")),
            *("--teacher", models["owl"], "--encoder", models["clip"], "--out", str(out)),
        ],
    }
    shown = foveal(*lines[command])
    assert shown.code == 1, shown.out
    assert "space" in shown.error
    assert str(small_disk) in shown.error
    if command != "archive add":  # an archive keeps what it acknowledged
        assert not out.exists()
    assert not list(small_disk.glob(".out.partial-*"))
    (small_disk / "ballast").unlink()
    if command in ("archive add", "prelabel"):
        again = foveal(*lines[command])
        assert again.code == 0, again.err


def test_a_file_size_limit_leaves_nothing_behind(tmp_path: Path) -> None:
    words = shell("world", str(tmp_path / "out"), "--count", "4", "--size", "224", "--workers", "1")
    limited = ["bash", "-c", 'ulimit -f 4; exec "$@"', "limited", *words]
    shown = subprocess.run(limited, capture_output=True, text=True, cwd=ROOT)
    assert shown.returncode == 1
    assert "Traceback" not in shown.stderr
    assert [text for text in shown.stderr.splitlines() if text.startswith("error: ")]
    assert not list(tmp_path.iterdir())
