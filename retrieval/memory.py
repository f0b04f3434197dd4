"""The exemplar memory: labelled crops that vote, by similarity, on what another crop shows.

It classifies proposals from a handful of examples a class without training, as in arXiv 2409.10716; rejected crops and
plain background vote against every class.

Shape letters: N boxes, M remembered crops, C classes, D embedding dimensions.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.artifacts import read, seal, staged
from foveal.dataset import Dataset
from foveal.detections import Detections, FloatArray, Neighbour, Provenance
from foveal.errors import BadInput, FingerprintMismatch, IntegrityError
from foveal.models import Encoder
from foveal.progress import Progress
from retrieval.collect import Collected, Exemplar, collect
from retrieval.crops import crop
from retrieval.index import VectorIndex, Vectors

if TYPE_CHECKING:
    from PIL.Image import Image

BACKGROUND = "background"
ENCODE_BATCH = 64
EVIDENCE = 5  # neighbours that a detection carries with it
K_CHOICES = (3, 5, 10, 20)
TEMPERATURES = (0.01, 0.02, 0.05, 0.1)


@dataclass(frozen=True, slots=True)
class Voting:
    """How many neighbours vote, and how fast a vote fades with the neighbour's distance from the nearest one."""

    k: int
    temperature: float  # of cosine similarity: a neighbour this much further off has 1/e of the vote


@dataclass(frozen=True, slots=True)
class Fit:
    """What the voting gives on the memory's own crops, each judged by the crops of other images only."""

    accuracy: float
    log_loss: float
    crops: int


class ExemplarMemory:
    """Crops of known class, and of nothing, in one encoder's space; never changes once made."""

    def __init__(
        self, encoder: Encoder, collected: Collected, context: float, voting: Voting, fit: Fit | None = None
    ) -> None:
        self.encoder = encoder
        self.classes = collected.classes
        self.context = context
        self.voting = voting
        self.fit = fit
        self.skipped = collected.skipped  # images that could not be used -> why
        self._exemplars = collected.exemplars
        self._vectors = collected.vectors  # (M, D) unit length
        self._index = VectorIndex.flat(Vectors.of(collected.vectors))
        self._columns = np.array([self._column(e.label) for e in collected.exemplars], dtype=np.int64)
        self._images = np.array([e.image for e in collected.exemplars])
        self._variants = max(Counter(e.id for e in collected.exemplars).values())

    @classmethod
    def build(
        cls,
        encoder: Encoder,
        dataset: Dataset,
        *,
        context: float = 0.15,
        variants: int = 3,
        backgrounds: int = 8,
        rejected: Mapping[str, Detections] | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> ExemplarMemory:
        """A memory of every labelled box of `dataset`, of `variants` altered crops of each (flipped, moved), and of
        `backgrounds` crops an image that show no object.

        `rejected` are proposals on these images by sample id, a teacher's for instance: those that lie on no object
        are remembered as wrong. The number of neighbours and the fading of their votes are chosen on the crops
        themselves, an image at a time left out.

        Raises:
            BadInput: no sample has a usable labelled box.
        """
        collected = collect(
            encoder,
            dataset,
            context=context,
            variants=variants,
            background_count=backgrounds,
            rejected=rejected or {},
            seed=seed,
            progress=progress,
        )
        return cls(encoder, collected, context, Voting(K_CHOICES[1], TEMPERATURES[1]))._tuned()

    @property
    def fingerprint(self) -> str:
        """sha256 over the encoder, the remembered crops and how they vote."""
        digest = hashlib.sha256(self.encoder.fingerprint.encode())
        digest.update(json.dumps([self.context, asdict(self.voting), self.classes]).encode())
        digest.update(json.dumps([asdict(e) for e in self._exemplars]).encode())
        digest.update(np.ascontiguousarray(self._vectors).tobytes())
        return digest.hexdigest()

    @property
    def counts(self) -> dict[str, int]:
        """How many different boxes each class has, "background" included; a class with 0 supports nothing."""
        kinds = Counter({e.id: e.label or BACKGROUND for e in self._exemplars}.values())
        return {name: kinds.get(name, 0) for name in (*self.classes, BACKGROUND)}

    def __len__(self) -> int:
        return len(self._exemplars)

    def embed(self, image: Image, boxes: FloatArray) -> FloatArray:
        """The boxes (N, 4) xyxy pixels of one image, cropped as the exemplars were -> (N, D) unit length."""
        crops = [crop(image, box, self.context) for box in boxes]
        batches = [
            self.encoder.encode_images(crops[start : start + ENCODE_BATCH])
            for start in range(0, len(crops), ENCODE_BATCH)
        ]
        return np.concatenate(batches) if batches else np.zeros((0, self.encoder.dimension), np.float32)

    def exemplars(self) -> tuple[FloatArray, list[str | None], list[str], list[str]]:
        """Vectors (M, D), class names (None for background and rejected crops), the ids of their images, their own."""
        rows = self._exemplars
        return self._vectors, [e.label for e in rows], [e.image for e in rows], [e.id for e in rows]

    def classify(
        self, image: Image, boxes: FloatArray, classes: Sequence[str] | None = None, *, exclude_image: str | None = None
    ) -> FloatArray:
        """Probabilities (N, C + 1) that each box (N, 4) shows each of `classes` (the memory's when None) or none.

        The last column is background; what the memory knows as another class than these counts there. Exemplars of
        the image with id `exclude_image` have no vote.
        """
        votes = self._votes(self._neighbours(self.embed(image, boxes), self.voting.k, exclude_image), self.voting)
        if classes is None:
            return votes
        picked = np.zeros((len(votes), len(classes) + 1), dtype=np.float32)
        for column, name in enumerate(classes):
            if name in self.classes:
                picked[:, column] = votes[:, self.classes.index(name)]
        picked[:, -1] = 1 - picked[:, :-1].sum(axis=1)
        return picked

    def verify(
        self, image: Image, detections: Detections, *, k: int | None = None, exclude_image: str | None = None
    ) -> tuple[Detections, FloatArray]:
        """The detections with their neighbours as provenance, and the support (N,) in [0, 1] for each one's label.

        Support is the similarity-weighted share of the k nearest remembered boxes that have the same label; a label
        the memory has never seen has none. `exclude_image` leaves the exemplars of that image out, as a set that the
        memory was itself built from needs.
        """
        voting = self.voting if k is None else replace(self.voting, k=k)
        near = self._neighbours(self.embed(image, detections.boxes), voting.k, exclude_image)
        votes = self._votes(near, voting)
        known = {name: column for column, name in enumerate(self.classes)}
        columns = [known.get(name) for name in detections.label_names]
        support = [0.0 if c is None else float(row[c]) for row, c in zip(votes, columns, strict=True)]
        before = detections.provenance or (Provenance(model="unrecorded"),) * len(detections)
        provenance = tuple(
            replace(old, neighbours=self._evidence(found, name))
            for old, found, name in zip(before, near, detections.label_names, strict=True)
        )
        return replace(detections, provenance=provenance), np.clip(np.array(support, dtype=np.float32), 0, 1)

    def save(self, out: Path, name: str = "memory") -> None:
        """A folder with the vectors (safetensors), the crops they are of (JSON) and a manifest."""
        from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

        description = {
            "classes": self.classes,
            "context": self.context,
            "voting": asdict(self.voting),
            "fit": None if self.fit is None else asdict(self.fit),
            "encoder": self.encoder.name,
            "fingerprint": self.encoder.fingerprint,
            "skipped": self.skipped,
            "exemplars": [asdict(e) for e in self._exemplars],
        }
        with staged(Path(out), folder=True) as folder:
            save_file({"vectors": self._vectors}, folder / "memory.safetensors")
            (folder / "memory.json").write_text(json.dumps(description), "utf-8")
            seal(
                folder,
                name=name,
                kind="memory",
                parents=[self.encoder.fingerprint],
                data={"images": len(set(self._images.tolist())), "boxes": self.counts},
                config={"context": self.context, **asdict(self.voting)},
                metrics={} if self.fit is None else asdict(self.fit),
            )

    @classmethod
    def load(cls, folder: Path, encoder: Encoder) -> ExemplarMemory:
        """The memory saved in `folder`.

        Raises:
            FingerprintMismatch: it was built with another encoder.
            IntegrityError: its files are not what was saved.
        """
        from safetensors.numpy import load_file  # pyright: ignore[reportUnknownVariableType]

        read(folder)
        try:
            data: dict[str, Any] = json.loads((folder / "memory.json").read_text("utf-8"))
            vectors = load_file(folder / "memory.safetensors")["vectors"]
            exemplars = tuple(
                Exemplar(e["id"], e["image"], e["label"], tuple(e["box"]), e["variant"]) for e in data["exemplars"]
            )
            collected = Collected(tuple(data["classes"]), exemplars, vectors, data["skipped"])
            voting, fit = Voting(**data["voting"]), None if data["fit"] is None else Fit(**data["fit"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{folder} is no exemplar memory: {error}", remedy="Build it anew.") from error
        if data["fingerprint"] != encoder.fingerprint:
            raise FingerprintMismatch(
                f"memory {folder} was built with {data['encoder']}, not with {encoder.name}",
                expected=f"fingerprint {data['fingerprint'][:12]}",
                received=encoder.fingerprint[:12],
                remedy="Use that encoder, or build the memory anew from its labelled images.",
            )
        return cls(encoder, collected, data["context"], voting, fit)

    # Inside.

    def _column(self, label: str | None) -> int:
        return len(self.classes) if label is None else self.classes.index(label)

    def _neighbours(self, vectors: FloatArray, k: int, exclude_image: str | None) -> list[list[tuple[int, float]]]:
        """For each vector the k nearest boxes as (row of the best crop, similarity), each box once, best first."""
        if k < 1:
            raise BadInput("k lies outside its range", expected="1 or more", received=str(k))
        among = None
        if exclude_image is not None:
            among = self._index.subset(np.flatnonzero(self._images != exclude_image), gather=False)
        # Variants of one box count once, so look far enough to have k boxes whatever their variants.
        similarity, rows = self._index.search(np.ascontiguousarray(vectors), k * self._variants, among)
        result: list[list[tuple[int, float]]] = []
        for values, positions in zip(similarity.tolist(), rows.tolist(), strict=True):
            best: dict[str, tuple[int, float]] = {}
            for row, value in zip(positions, values, strict=True):
                best.setdefault(self._exemplars[int(row)].id, (int(row), float(value)))
            result.append(list(best.values())[:k])
        return result

    def _votes(self, near: Sequence[Sequence[tuple[int, float]]], voting: Voting) -> FloatArray:
        """Shares of the vote (N, C + 1), the last column background; rows sum to 1, or all background without votes."""
        votes = np.zeros((len(near), len(self.classes) + 1), dtype=np.float32)
        for i, found in enumerate(near):
            if not found:
                votes[i, -1] = 1
                continue
            similarity = np.array([value for _, value in found])
            weight = np.exp((similarity - similarity.max()) / voting.temperature)
            np.add.at(votes[i], self._columns[[row for row, _ in found]], weight / weight.sum())
        return votes

    def _evidence(self, found: Sequence[tuple[int, float]], name: str) -> tuple[Neighbour, ...]:
        rows = [(self._exemplars[row], min(max(value, -1.0), 1.0)) for row, value in found[:EVIDENCE]]
        return tuple(Neighbour(e.id, value, e.label or BACKGROUND, e.label == name) for e, value in rows)

    def _tuned(self) -> ExemplarMemory:
        """The same memory with the voting that judges its own boxes best, each by the boxes of other images."""
        drawn = np.array([i for i, e in enumerate(self._exemplars) if e.variant == "drawn"], dtype=np.int64)
        if len(set(self._images[drawn].tolist())) < 2:
            return self
        near: list[list[tuple[int, float]]] = [[] for _ in drawn]
        for image in sorted(set(self._images[drawn].tolist())):
            mine = np.flatnonzero(self._images[drawn] == image)
            found = self._neighbours(self._vectors[drawn[mine]], max(K_CHOICES), image)
            for place, neighbours in zip(mine.tolist(), found, strict=True):
                near[place] = neighbours
        best: tuple[Voting, Fit] | None = None
        for k in K_CHOICES:
            for temperature in TEMPERATURES:
                voting = Voting(k, temperature)
                votes = self._votes([found[:k] for found in near], voting)
                # Laplace's one vote in k + classes, so that a box without any friend costs finitely much.
                smooth = (votes * k + 1 / votes.shape[1]) / (k + 1)
                own = smooth[np.arange(len(drawn)), self._columns[drawn]]
                right = votes.argmax(axis=1) == self._columns[drawn]
                fit = Fit(float(right.mean()), float(-np.log(own).mean()), len(drawn))
                if best is None or fit.log_loss < best[1].log_loss:
                    best = voting, fit
        assert best is not None
        collected = Collected(self.classes, self._exemplars, self._vectors, self.skipped)
        return ExemplarMemory(self.encoder, collected, self.context, *best)
