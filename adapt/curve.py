"""How much of the base to keep: accuracy on the new domain against the old one along WiSE-FT's line (2109.01903)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from adapt.merge import interpolated
from evals import plots, retrieval, zero_shot
from foveal import artifacts
from foveal.dataset import Dataset
from foveal.encoders import TorchEncoder
from foveal.errors import BadInput
from foveal.models import ModelRef, licence_of, load_encoder, parse_ref
from foveal.progress import Progress, track

KEEPS = tuple(step / 10 for step in range(11))


@dataclass(frozen=True, slots=True)
class Point:
    """One mixture, measured."""

    keep: float  # share of the base
    new: float
    old: float

    @property
    def mean(self) -> float:
        """What decides which mixture is best."""
        return (self.new + self.old) / 2


@dataclass(frozen=True, slots=True)
class Curve:
    """The line from adapted (keep 0) to base (keep 1)."""

    figures: dict[str, str]  # `new` and `old` -> what was measured
    points: list[Point]
    best: float  # `keep` of the highest mean; of equals, the one that keeps most of the adapter


def curve(ref: str, new: Dataset, old: Dataset, out: Path, progress: Progress | None = None) -> Curve:
    """Measure eleven mixtures of an encoder and its adapter on both datasets; writes curve.json and curve.png to `out`.

    Measured is text-to-image recall@1 where there are captions, else zero-shot accuracy.

    Raises:
        BadInput: the reference has no adapter or is no encoder, or a dataset has neither captions nor classes.
    """
    parsed = parse_ref(ref)
    if parsed.adapter is None:
        raise BadInput(f"{ref} carries no adapter", expected="BASE+ADAPTER, e.g. bundled:clip+runs/adapter")
    base_ref = str(ModelRef(parsed.scheme, parsed.target))
    base, encoder = load_encoder(base_ref), load_encoder(ref)
    if not isinstance(base, TorchEncoder) or not isinstance(encoder, TorchEncoder):
        raise BadInput(f"{ref} cannot be interpolated", expected="an open_clip or transformers encoder")
    adapted = {name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}
    points: list[Point] = []
    for keep in track(progress, KEEPS, "mixtures"):
        encoder.model.load_state_dict(interpolated(base.model.state_dict(), adapted, keep))
        points.append(Point(keep, _measured(encoder, new), _measured(encoder, old)))
    best = max(points, key=lambda point: (point.mean, -point.keep)).keep
    figures = {"new": _figure(new), "old": _figure(old)}
    result = Curve(figures, points, best)
    with artifacts.staged(Path(out)) as folder:
        (folder / "curve.json").write_text(json.dumps({"model": ref, **asdict(result)}, indent=2) + "\n")
        drawn = plots.path(
            [(p.old, p.new) for p in points],
            [f"{p.keep:g}" for p in points],
            x=f"old domain: {figures['old']}",
            y=f"new domain: {figures['new']}",
            marked=KEEPS.index(best),
        )
        drawn.savefig(folder / "curve.png", dpi=150, facecolor="white")
        artifacts.seal(
            folder,
            name=Path(out).name,
            kind="curve",
            parents=[base_ref, str(parsed.adapter)],
            data={"new": new.fingerprint, "old": old.fingerprint},
            metrics={"best": best},
            licence=licence_of(base_ref),
        )
    return result


def _figure(dataset: Dataset) -> str:
    return "text-to-image recall@1" if any(sample.captions for sample in dataset) else "zero-shot accuracy"


def _measured(encoder: TorchEncoder, dataset: Dataset) -> float:
    if any(sample.captions for sample in dataset):
        return retrieval.evaluate(encoder, dataset)["recall_at_1"]
    return zero_shot.evaluate_dataset(encoder, dataset)["top1"]
