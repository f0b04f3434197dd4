"""Archives out of and into other tools' files, and copies of them.

A `.parquet` file holds everything about an image but its pixels; a `.npy` holds the vectors (N, D), float16, with the
rest in a `.parquet` of the same name beside it. Both say which encoder made them.

Shape letters: N images, D embedding dimensions.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as _pyarrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.parquet as _parquet  # pyright: ignore[reportMissingTypeStubs]

from foveal.artifacts import staged
from foveal.detections import FloatArray
from foveal.errors import BadInput, FingerprintMismatch
from foveal.images import decode
from foveal.models import Encoder
from foveal.progress import Progress
from retrieval.query import decode_side
from retrieval.sources_item import flat

if TYPE_CHECKING:
    from retrieval.archive import Archive

pa: Any = _pyarrow
pq: Any = _parquet

PIECE = 16_384  # rows at a time
COLUMNS = ("id", "uri", "content_hash", "width", "height", "bytes", "phash", "metadata")
ALIKE = 0.98  # cosine between a vector of unknown origin and the encoder's own for the same image
TRIED = 16  # images compared


def export(archive: Archive, out: Path, progress: Progress) -> int:
    """Writes every image's vector and record to `out` (`.parquet` or `.npy`); returns how many there were.

    Raises:
        BadInput: another suffix, or something is there.
    """
    if out.suffix not in (".parquet", ".npy"):
        raise BadInput(f"cannot export to {out.name}", expected="a name that ends in .parquet or .npy")
    beside = out.with_suffix(".parquet")
    for path in {out, beside}:
        if path.exists():
            raise BadInput(f"{path} exists already", remedy="Choose another name, or remove it.")
    view = archive.snapshot()
    told = {b"foveal.encoder": archive.encoder.encode(), b"foveal.fingerprint": archive.fingerprint.encode()}
    columns = [*COLUMNS, *(name for name in archive.columns if name not in COLUMNS)]
    out.parent.mkdir(parents=True, exist_ok=True)
    progress.start("export", len(view.rows))
    try:
        with staged(beside) as file:
            if out.suffix == ".parquet":
                _write(file, view, [*columns, "vector"], told, progress)
            else:
                _write(file, view, columns, told, progress)
                with staged(out) as array:
                    _write_vectors(array, view, archive.settings.dimension)
    finally:
        progress.finish()
    return len(view.rows)


def _write(file: Path, view: Any, columns: Sequence[str], told: dict[bytes, bytes], progress: Progress) -> None:
    schema = view.table.schema(columns).with_metadata(told)
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, len(view.rows), PIECE):
            piece = view.table.take(view.rows[start : start + PIECE], columns)
            writer.write_table(piece.cast(schema))
            progress.advance(len(piece))


def _write_vectors(file: Path, view: Any, dimension: int) -> None:
    shape = (len(view.rows), dimension)
    with file.open("wb") as stream:
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for start in range(0, len(view.rows), PIECE):
            stream.write(view.table.vectors(view.rows[start : start + PIECE]).astype("<f2").tobytes())


def read(archive: Archive, source: Path, encoder: Encoder, progress: Progress) -> tuple[int, list[str]]:
    """Adds the vectors of an exported file, or of another tool's; returns how many, and notes.

    A file that does not say which encoder made it is believed only after the encoder's own vectors of some of its
    images have turned out the same.

    Raises:
        BadInput: the file is of another kind or lacks a column, or no image is there to compare.
        FingerprintMismatch: another encoder made the vectors.
        Unavailable: another process is writing.
    """
    file, array = _opened(source)
    with file:
        told = file.schema_arrow.metadata or {}
        fingerprint = told.get(b"foveal.fingerprint", b"").decode()
        if fingerprint and fingerprint != archive.fingerprint:
            name = told.get(b"foveal.encoder", b"another encoder").decode()
            raise FingerprintMismatch(
                f"{source} was made by {name}, not by {archive.encoder}",
                expected=f"fingerprint {archive.fingerprint[:12]}",
                received=fingerprint[:12],
                remedy="Add the images themselves, or import into an archive of that encoder.",
            )
        count, notes = 0, list[str]()
        progress.start("import", file.metadata.num_rows)
        try:
            for records, vectors in _pieces(file, array):
                if not fingerprint and not count:
                    _compare(source, records, vectors, encoder)
                notes += archive.add_records(records, vectors, fingerprint=archive.fingerprint)
                count += len(records)
                progress.advance(len(records))
        finally:
            progress.finish()
        notes += archive.index(progress)
    return count, sorted(set(notes))


def _opened(source: Path) -> tuple[Any, Any]:
    """The open parquet file, and the array of vectors when they are not in it."""
    if source.suffix not in (".parquet", ".npy"):
        raise BadInput(f"cannot import {source.name}", expected="a .parquet file, or a .npy file with one beside it")
    beside = source.with_suffix(".parquet")
    try:
        file = pq.ParquetFile(beside)
        array = None if source.suffix == ".parquet" else np.load(source, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise BadInput(f"{source} cannot be read: {error}", expected=f"{source.name} and {beside.name}") from error
    needed = {"uri"} if array is not None else {"uri", "vector"}
    if missing := sorted(needed - set(file.schema_arrow.names)):
        held = ", ".join(file.schema_arrow.names)
        raise BadInput(f"{beside} lacks {', '.join(missing)}", expected="columns uri and vector", received=held)
    if array is not None and (array.ndim != 2 or len(array) != file.metadata.num_rows):
        fitting = f"({file.metadata.num_rows}, D)"
        raise BadInput(f"{source} and {beside.name} do not fit", expected=fitting, received=str(array.shape))
    return file, array


def _pieces(file: Any, array: Any) -> Iterator[tuple[list[dict[str, Any]], FloatArray]]:
    row = 0
    for batch in file.iter_batches(PIECE):
        table = pa.table(batch)
        if array is None:
            lists = table["vector"].combine_chunks()
            vectors = np.asarray(lists.flatten(), dtype=np.float32).reshape(len(table), -1)
            table = table.drop_columns(["vector"])
        else:
            vectors = np.asarray(array[row : row + len(table)], dtype=np.float32)
        row += len(table)
        yield [_record(one) for one in table.to_pylist()], vectors


def _record(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a row, its metadata as a mapping: what `metadata` says, else every other column."""
    fields = {key: row.pop(key, None) for key in COLUMNS}
    if fields["metadata"] is None:
        fields["metadata"] = flat(row)
    else:
        fields["metadata"] = json.loads(fields["metadata"])
    return fields


def _compare(source: Path, records: list[dict[str, Any]], vectors: FloatArray, encoder: Encoder) -> None:
    images: list[Any] = []
    places: list[int] = []
    for place, record in enumerate(records):
        if len(images) < TRIED and Path(record["uri"]).is_file():
            images.append(decode(record["uri"], min_side=decode_side(encoder)))
            places.append(place)
    if not images:
        raise BadInput(
            f"{source} does not say which encoder made it, and none of its images is here to compare with",
            remedy="Copy some of the images to the paths in its uri column, or add the images themselves.",
        )
    given = vectors[places] / np.linalg.norm(vectors[places], axis=1, keepdims=True)
    own = encoder.encode_images(images)
    alike = float(np.median((given * own).sum(axis=1))) if given.shape == own.shape else 0.0
    if alike < ALIKE:
        raise FingerprintMismatch(
            f"{source} was not made by {encoder.name}",
            expected=f"a cosine of {ALIKE:g} with its vectors of the same images",
            received=f"{alike:.3f} for {len(images)} images",
            remedy="Name the encoder that made it, or add the images themselves.",
        )


def backup(archive: Archive, destination: Path) -> int:
    """A copy of the archive that can be opened where it lies; returns its size in bytes.

    Raises:
        BadInput: something is at `destination` already, it lies in the archive, or the archive may not be locked.
        Unavailable: another process is writing, or indexing.
    """
    if destination.exists():
        raise BadInput(f"{destination} exists already", expected="a new folder")
    if destination.resolve().is_relative_to(archive.path.resolve()):
        raise BadInput(f"{destination} lies in the archive", expected="a folder elsewhere")
    denied = "Run it as a user who may write there, or copy the folder yourself while nobody writes to it."
    with archive.still(denied=denied), staged(destination, folder=True) as folder:
        shutil.copytree(archive.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*lock"))
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
