"""The exemplar memory: labelled crops that vote, by similarity, on what another crop shows.

It classifies proposals from a handful of examples a class without training, as in arXiv 2409.10716; rejected crops and
plain background vote against every class.

Shape letters: N boxes, M remembered crops, C classes, D embedding dimensions.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from foveal.dataset import Dataset
from foveal.detections import Detections, FloatArray, IntArray, Neighbour, Provenance
from foveal.errors import BadInput, FingerprintMismatch
from foveal.models import Encoder
from foveal.progress import Progress
from retrieval.collect import Collected, Exemplar, collect
from retrieval.corrections import Correction, after
from retrieval.crops import crop
from retrieval.index import VectorIndex, Vectors
from retrieval.memory_files import Stored
from retrieval.voting import K_CHOICES, TEMPERATURES, Fit, Near, Voting, smoothed, tuned

if TYPE_CHECKING:
    from PIL.Image import Image

BACKGROUND = "background"
ENCODE_BATCH = 64
EVIDENCE = 5  # neighbours that a detection carries with it


class ExemplarMemory:
    """Crops of known class, and of nothing, in one encoder's space; never changes once made.

    What a reviewer said of a crop (`learnt`) stands for that very crop, whatever its neighbours say.
    """

    def __init__(
        self,
        encoder: Encoder,
        collected: Collected,
        context: float,
        voting: Voting,
        fit: Fit | None = None,
        untuned: int = 0,
    ) -> None:
        self.encoder = encoder
        self.classes = collected.classes
        self.context = context
        self.voting = voting
        self.fit = fit
        self.untuned = untuned  # boxes learnt since `voting` was chosen
        self.skipped = collected.skipped  # images that could not be used -> why
        self._collected = collected
        self._exemplars = collected.exemplars
        self._vectors = collected.vectors  # (M, D) unit length
        self._index = VectorIndex.flat(Vectors.of(collected.vectors))
        self._columns = np.array([self._column(e.label) for e in collected.exemplars], dtype=np.int64)
        self._images = np.array([e.image for e in collected.exemplars])
        # Its altered crops too: where the picture is even they are the same pixels, and may be found in its stead.
        self._final = np.array([e.reviewed for e in collected.exemplars])
        number = {id: n for n, id in enumerate(dict.fromkeys(e.id for e in collected.exemplars))}
        self._boxes = np.array([number[e.id] for e in collected.exemplars], dtype=np.int64)
        self._variants = int(np.bincount(self._boxes).max())

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
        `backgrounds` crops an image that show no object. An image that has a label and no boxes is one box.

        `rejected` are proposals on these images by sample id, a teacher's for instance: those that lie on no object
        are remembered as wrong. The number of neighbours and the fading of their votes are chosen on the crops
        themselves, an image at a time left out.

        Raises:
            BadInput: no sample has a usable labelled box, or a label.
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
        return cls(encoder, collected, context, Voting(K_CHOICES[1], TEMPERATURES[1])).retuned()

    @property
    def name(self) -> str:
        """What it is, by its encoder."""
        return f"memory of {self.encoder.name}"

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

    def remembered(self) -> tuple[Exemplar, ...]:
        """Every crop (M,), in the order of `exemplars`."""
        return self._exemplars

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
            replace(old, neighbours=self._evidence(near.pairs(i), name))
            for i, (old, name) in enumerate(zip(before, detections.label_names, strict=True))
        )
        return replace(detections, provenance=provenance), np.clip(np.array(support, dtype=np.float32), 0, 1)

    def nearest(
        self, vectors: FloatArray, k: int, *, exclude_image: str | None = None
    ) -> list[list[tuple[Exemplar, float]]]:
        """For each vector (N, D) the k nearest boxes, each by its best crop, with their similarities, best first."""
        near = self._neighbours(vectors, k, exclude_image)
        return [[(self._exemplars[row], value) for row, value in near.pairs(i)] for i in range(len(near))]

    def held_out(self) -> tuple[tuple[Exemplar, ...], FloatArray, list[tuple[Neighbour, ...]]]:
        """The boxes (N,) as they were drawn, what the crops of other images say of each (N, C + 1), and the nearest.

        The last column is background. Votes are smoothed: no probability is 0. Empty with fewer than two images.
        """
        drawn, near = self._held_out(self.voting.k)
        votes = smoothed(self._votes(near, self.voting, reviewed=False), self.voting.k)
        boxes = tuple(self._exemplars[row] for row in drawn.tolist())
        evidence = [self._evidence(near.pairs(i), e.label or BACKGROUND) for i, e in enumerate(boxes)]
        return boxes, votes, evidence

    def learnt(self, corrections: Iterable[Correction], *, variants: int = 3, seed: int = 0) -> ExemplarMemory:
        """The memory after a reviewer's word on boxes; this one stays as it is, so that readers go on undisturbed.

        The voting stays too: choosing it anew compares every crop with every other, which a click should not wait
        for, and a few boxes hardly move it. `untuned` counts them; `retuned` chooses.
        """
        collected, count = after(
            self._collected, corrections, self.encoder, context=self.context, variants=variants, seed=seed
        )
        return ExemplarMemory(
            self.encoder, collected, self.context, self.voting, self.fit, untuned=self.untuned + count
        )

    def retuned(self) -> ExemplarMemory:
        """The same memory with the voting that judges its own boxes best, each by the boxes of other images."""
        drawn, near = self._held_out(max(K_CHOICES))
        if not len(drawn):
            return self
        voting, fit = tuned(near, self._columns[drawn], self._columns, len(self.classes))
        return ExemplarMemory(self.encoder, self._collected, self.context, voting, fit)

    def save(self, out: Path, name: str = "memory") -> None:
        """Writes it as a folder, whole or not at all."""
        stored = Stored(
            self._collected, self.context, self.voting, self.fit, self.untuned, self.encoder.name,
            self.encoder.fingerprint,
        )  # fmt: skip
        stored.write(Path(out), name, self.counts)

    @classmethod
    def load(cls, folder: Path, encoder: Encoder) -> ExemplarMemory:
        """The memory saved in `folder`.

        Raises:
            FingerprintMismatch: it was built with another encoder.
            IntegrityError: its files are not what was saved.
        """
        stored = Stored.read(folder)
        if stored.fingerprint != encoder.fingerprint:
            raise FingerprintMismatch(
                f"memory {folder} was built with {stored.encoder}, not with {encoder.name}",
                expected=f"fingerprint {stored.fingerprint[:12]}",
                received=encoder.fingerprint[:12],
                remedy="Use that encoder, or build the memory anew from its labelled images.",
            )
        return cls(encoder, stored.collected, stored.context, stored.voting, stored.fit, stored.untuned)

    # Inside.

    def _column(self, label: str | None) -> int:
        return len(self.classes) if label is None else self.classes.index(label)

    def _neighbours(self, vectors: FloatArray, k: int, exclude_image: str | None) -> Near:
        """For each vector the k nearest boxes, each once, best first."""
        if k < 1:
            raise BadInput("k lies outside its range", expected="1 or more", received=str(k))
        among = None
        if exclude_image is not None:
            among = self._index.subset(np.flatnonzero(self._images != exclude_image), gather=False)
        # Variants of one box count once, so look far enough to have k boxes whatever their variants.
        similarity, rows = self._index.search(np.ascontiguousarray(vectors), k * self._variants, among)
        return Near.of(rows, similarity, self._boxes, k)

    def _votes(self, near: Near, voting: Voting, *, reviewed: bool = True) -> FloatArray:
        return near.votes(voting, self._columns, len(self.classes), self._final if reviewed else None)

    def _evidence(self, found: Sequence[tuple[int, float]], name: str) -> tuple[Neighbour, ...]:
        rows = [(self._exemplars[row], min(max(value, -1.0), 1.0)) for row, value in found[:EVIDENCE]]
        return tuple(Neighbour(e.id, value, e.label or BACKGROUND, e.label == name) for e, value in rows)

    def _held_out(self, k: int) -> tuple[IntArray, Near]:
        """Rows (N,) of the boxes as they were drawn, and the k boxes of other images nearest to each."""
        drawn = np.array([i for i, e in enumerate(self._exemplars) if e.variant == "drawn"], dtype=np.int64)
        images, place = np.unique(self._images[drawn], return_inverse=True)
        if len(images) < 2:
            drawn = drawn[:0]
        rows, similarity = np.full((len(drawn), k), -1, dtype=np.int64), np.zeros((len(drawn), k), dtype=np.float32)
        for number, image in enumerate(images.tolist() if len(drawn) else ()):
            mine = np.flatnonzero(place == number)
            found = self._neighbours(self._vectors[drawn[mine]], k, image)
            rows[mine], similarity[mine] = found.rows, found.similarity
        return drawn, Near(rows, similarity)
