import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foveal import artifacts
from foveal.artifacts import read, seal, staged, write_text
from foveal.errors import BadInput, FovealError, IntegrityError


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with staged(tmp_path / "deep" / "out") as folder:
        (folder / "a.txt").write_text("a")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "a.txt").read_text() == "a"
    assert left(tmp_path / "deep") == ["out"]


def test_a_file_appears_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", "1")
    with staged(tmp_path / "a.json") as path:
        path.write_text("2")
        assert (tmp_path / "a.json").read_text() == "1"
    assert (tmp_path / "a.json").read_text() == "2"
    assert left(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(errno.ENOENT, "x")])
@pytest.mark.parametrize("name", ["out", "out.json"])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: BaseException, name: str) -> None:
    with staged(tmp_path / name) as path:
        (path / "a.txt" if path.is_dir() else path).write_text("old")

    def fail() -> None:
        with staged(tmp_path / name) as path:
            (path / "a.txt" if path.is_dir() else path).write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert left(tmp_path) == [name]
    target = tmp_path / name
    assert (target / "a.txt" if target.is_dir() else target).read_text() == "old"


@pytest.mark.parametrize("swap", [True, False])
def test_a_folder_is_replaced(tmp_path: Path, swap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not swap:  # as on a file system that cannot exchange two names
        monkeypatch.setattr("foveal.staging._exchange", lambda a, b: False)
    for name in ("one", "two"):
        with staged(tmp_path / "out") as folder:
            (folder / name).touch()
    assert left(tmp_path / "out") == [".foveal", "two"]
    assert left(tmp_path) == ["out"]


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """/dev/full fails every write with ENOSPC, as a full disk does."""

    def fill() -> None:
        with staged(tmp_path / "out") as folder:
            (folder / "part").write_text("x")
            with open("/dev/full", "w") as stream:
                stream.write("x" * 100_000)

    with pytest.raises(FovealError, match=rf"no space left while writing {tmp_path}/out.*MB free.*nothing was left"):
        fill()
    assert left(tmp_path) == []


def test_a_full_disk_that_a_library_reports_in_words(tmp_path: Path) -> None:
    def fill() -> None:
        with staged(tmp_path / "out"):
            raise RuntimeError("I/O error: No space left on device (os error 28)")

    with pytest.raises(FovealError, match="no space left while writing"):
        fill()


@pytest.mark.parametrize(
    ("prepare", "out", "message"),
    [
        (lambda p: (p / "out").mkdir() or (p / "out" / "mine.txt").touch(), "out", "Foveal did not write"),
        (lambda p: (p / "out").touch(), "out", "is a file"),
        (lambda p: (p / "a.json").mkdir() or (p / "a.json" / "x").touch(), "a.json", "Foveal did not write"),
        (lambda p: (p / "out").touch(), "out/below", "cannot write"),
    ],
)
def test_what_may_not_be_replaced(tmp_path: Path, prepare, out: str, message: str) -> None:
    prepare(tmp_path)
    before = left(tmp_path)
    with pytest.raises(BadInput, match=message), staged(tmp_path / out):
        pass
    assert left(tmp_path) == before


def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="current folder"), staged("."):
        pass


def test_a_killed_run_is_swept_up_and_a_living_one_is_not(tmp_path: Path) -> None:
    script = (
        "import sys, os, signal; from foveal.artifacts import staged\n"
        "with staged(sys.argv[1]) as folder:\n"
        "    (folder / 'x').touch(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(artifacts.__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], env=environment, check=False)
    (abandoned,) = tmp_path.glob(".out.partial-*")
    old = time.time() - 3600
    os.utime(abandoned, (old, old))
    with staged(tmp_path / "out") as outer:
        os.utime(outer.parent, (old, old))
        with staged(tmp_path / "out"):
            assert outer.exists(), "the lock says that somebody is still writing"
    assert left(tmp_path) == ["out"]


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FovealError, match="nothing was written"), staged(tmp_path / "a.json"):
        pass


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"weights")
    (folder / "sub" / "notes.md").write_text("hello")
    (folder / ".cache").touch()
    return folder


def test_seal_and_read(run: Path) -> None:
    sealed = seal(run, name="det", kind="detector", parents=["hf:x/y"], data={"images": 3}, metrics={"AP50": 0.5})
    assert read(run) == sealed
    assert set(sealed.files) == {"model.onnx", "sub/notes.md"}
    assert json.loads((run / "manifest.json").read_text())["licence"] == "Apache-2.0"
    again = seal(run, name="other", kind="detector")
    assert again.fingerprint == sealed.fingerprint


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda run: (run / "model.onnx").write_bytes(b"Weights"), "model.onnx has changed"),
        (lambda run: (run / "model.onnx").unlink(), "model.onnx is missing"),
        (lambda run: (run / "extra.safetensors").touch(), "extra.safetensors is a weight file"),
        (lambda run: (run / "manifest.json").write_text("{}"), "is not a manifest"),
        (lambda run: (run / "manifest.json").write_bytes(b"\xff\xfe"), "is not a manifest"),
    ],
)
def test_changes_are_noticed(run: Path, tamper, message: str) -> None:
    seal(run, name="det", kind="detector")
    tamper(run)
    with pytest.raises(IntegrityError, match=message):
        read(run)


def test_a_card_may_be_added_and_hashing_skipped(run: Path) -> None:
    seal(run, name="det", kind="detector")
    (run / "card.md").touch()
    read(run)
    (run / "model.onnx").write_bytes(b"x")
    read(run, verify=False)


def test_a_manifest_cannot_point_outside(run: Path) -> None:
    seal(run, name="det", kind="detector")
    content = json.loads((run / "manifest.json").read_text())
    content["files"]["../secret"] = "0" * 64
    (run / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(IntegrityError, match="outside the folder"):
        read(run)


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.PKL", "a.bin", "sub/optimizer.ckpt"])
def test_pickles_are_refused(run: Path, name: str) -> None:
    (run / name).touch()
    with pytest.raises(BadInput, match=r"is a pickle.*safetensors"):
        seal(run, name="det", kind="detector")
    assert not (run / "manifest.json").exists()


def test_openvino_weights_are_no_pickle(run: Path) -> None:
    (run / "model.xml").touch()
    (run / "model.bin").touch()
    assert "model.bin" in seal(run, name="det", kind="detector").files


def test_links_and_empty_folders_are_refused(run: Path, tmp_path: Path) -> None:
    os.symlink("/etc/hostname", run / "link")
    with pytest.raises(BadInput, match="symbolic link"):
        seal(run, name="det", kind="detector")
    shutil.rmtree(run)
    run.mkdir()
    with pytest.raises(BadInput, match="nothing to seal"):
        seal(run, name="det", kind="detector")
    with pytest.raises(BadInput, match="has no manifest"):
        read(tmp_path)
