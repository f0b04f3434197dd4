"""Teacher and memory by reference, so that any process can load them for itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.labeller import Memory
from distill.ontology import Ontology
from distill.teachers import Teacher, load_teacher
from foveal import artifacts
from foveal.dataset import Dataset
from foveal.errors import BadInput
from foveal.models import load_encoder
from foveal.progress import Progress
from foveal.segmenters import Segmenter, load_segmenter
from retrieval.memory import ExemplarMemory
from retrieval.memory_files import Stored

MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class Parts:
    """What a labelling job is made of; calling it loads teacher and memory."""

    teachers: tuple[str, ...]  # see `distill.teachers`
    ontology: Ontology
    memory: Path  # folder of an exemplar memory
    tile: int | None = None
    flip: bool = False
    masks: str | None = None  # see `foveal.segmenters`
    registry: Path | None = None

    def __call__(self) -> tuple[Teacher, Memory, Segmenter | None]:
        """Load all.

        Raises:
            UnknownName, BadInput, Unavailable, IntegrityError: as `load_teacher`, `ExemplarMemory.load` and
                `load_segmenter`.
        """
        return self.teacher(), self.remembered(), self.segmenter()

    @classmethod
    def of(cls, job: Path, registry: Path | None = None) -> Parts:
        """Those of the finished labelling job in the folder `job`, which keeps its memory beside its labels.

        Raises:
            BadInput: not such a folder, or its job was not given its parts by reference.
        """
        if not (job / MEMORY).is_dir():
            raise BadInput(
                f"{job} does not say what labelled it",
                expected=f"a folder that `foveal prelabel` wrote, with {MEMORY}/ in it",
                remedy="Run the labelling job again.",
            )
        config = artifacts.read(job).config
        told: dict[str, Any] = config["parts"]
        ontology = Ontology.model_validate(config["ontology"])
        told["teachers"] = tuple(told["teachers"])
        return cls(ontology=ontology, memory=job / MEMORY, registry=registry, **told)

    def recorded(self) -> dict[str, Any]:
        """What a job's manifest keeps of them."""
        return {"teachers": list(self.teachers), "tile": self.tile, "flip": self.flip, "masks": self.masks}

    def segmenter(self) -> Segmenter | None:
        """Load what draws masks, where masks are wanted."""
        return None if self.masks is None else load_segmenter(self.masks)

    def remembered(self) -> ExemplarMemory:
        """Load the memory alone."""
        return ExemplarMemory.load(self.memory, load_encoder(Stored.read(self.memory).encoder))

    def teacher(self) -> Teacher:
        """Load the teacher alone."""
        return load_teacher(self.teachers, self.ontology, tile=self.tile, flip=self.flip, registry=self.registry)


def remember_gold(gold: Dataset, encoder: str, folder: Path, progress: Progress | None = None) -> Path:
    """Build the memory of a gold set's crops in `folder`, unless it is there already; returns `folder`.

    Raises:
        BadInput: the gold set has no usable box.
    """
    if not (folder / "manifest.json").is_file():
        ExemplarMemory.build(load_encoder(encoder), gold, progress=progress).save(folder)
    return folder
