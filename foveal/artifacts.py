"""A run folder that says what it is: `manifest.json` with origin, settings, figures and a hash of every file.

Weights are safetensors, ONNX or OpenVINO IR; pickles are refused because loading one runs its author's code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from foveal.errors import BadInput, IntegrityError
from foveal.staging import MANIFEST, staged, write_text

__all__ = ["MANIFEST", "Manifest", "file_hash", "read", "seal", "staged", "write_text"]

PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib")
WEIGHTS = (".safetensors", ".onnx", ".xml", ".bin", ".data", ".gguf")


class Manifest(BaseModel):
    """What a run folder holds and where it came from."""

    model_config = ConfigDict(extra="forbid")

    name: str
    kind: str  # adapter, detector, encoder, archive, dataset, ...
    created: datetime
    foveal_version: str
    parents: list[str] = Field(default_factory=list)  # fingerprints or references of what it was made from
    data: dict[str, Any] = Field(default_factory=dict)  # fingerprints and sizes of the data it saw
    config: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)
    licence: str
    files: dict[str, str] = Field(default_factory=dict)  # relative POSIX path -> sha256 hex

    @property
    def fingerprint(self) -> str:
        """sha256 hex over kind and file hashes: equal for equal content, whatever its name or date."""
        return hashlib.sha256(json.dumps([self.kind, self.files], sort_keys=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """sha256 hex of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def seal(
    folder: Path,
    *,
    name: str,
    kind: str,
    parents: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    licence: str = "Apache-2.0",
) -> Manifest:
    """Write `manifest.json` with the hash of every file in `folder` (hidden files aside) and return it.

    Raises:
        BadInput: the folder holds a pickle, a symbolic link or nothing at all.
    """
    from foveal import __version__

    paths = _contents(folder)
    if not paths:
        raise BadInput(f"nothing to seal in {folder}", expected="at least one file beside the manifest")
    for path in paths:
        if path.is_symlink():
            raise BadInput(f"{path} is a symbolic link", expected="regular files", remedy="Copy its target in.")
        if _is_pickle(path):
            raise BadInput(
                f"{path} is a pickle, which can run code when loaded",
                expected="safetensors or ONNX weights",
                remedy="Save it with safetensors.torch.save_file, or remove it.",
            )
    manifest = Manifest(
        name=name,
        kind=kind,
        created=datetime.now(UTC).replace(microsecond=0),
        foveal_version=__version__,
        parents=list(parents),
        data=dict(data or {}),
        config=dict(config or {}),
        metrics=dict(metrics or {}),
        licence=licence,
        files={path.relative_to(folder).as_posix(): file_hash(path) for path in paths},
    )
    write_text(folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    return manifest


def read(folder: Path, *, verify: bool = True) -> Manifest:
    """The manifest of a sealed folder; `verify` checks every file against it.

    Raises:
        BadInput: there is no manifest.
        IntegrityError: the manifest is malformed, a file is missing or differs, or an unlisted weight file lies there.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BadInput(f"{folder} has no {MANIFEST}", expected="a folder that a Foveal command wrote")
    try:
        manifest = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise IntegrityError(f"{path} is not a manifest: {first}", remedy="Write the folder again.") from error
    if verify:
        _verify(folder, manifest)
    return manifest


def _verify(folder: Path, manifest: Manifest) -> None:
    root = folder.resolve()
    remedy = "Copy or make the folder again; it is not what was sealed."
    for relative, digest in manifest.files.items():
        path = folder / relative
        if not path.resolve().is_relative_to(root):
            raise IntegrityError(f"{folder / MANIFEST} lists {relative}, which lies outside the folder", remedy=remedy)
        if not path.is_file():
            raise IntegrityError(f"{path} is missing", expected=f"sha256 {digest[:12]}", remedy=remedy)
        actual = file_hash(path)
        if actual != digest:
            raise IntegrityError(
                f"{path} has changed", expected=f"sha256 {digest[:12]}", received=actual[:12], remedy=remedy
            )
    for path in _contents(folder):
        if path.suffix.lower() in WEIGHTS and path.relative_to(folder).as_posix() not in manifest.files:
            raise IntegrityError(f"{path} is a weight file that {MANIFEST} does not list", remedy=remedy)


def _contents(folder: Path) -> list[Path]:
    """Files below `folder` in sorted order, without the manifest and hidden files."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if (path.is_file() or path.is_symlink())
        and path != folder / MANIFEST
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _is_pickle(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix not in PICKLES:
        return False
    # OpenVINO keeps the raw weights of `model.xml` in `model.bin`: no pickle.
    return not (suffix == ".bin" and path.with_suffix(".xml").is_file())
