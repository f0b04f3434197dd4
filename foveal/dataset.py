"""One dataset type for every format: paths, sizes and truth in an Arrow table; pixels only when asked for."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.detections import Detections, Neighbour, Provenance
from foveal.errors import BadImage, BadInput

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    from PIL.Image import Image

Metadata = dict[str, str | int | float]
_BATCH = 512


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and what is known about it."""

    id: str  # unique in its dataset
    path: Path
    width: int  # of the upright image, pixels
    height: int
    truth: Detections | None = None  # None: nobody looked; empty: somebody looked and there is nothing
    captions: tuple[str, ...] = ()
    label: str | None = None  # class of the whole image
    metadata: Metadata = field(default_factory=dict)

    def image(self, min_side: int | None = None) -> Image:
        """The decoded upright RGB image; `min_side` may shrink a JPEG, see `foveal.images.decode`.

        Raises:
            BadImage: undecodable, or of another size than its boxes were drawn on.
        """
        from foveal.images import decode

        image = decode(self.path, min_side=min_side)
        if min_side is None and self.truth is not None and image.size != (self.width, self.height):
            raise BadImage(
                f"{self.path} is not the size its annotations say",
                expected=f"{self.width} x {self.height}",
                received=f"{image.width} x {image.height} once upright",
                remedy="Annotate the upright image at its full size, or restore the original file.",
            )
        return image


class Dataset:
    """Samples over one list of classes, held in Arrow; `.table` is the same as a Hugging Face dataset.

    Columns: id, path, width, height, boxes (N, 4 xyxy pixels), labels, scores, probabilities, provenance, segmentations
    and attributes (JSON a box), captions, label, metadata (JSON).
    """

    def __init__(self, arrow: pa.Table, classes: Sequence[str], category_ids: Sequence[int] | None = None) -> None:
        self.arrow = arrow
        self.classes = check_classes(classes)
        # COCO category id of each class, so that predictions can be written in the truth file's own numbering.
        self.category_ids = tuple(category_ids) if category_ids is not None else tuple(range(1, len(classes) + 1))
        self.skipped: tuple[tuple[Path, str], ...] = ()  # files that a reader left out, each with the reason

    @classmethod
    def build(
        cls, samples: Iterable[Sample], classes: Sequence[str], *, category_ids: Sequence[int] | None = None
    ) -> Dataset:
        """A dataset from samples, taken one at a time.

        Raises:
            BadInput: duplicate classes or sample ids, or truth with a class that is not in `classes`.
        """
        import pyarrow as pa

        classes = check_classes(classes)
        schema = _schema()
        seen: Counter[str] = Counter()
        batches: list[pa.RecordBatch] = []
        rows: list[dict[str, Any]] = []
        for sample in samples:
            seen[sample.id] += 1
            rows.append(_to_row(sample, classes))
            if len(rows) == _BATCH:
                batches.append(pa.RecordBatch.from_pylist(rows, schema=schema))
                rows = []
        batches.append(pa.RecordBatch.from_pylist(rows, schema=schema))
        twice = [name for name, count in seen.items() if count > 1]
        if twice:
            raise BadInput(f"{len(twice)} sample ids occur more than once, the first {twice[0]!r}")
        return cls(pa.Table.from_batches(batches, schema=schema).combine_chunks(), classes, category_ids)

    @classmethod
    def open(cls, source: str | Path, format: str | None = None) -> Dataset:
        """A dataset from a file or folder in one of `foveal.formats.FORMATS`, recognised by its content when not named.

        Raises:
            UnknownName: no such format.
            BadInput: nothing there, nothing recognised, or the content does not fit the format.
        """
        from foveal.formats import detect, named

        path = Path(source).expanduser()
        if not path.exists():
            raise BadInput(f"{path} does not exist", expected="a data folder or file", remedy="Check the path.")
        return named(format or detect(path)).read(path)

    def write(self, out: str | Path, format: str) -> None:
        """Write in another format, whole or not at all; a format keeps what it can hold.

        Raises:
            UnknownName: no such format.
            BadInput: the format needs something that the samples lack.
        """
        from foveal.formats import named

        named(format).write(self, Path(out).expanduser())

    @cached_property
    def table(self) -> datasets.Dataset:
        """The Hugging Face dataset over the same Arrow memory."""
        import datasets

        return datasets.Dataset(self.arrow)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The sample ids in order."""
        return tuple(self.arrow.column("id").to_pylist())

    @cached_property
    def fingerprint(self) -> str:
        """sha256 hex over classes and, sample by sample, id, file content and everything known; reads every file.

        Raises:
            BadImage: a file cannot be read.
        """
        from foveal.images import content_hash

        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for row in self._rows():
            row["path"] = content_hash(Path(row["path"]))  # where it lies does not matter, what it holds does
            if row["attributes"] is None:
                del row["attributes"]
            digest.update(json.dumps(row, sort_keys=True).encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return self.arrow.num_rows

    def __getitem__(self, index: int) -> Sample:
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return _to_sample(self.arrow.slice(position, 1).to_pylist()[0], self.classes)

    def __iter__(self) -> Iterator[Sample]:
        return (_to_sample(row, self.classes) for row in self._rows())

    def subset(self, indices: Sequence[int]) -> Dataset:
        """The samples at `indices`, in that order."""
        import pyarrow as pa

        rows = pa.array([int(i) for i in indices], type=pa.int64())
        return Dataset(self.arrow.take(rows), self.classes, self.category_ids)

    def with_truth(self, truth: Iterable[Detections | None], classes: Sequence[str] | None = None) -> Dataset:
        """The same images with other truth, e.g. accepted pseudo-labels, one per sample in order.

        Raises:
            BadInput: not one each, or a class that is not among `classes`.
        """
        given = list(truth)
        if len(given) != len(self):
            raise BadInput("truth does not match the images", expected=str(len(self)), received=str(len(given)))
        pairs = zip(self, given, strict=True)
        samples = (replace(sample, truth=boxes) for sample, boxes in pairs)
        if classes is None:
            return Dataset.build(samples, self.classes, category_ids=self.category_ids)
        return Dataset.build(samples, classes)

    def _rows(self) -> Iterator[dict[str, Any]]:
        for batch in self.arrow.to_batches(max_chunksize=_BATCH):
            yield from batch.to_pylist()


def check_classes(classes: Sequence[str], source: str = "the class list") -> tuple[str, ...]:
    """The classes as a tuple.

    Raises:
        BadInput: a name occurs twice, or is empty.
    """
    twice = sorted(name for name, count in Counter(classes).items() if count > 1)
    if twice:
        raise BadInput(
            f"{source} names {', '.join(map(repr, twice))} more than once",
            expected="different class names",
            remedy="Rename or remove the duplicates.",
        )
    if any(not name.strip() for name in classes):
        raise BadInput(f"{source} holds an empty class name", remedy="Name it or remove it.")
    return tuple(classes)


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        {
            "id": pa.string(),
            "path": pa.string(),
            "width": pa.int32(),
            "height": pa.int32(),
            "boxes": pa.list_(pa.list_(pa.float32(), 4)),
            "labels": pa.list_(pa.int32()),
            "scores": pa.list_(pa.float32()),
            "probabilities": pa.list_(pa.float32()),
            "provenance": pa.list_(pa.string()),
            "segmentations": pa.list_(pa.string()),
            "attributes": pa.list_(pa.string()),
            "captions": pa.list_(pa.string()),
            "label": pa.string(),
            "metadata": pa.string(),
        }
    )


def _to_row(sample: Sample, classes: tuple[str, ...]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": sample.id,
        "path": str(sample.path),
        "width": sample.width,
        "height": sample.height,
        "captions": list(sample.captions),
        "label": sample.label,
        "metadata": json.dumps(sample.metadata),
    }
    truth = sample.truth
    if truth is not None:
        row["boxes"] = truth.boxes.tolist()
        row["labels"] = _relabelled(truth, classes, sample.id)
        row["scores"] = truth.scores.tolist()
        row["probabilities"] = None if truth.probabilities is None else truth.probabilities.tolist()
        row["segmentations"] = None if truth.masks is None else list(truth.masks)
        row["attributes"] = None if truth.attributes is None else [json.dumps(a) for a in truth.attributes]
        row["provenance"] = None if truth.provenance is None else [json.dumps(asdict(p)) for p in truth.provenance]
    return row


def _relabelled(truth: Detections, classes: tuple[str, ...], sample: str) -> list[int]:
    if truth.names == classes:
        return truth.labels.tolist()
    index = {name: i for i, name in enumerate(classes)}
    unknown = sorted(set(truth.label_names) - set(classes))
    if unknown:
        raise BadInput(
            f"sample {sample!r} has boxes of class {', '.join(unknown)}", expected=f"one of {', '.join(classes)}"
        )
    return [index[name] for name in truth.label_names]


def _to_sample(row: dict[str, Any], classes: tuple[str, ...]) -> Sample:
    truth = None
    if row["boxes"] is not None:
        lines, probabilities = row["provenance"], row["probabilities"]
        masks, attributes = row["segmentations"], row["attributes"]
        truth = Detections(
            boxes=np.asarray(row["boxes"], dtype=np.float32).reshape(-1, 4),
            scores=np.asarray(row["scores"], dtype=np.float32),
            labels=np.asarray(row["labels"], dtype=np.int64),
            names=classes,
            probabilities=None if probabilities is None else np.asarray(probabilities, dtype=np.float32),
            masks=None if masks is None else tuple(masks),
            attributes=None if attributes is None else tuple(json.loads(line) for line in attributes),
            provenance=None if lines is None else tuple(provenance_from(json.loads(line)) for line in lines),
        )
    return Sample(
        id=row["id"],
        path=Path(row["path"]),
        width=row["width"],
        height=row["height"],
        truth=truth,
        captions=tuple(row["captions"] or ()),
        label=row["label"],
        metadata=json.loads(row["metadata"]),
    )


def provenance_from(record: dict[str, Any]) -> Provenance:
    """Provenance from the plain dict that `dataclasses.asdict` makes of it."""
    return Provenance(
        model=record["model"],
        adapter=record.get("adapter"),
        teachers=tuple(record.get("teachers", ())),
        neighbours=tuple(Neighbour(**neighbour) for neighbour in record.get("neighbours", ())),
        route=record.get("route"),
    )
