"""A new generation of an archive: the same images embedded by another encoder, built beside the one that is served.

`generations/` gets a folder with a table and an index of its own. What was embedded before a kill is not embedded
again; what was added or deleted meanwhile is caught up with; then one atomic write of `archive.json` puts it in the
place of the old one, which stays for comparison until `compact`.

Shape letters: D embedding dimensions.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from foveal.errors import BadInput, FovealError, Unavailable
from foveal.models import Encoder
from foveal.progress import Progress
from retrieval.blur import secret
from retrieval.checksums import Checksums
from retrieval.feedback import Feedback
from retrieval.ingest import embed, identity
from retrieval.relevance import Model
from retrieval.relevance_fit import fit
from retrieval.settings import Settings
from retrieval.sources import Sources, local_path
from retrieval.sources_item import Item, outer, read_file
from retrieval.table import Table, Value, batched

if TYPE_CHECKING:
    from retrieval.archive import Archive

KEPT = ("content_hash", "stamp", "width", "height", "bytes", "phash", "thumbnail")  # of an image that is gone
PIECE = 1024


@dataclass(slots=True)
class ReembedReport:
    """What became of the images."""

    images: int = 0  # of the new generation
    from_thumbnail: set[str] = field(
        default_factory=set[str]
    )  # URIs whose file is gone or damaged, or not blurred as they are
    lost: dict[str, str] = field(default_factory=dict[str, str])  # URI -> why not even a thumbnail could be embedded
    calibrated: bool = False  # whether searches give probabilities from now on
    notes: list[str] = field(default_factory=list[str])


def reembed(
    archive: Archive, encoder: Encoder, reference: str, progress: Progress, *, allow: Collection[str] = ()
) -> ReembedReport:
    """Makes `encoder` the encoder of `archive`; handles opened before go on until the swap, and are refused after it.

    An archive that was calibrated is calibrated for `encoder` before the swap, where there is enough to learn from.

    Raises:
        BadInput: it is the archive's encoder already.
        Unavailable: another process is writing, or re-embedding too.
    """
    if encoder.fingerprint == archive.fingerprint:
        raise BadInput(f"{archive.path} is embedded with {archive.encoder} already")
    old = archive.settings
    settings = Settings(reference, encoder.fingerprint, encoder.dimension, old.index, old.generation + 1)
    folder = settings.folder(archive.path)
    folder.mkdir(exist_ok=True)
    report = ReembedReport()
    try:
        with FileLock(folder / ".building", timeout=0):
            _begin(folder, settings)
            fresh = archive.at(settings)
            _copy(archive, fresh, encoder, allow, report, progress)
            fresh.index(progress)
            _recalibrate(archive, fresh, encoder, report)
            with archive.still(seconds=-1):  # what came meanwhile is little
                _copy(archive, fresh, encoder, allow, report, progress)
                settings.write(archive.path)
    except Timeout as error:
        raise Unavailable(f"another process is re-embedding {archive.path}", remedy="Wait for it.") from error
    report.notes += fresh.index(progress)
    return report


def _begin(folder: Path, settings: Settings) -> None:
    """An empty generation, or the unfinished one of the same encoder."""
    try:
        if Settings.read(folder).fingerprint == settings.fingerprint:
            return
    except BadInput:
        pass
    for path in folder.iterdir():
        if path.name != ".building":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with Checksums(folder / "table.lance").recording():
        Table.create(folder / "table.lance", settings.dimension)
    settings.write(folder)


def _recalibrate(archive: Archive, fresh: Archive, encoder: Encoder, report: ReembedReport) -> None:
    """Fits for `fresh` what `archive` tells of the relevance of its hits, if it does."""
    if Model.read(archive.folder / "relevance.json") is None:
        return
    model = fit(fresh.snapshot(), encoder, Feedback(archive.path / "feedback.sqlite").read())
    report.calibrated = bool(model.basis["phrases"] or model.basis["judgements"])
    if report.calibrated:
        model.write(fresh.folder / "relevance.json")
    else:
        report.notes.append(
            f"searches give no probabilities any more: too few captions, labels or judgements to learn from with "
            f"{encoder.name}; add some, and calibrate again with `foveal archive calibrate`"
        )


def _copy(
    archive: Archive,
    fresh: Archive,
    encoder: Encoder,
    allow: Collection[str],
    report: ReembedReport,
    progress: Progress,
) -> None:
    """Brings the table of `fresh` level with that of `archive`."""
    source = archive.table()
    since = source.added()
    here, there = _contents(source), _contents(fresh.table())
    sums = Checksums(fresh.folder / "table.lance")
    with sums.recording():
        fresh.table().delete(sorted(there.keys() - here.keys()))
    wanted = [key for key, content in here.items() if there.get(key) != content]

    def embedded(items: Iterator[Item], advance: bool) -> dict[str, str]:
        """Commits the items; the URIs of those that could not be embedded, with the reasons."""
        rejected: dict[str, str] = {}
        with closing(embed(items, encoder, lambda ids: {})) as batches:
            for batch in batches:
                ids = [row.id for row in batch.rows]
                if ids:
                    kept = source.find(ids, KEPT)
                    rows = [replace(row, **kept[row.id], added=since[row.id]) for row in batch.rows]
                    with sums.recording():
                        fresh.table().write(rows, encoder.fingerprint, fresh.table().known(ids))
                rejected |= {entry.uri: entry.reason for entry in batch.rejected}
                if advance:
                    progress.advance(batch.files)
        return rejected

    progress.start("re-embed", len(wanted))
    try:
        gone = embedded(_stored(source, wanted, allow), advance=True)
        small = list(_thumbnails(source, [identity(uri) for uri in gone]))
        lost = embedded(iter(small), advance=False) if small else {}
    finally:
        progress.finish()
    saved = {item.uri for item in small} - lost.keys()
    report.from_thumbnail |= saved
    report.lost |= {uri: reason for uri, reason in gone.items() if uri not in saved}
    with sums.recording():
        fresh.table().tidy()
    sums.tidy()
    report.images = len(fresh.table())


def _contents(table: Table) -> dict[str, int]:
    """id -> a number that stands for the pixels and metadata of the image."""
    return {
        key: hash((content, metadata))
        for batch in table.scan(["id", "content_hash", "metadata"])
        for key, content, metadata in zip(*(batch[name].to_pylist() for name in batch.schema.names), strict=True)
    }


def _stored(table: Table, ids: Sequence[str], allow: Collection[str]) -> Iterator[Item]:
    """Images of a table as items to embed, read where they lie."""
    inside, one_at_a_time = lru_cache(1)(partial(_inside, tuple(allow))), Lock()

    def read(uri: str, metadata: Mapping[str, Value]) -> bytes:
        if secret(metadata):  # the thumbnail stands in: its file shows what was blurred
            raise BadInput(f"{uri} is blurred here, and its file is not")
        path = local_path(uri)
        if path is not None:
            return read_file(str(path))
        with one_at_a_time:  # else each of the threads that read ahead would list it
            found = inside(outer(uri))
        if isinstance(found, str):
            raise BadInput(found)
        item = found.get(uri)
        if item is None:
            raise BadInput(f"{uri} is no longer there")
        return item.read()

    for part in batched(ids, PIECE):
        for record in table.find(part, ["uri", "metadata"]).values():
            told = json.loads(record["metadata"])
            yield Item(record["uri"], told, None, partial(read, record["uri"], told))


def _thumbnails(table: Table, ids: Sequence[str]) -> Iterator[Item]:
    """Those of the images that have a thumbnail, as items that read it."""
    for part in batched(ids, PIECE):
        for record in table.find(part, ["uri", "thumbnail", "metadata"]).values():
            data: bytes | None = record["thumbnail"]
            if data is not None:
                yield Item(record["uri"], json.loads(record["metadata"]), None, lambda data=data: data)


def _inside(allow: tuple[str, ...], source: str) -> dict[str, Item] | str:
    """The images inside a source by URI, or why there are none."""
    try:
        return {item.uri: item for item in Sources.resolve(source, allow=allow)}
    except (FovealError, OSError) as error:
        return str(error)
