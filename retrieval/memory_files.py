"""An exemplar memory as a folder: vectors (safetensors), the crops they are of (JSON) and a manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foveal.artifacts import read, seal, staged
from foveal.errors import IntegrityError
from retrieval.collect import Collected, Exemplar
from retrieval.voting import Fit, Voting


@dataclass(frozen=True, slots=True)
class Stored:
    """Everything of a memory but its encoder."""

    collected: Collected
    context: float
    voting: Voting
    fit: Fit | None
    untuned: int
    encoder: str  # reference that loads it
    fingerprint: str  # of the encoder

    def write(self, out: Path, name: str, counts: Mapping[str, int]) -> None:
        """The folder, whole or not at all, and flushed to the disk; takes the place of an earlier one."""
        from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

        fit = None if self.fit is None else asdict(self.fit)
        description = {
            "classes": self.collected.classes,
            "context": self.context,
            "voting": asdict(self.voting),
            "fit": fit,
            "untuned": self.untuned,
            "encoder": self.encoder,
            "fingerprint": self.fingerprint,
            "skipped": self.collected.skipped,
            "exemplars": [asdict(e) for e in self.collected.exemplars],
        }
        with staged(out, folder=True, durable=True) as folder:
            save_file({"vectors": self.collected.vectors}, folder / "memory.safetensors")
            (folder / "memory.json").write_text(json.dumps(description), "utf-8")
            seal(
                folder,
                name=name,
                kind="memory",
                parents=[self.fingerprint],
                data={"images": len({e.image for e in self.collected.exemplars}), "boxes": dict(counts)},
                config={"context": self.context, **asdict(self.voting)},
                metrics=fit or {},
            )

    @classmethod
    def read(cls, folder: Path) -> Stored:
        """What `write` wrote.

        Raises:
            BadInput: the folder has no manifest.
            IntegrityError: its files are not what was saved.
        """
        from safetensors.numpy import load_file  # pyright: ignore[reportUnknownVariableType]

        read(folder)
        try:
            data: dict[str, Any] = json.loads((folder / "memory.json").read_text("utf-8"))
            vectors = load_file(folder / "memory.safetensors")["vectors"]
            exemplars = tuple(
                Exemplar(e["id"], e["image"], e["label"], tuple(e["box"]), e["variant"], e.get("reviewed", False))
                for e in data["exemplars"]
            )
            return cls(
                Collected(tuple(data["classes"]), exemplars, vectors, data["skipped"]),
                data["context"],
                Voting(**data["voting"]),
                None if data["fit"] is None else Fit(**data["fit"]),
                data.get("untuned", 0),
                data["encoder"],
                data["fingerprint"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{folder} is no exemplar memory: {error}", remedy="Build it anew.") from error
