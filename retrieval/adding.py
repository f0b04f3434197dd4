"""What every kind of archive does with a batch of images that has been embedded, and what it says of them all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from foveal.progress import Progress
from retrieval.ingest import Batch, Rejected
from retrieval.table import Row


@dataclass(slots=True)
class AddReport:
    """What became of the images of one `add`."""

    added: int = 0
    updated: int = 0  # re-embedded, or given new metadata, under the same id
    unchanged: int = 0
    removed: int = 0  # no longer in the sources
    quarantined: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # (URI, reason)
    passed_over: dict[str, int] = field(default_factory=dict[str, int])  # files in folders, see `Sources.passed_over`
    notes: list[str] = field(default_factory=list[str])  # what could not be used as given


class Sink(Protocol):
    """Where rows are kept."""

    def write(self, rows: Sequence[Row], notes: list[str]) -> tuple[int, Sequence[Rejected]]:
        """Commits rows, adding to `notes`; how many of their ids were there already, and what could not be kept."""
        ...

    def restamp(self, stamps: Mapping[str, str]) -> None:
        """New stamps of images, by id, whose bytes have turned out the same."""
        ...

    def set_aside(self, rejected: Sequence[Rejected], seen: Sequence[str]) -> None:
        """What is known from now on about the files `seen` (URIs) that cannot be added."""
        ...


def take_in(batches: Iterable[Batch], sink: Sink, report: AddReport, progress: Progress) -> Iterator[Batch]:
    """The batches, each once it is durable, and only then counted in `progress` and in `report`."""
    for batch in batches:
        replaced, refused = sink.write(batch.rows, report.notes)
        if batch.restamped:
            sink.restamp(batch.restamped)
        rejected = [*batch.rejected, *refused]
        sink.set_aside(rejected, batch.seen)
        report.added += len(batch.rows) - len(refused) - replaced
        report.updated += replaced
        report.unchanged += batch.unchanged
        report.quarantined += [(entry.uri, entry.reason) for entry in rejected]
        progress.advance(batch.files)
        yield batch
