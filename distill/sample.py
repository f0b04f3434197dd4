"""Which images to label as the gold set: spread over what there is, yet every image with the same chance.

    foveal prelabel sample images/ --ontology ontology.yaml --out gold/

A gold set proves a precision only for images it is a fair sample of, so picking the hardest ones would spoil the
promise. The images are put in an order in which neighbours look alike (clusters of the encoder's embeddings, one after
the other) and, within a cluster, are equally doubtful to the teacher; every n-th of that order from a random start is
taken. That is systematic sampling (Cochran, Sampling Techniques, 1977, chapter 8): each image has the same chance, and
each kind of image and each degree of doubt has its share.

Shape letters: N images, D dimensions, C clusters, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from distill.ontology import Ontology
from distill.teacher import DenseDetector, candidates
from evals.intervals import smallest_sample
from foveal import artifacts
from foveal.dataset import Dataset
from foveal.detections import FloatArray, IntArray
from foveal.errors import BadImage, BadInput
from foveal.formats import coco, label_studio
from foveal.models import Encoder, OpenDetector
from foveal.progress import Progress, SilentProgress
from retrieval.curate.kmeans import partition
from retrieval.index import Vectors

if TYPE_CHECKING:
    from PIL.Image import Image

POOL = 2000  # images looked at; of more a random part
BATCH = 16
GOLD, EXEMPLARS, SAMPLE = "gold", "exemplars", "sample.json"


@dataclass(frozen=True, slots=True)
class Seen:
    """What the teacher and the encoder make of the images that could be read."""

    rows: IntArray  # (N,) of the source
    vectors: FloatArray  # (N, D) unit length
    doubt: FloatArray  # (N,) entropy of the teacher's scores over classes, summed over its boxes, in bits
    best: FloatArray  # (N, K) the teacher's highest score of each class
    boxes: FloatArray  # (N,) boxes the teacher sees
    skipped: tuple[tuple[str, str], ...]  # image id, why it could not be read


@dataclass(frozen=True, slots=True)
class GoldSample:
    """The images to label, and what to expect of them."""

    gold: tuple[str, ...]  # ids of the fair sample, for calibration and proof
    exemplars: tuple[str, ...]  # ids of further images, for the memory only: of classes that the sample may lack
    clusters: int
    looked_at: int
    skipped: tuple[tuple[str, str], ...]
    unlikely: tuple[str, ...]  # classes that the teacher sees in too few of the images above
    boxes_expected: float  # that the teacher sees in the fair sample
    boxes_needed: int  # accepted boxes, all right, that prove the target precision

    @property
    def warnings(self) -> list[str]:
        """What to know before labelling."""
        said: list[str] = []
        if self.boxes_expected < 3 * self.boxes_needed:
            said.append(
                f"{len(self.gold)} images hold about {self.boxes_expected:.0f} boxes; a proof needs "
                f"{self.boxes_needed} accepted ones without a mistake, and far more with some: label more images"
            )
        if self.unlikely:
            said.append(
                f"the teacher hardly sees {', '.join(self.unlikely)}: without gold boxes they are never accepted"
            )
        return said


def sample(
    source: Dataset,
    ontology: Ontology,
    teacher: OpenDetector | DenseDetector,
    encoder: Encoder,
    count: int = 40,
    *,
    each: int = 3,
    pool: int = POOL,
    target: float = 0.9,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Progress | None = None,
) -> GoldSample:
    """Choose `count` images to label.

    Args:
        each: further images are named until the teacher sees each class in that many; they feed the memory and prove
            nothing.
        pool: of larger sources a random part of this size is looked at.

    Raises:
        BadInput: count or pool out of range, or fewer readable images than `count`.
    """
    if count < 1 or pool < count:
        raise BadInput("impossible sample", expected="1 <= count <= pool", received=f"count {count}, pool {pool}")
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(source))[:pool])
    seen = _look(source, rows, ontology, teacher, encoder, progress or SilentProgress())
    if len(seen.rows) < count:
        raise BadInput(
            f"there are {len(seen.rows)} readable images",
            expected=f"at least the {count} asked for",
            received=seen.skipped[0][1] if seen.skipped else None,
        )
    groups = partition(Vectors.of(seen.vectors), max(1, min(count // 2, len(seen.rows) // 4)))
    order = in_order(groups.label, seen.doubt)
    chosen = systematic(order, count, rng)
    extra, unlikely = _missing(seen.best, chosen, each)
    ids = source.ids
    return GoldSample(
        tuple(ids[int(seen.rows[i])] for i in np.sort(chosen)),
        tuple(ids[int(seen.rows[i])] for i in extra),
        len(groups.centres),
        len(seen.rows),
        seen.skipped,
        tuple(ontology.names[k] for k in unlikely),
        float(seen.boxes[chosen].sum()),
        smallest_sample(target, confidence),
    )


def in_order(cluster: IntArray, doubt: FloatArray) -> IntArray:
    """Places (N,) cluster by cluster, doubt rising in one and falling in the next, so that neighbours are alike."""
    rising = np.where(cluster % 2 == 0, doubt, -doubt)
    return np.lexsort((rising, cluster)).astype(np.int64)


def systematic(order: IntArray, count: int, rng: np.random.Generator) -> IntArray:
    """`count` of the places in `order` (N,), at equal steps from a random start: each with chance count / N."""
    step = len(order) / count
    at = rng.random() * step + step * np.arange(count)
    return order[np.minimum(at.astype(np.int64), len(order) - 1)]


def write(found: GoldSample, source: Dataset, ontology: Ontology, out: Path) -> None:
    """The folder for annotators: `gold` and `exemplars` as Label Studio tasks and as unlabelled COCO, and sample.json.

    Tasks carry no boxes of the teacher: who sees a proposal tends to agree with it, and the gold set is to judge it.

    Raises:
        BadInput: `out` exists and is not empty.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise BadInput(f"{out} is not empty", remedy="Choose another --out.")
    place = {id: row for row, id in enumerate(source.ids)}
    with artifacts.staged(out) as folder:
        for name, ids in ((GOLD, found.gold), (EXEMPLARS, found.exemplars)):
            if ids:
                bare = source.subset([place[id] for id in ids]).with_truth([None] * len(ids), ontology.names)
                label_studio.write(bare, folder / f"{name}.label_studio.json")
                coco.write(bare, folder / f"{name}.coco.json")
        (folder / SAMPLE).write_text(json.dumps(asdict(found) | {"warnings": found.warnings}, indent=1) + "\n")


def _look(
    source: Dataset,
    rows: IntArray,
    ontology: Ontology,
    teacher: OpenDetector | DenseDetector,
    encoder: Encoder,
    progress: Progress,
) -> Seen:
    kept: list[int] = []
    skipped: list[tuple[str, str]] = []
    vectors: list[FloatArray] = []
    doubt: list[float] = []
    best: list[FloatArray] = []
    boxes: list[float] = []
    progress.start("look", len(rows))
    for start in range(0, len(rows), BATCH):
        part: list[int] = rows[start : start + BATCH].tolist()
        images: list[Image] = []
        for row in part:
            sample = source[row]
            try:
                images.append(sample.image())
                kept.append(row)
            except BadImage as error:
                skipped.append((sample.id, str(error)))
        if images:
            vectors.append(encoder.encode_images(images))
            for found in candidates(teacher, images, ontology):
                doubt.append(_entropy(found.teacher))
                best.append(found.teacher.max(axis=0, initial=0.0))
                boxes.append(float(len(found)))
        progress.advance(len(part))
    progress.finish()
    classes = len(ontology.names)
    return Seen(
        np.array(kept, dtype=np.int64),
        np.concatenate(vectors) if vectors else np.zeros((0, encoder.dimension), np.float32),
        np.array(doubt, dtype=np.float32),
        np.stack(best) if best else np.zeros((0, classes), np.float32),
        np.array(boxes, dtype=np.float32),
        tuple(skipped),
    )


def _entropy(scores: FloatArray) -> float:
    """Bits, summed over boxes, of scores (boxes, K) taken as shares of a choice between the classes."""
    shares = scores / np.maximum(scores.sum(axis=1, keepdims=True), 1e-9)
    return float(-(shares * np.log2(np.clip(shares, 1e-9, 1))).sum())


def _missing(best: FloatArray, chosen: IntArray, each: int) -> tuple[list[int], list[int]]:
    """Further places to label, and the classes that even so too few images are likely to show.

    A class counts as seen where the teacher's best score for it is among its own highest: as many images as there
    would be if every class were equally common, as raw scores of different prompts cannot be compared.
    """
    classes = best.shape[1]
    common = max(each, len(best) // max(classes, 1))
    bar = -np.sort(-best, axis=0)[min(common, len(best)) - 1]
    shows = (best >= bar) & (best > 0)
    picked, extra, unlikely = chosen.tolist(), list[int](), list[int]()
    for k in range(classes):
        lack = each - int(shows[[*picked, *extra], k].sum())
        ranked: Sequence[int] = np.argsort(-best[:, k], kind="stable").tolist()
        more = [i for i in ranked if shows[i, k] and i not in picked and i not in extra][: max(lack, 0)]
        extra += more
        if len(more) < lack:
            unlikely.append(k)
    return extra, unlikely
