"""Writing folders and files whole or not at all: a temporary sibling that takes the place of the real one."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from foveal.errors import BadInput, FovealError

MANIFEST = "manifest.json"
MARKER = ".foveal"  # in every folder that `staged` made: what may be replaced by a later run
# A path with one of these endings is staged as a file, any other as a folder.
TEXTS = (".json", ".jsonl", ".csv", ".html", ".xml", ".md", ".txt", ".yaml", ".yml", ".svg")
FILES = frozenset((*TEXTS, ".png", ".jpg", ".jpeg", ".webp", ".npz", ".npy", ".safetensors", ".onnx", ".parquet"))
_FULL = (errno.ENOSPC, errno.EDQUOT)
_STALE_SECONDS = 60.0


@contextmanager
def staged(out: Path | str, *, folder: bool | None = None, durable: bool = False) -> Generator[Path]:
    """A temporary sibling of `out` to write into; it takes `out`'s place on success and vanishes on any error.

    The path handed out is an empty folder, or a file yet to be written when `out` ends like one (`FILES`); `folder`
    says so outright. `durable` also flushes a folder's files to the disk (a file always is).

    Raises:
        BadInput: `out` is a folder that this project did not write, or cannot be created.
        FovealError: the disk is full; nothing is left behind.
    """
    out = Path(out).expanduser().resolve()
    is_folder = (out.suffix.lower() not in FILES or out.is_dir()) if folder is None else folder
    _check_replaceable(out, is_folder)
    with _disk_errors(out, setting_up=True):
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        holder = out.parent / f".{out.name}.partial-{secrets.token_hex(4)}"
        holder.mkdir()
        lock = _hold(holder)
    try:
        with _disk_errors(out):
            payload = holder / out.name
            if is_folder:
                payload.mkdir()
                (payload / MARKER).touch()
            yield payload
            if not payload.exists():
                raise FovealError(f"nothing was written for {out}", expected=f"a file at {payload}")
            if durable or not is_folder:
                _flush(payload)
            _take_place(payload, out)
    finally:
        shutil.rmtree(holder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def write_text(path: Path, text: str) -> None:
    """Write a small text file whole or not at all, flushed to the disk."""
    with staged(path, folder=False) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _check_replaceable(out: Path, is_folder: bool) -> None:
    if is_folder and out == Path.cwd():
        raise BadInput(f"{out} is the current folder", expected="a folder of its own", remedy="Name one, e.g. ./out.")
    if is_folder and out.is_file():
        raise BadInput(f"{out} is a file", expected="a folder to write", remedy="Choose another --out.")
    if not is_folder and out.is_dir():
        raise BadInput(f"{out} is a folder", expected="a file to write", remedy="Choose another file name.")
    if out.is_dir() and not (out / MARKER).exists() and not (out / MANIFEST).exists() and any(out.iterdir()):
        raise BadInput(
            f"{out} holds files that Foveal did not write, so it is not replaced",
            expected="a new or empty folder",
            remedy="Choose another --out, or empty it first.",
        )


@contextmanager
def _disk_errors(out: Path, *, setting_up: bool = False) -> Generator[None]:
    try:
        yield
    except FovealError:
        raise
    except Exception as error:
        # Libraries wrap ENOSPC in errors of their own (safetensors, pyarrow, onnx), so the text counts too.
        if getattr(error, "errno", None) in _FULL or "No space left on device" in str(error):
            raise FovealError(
                f"no space left while writing {out}",
                received=f"{_free_megabytes(out)} MB free on that disk",
                remedy="Free some space or choose another --out; nothing was left half written.",
            ) from error
        if setting_up and isinstance(error, OSError):
            raise BadInput(f"cannot write {out}: {error}", remedy="Choose a folder you may write to.") from error
        raise


def _free_megabytes(path: Path) -> int:
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free // 2**20


def _hold(holder: Path) -> int | None:
    """Lock a staging folder for the life of this process, so that others can tell it from an abandoned one."""
    try:
        import fcntl
    except ImportError:  # no such locks on Windows: abandoned folders stay there
        return None
    handle = os.open(holder, os.O_RDONLY)
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return handle


def _sweep(out: Path) -> None:
    """Remove what killed runs left beside `out`."""
    try:
        import fcntl
    except ImportError:
        return
    for holder in out.parent.glob(f".{out.name.replace('[', '[[]')}.partial-*"):
        with suppress(OSError):
            handle = os.open(holder, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - holder.stat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(holder, ignore_errors=True)
            finally:
                os.close(handle)


def _flush(path: Path) -> None:
    for item in [*path.rglob("*"), path] if path.is_dir() else [path]:
        handle = os.open(item, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _take_place(payload: Path, out: Path) -> None:
    if payload.is_dir() and out.exists():
        if not _exchange(payload, out):  # two steps where the file system cannot swap; the old one goes with the holder
            old = payload.with_name(payload.name + ".old")
            out.rename(old)
            try:
                payload.rename(out)
            except OSError:
                old.rename(out)
                raise
    else:
        os.replace(payload, out)
    _flush_entry(out.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two paths in one step (Linux renameat2 with RENAME_EXCHANGE), so that `b` never goes missing."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    at_cwd, exchange = -100, 2
    return rename(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange) == 0


def _flush_entry(folder: Path) -> None:
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
