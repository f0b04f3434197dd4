"""Reviewers' words written into a saved memory, one writer at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from foveal.errors import Unavailable
from foveal.models import Encoder
from retrieval.corrections import Correction
from retrieval.memory import ExemplarMemory

LOCK_SECONDS = 60.0
STALE = 0.1  # share of the boxes learnt since the voting was chosen, from which on it is chosen anew


@dataclass(frozen=True, slots=True)
class Learnt:
    """What a saved memory made of corrections."""

    memory: ExemplarMemory
    boxes: int  # learnt
    replaced: int  # remembered boxes that they took the place of
    retuned: bool  # whether the voting was chosen anew


def correct(folder: Path, encoder: Encoder, said: Iterable[Correction], name: str = "memory") -> Learnt:
    """The memory in `folder` with the corrections; once this returns they are on the disk.

    Raises:
        FingerprintMismatch: the memory was built with another encoder.
        BadImage: an image of a correction cannot be decoded.
        Unavailable: another process is writing to it.
    """
    folder = Path(folder).expanduser().absolute()
    try:
        with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=LOCK_SECONDS):
            before = ExemplarMemory.load(folder, encoder)
            memory = before.learnt(said)
            boxes = memory.untuned - before.untuned
            retuned = memory.untuned > STALE * sum(memory.counts.values())
            if retuned:
                memory = memory.retuned()
            memory.save(folder, name)
    except Timeout as error:
        raise Unavailable(f"another process is writing to {folder}", remedy="Wait for it, then retry.") from error
    replaced = sum(before.counts.values()) + boxes - sum(memory.counts.values())
    return Learnt(memory, boxes, replaced, retuned)
