"""What happens inside a training run: the student with its moving average, the views it sees, the gold set's verdict.

Shape letters: B images, M gold images, N boxes, S input side.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from adapt.trainer import Budget
from distill.augment import STILL, Augment, ImageCache, collate
from distill.fcos import Targets
from distill.hints import Hints, Pupil
from distill.students import DenseStudent, Student, unique_state
from evals import detection
from foveal.artifacts import write_text
from foveal.dataset import Dataset
from foveal.detections import Detections
from foveal.detectors import decode, stretched
from foveal.progress import Progress

GOLD_BATCH = 20
FLOOR = 0.01  # lowest score that the verdict counts


class Trainee(nn.Module):
    """A student with the moving average of itself, so that a checkpoint holds both or neither."""

    def __init__(self, student: Student, decay: float, bf16: bool, pupil: Pupil | None = None) -> None:
        super().__init__()
        self.student, self.decay, self.bf16 = student, decay, bf16
        self.pupil = pupil  # learns the teacher's features; neither averaged nor kept
        self.average = copy.deepcopy(student).requires_grad_(False).eval()
        if isinstance(student, DenseStudent):
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.updates = nn.Buffer(torch.zeros((), dtype=torch.long))

    def train(self, mode: bool = True) -> Trainee:
        super().train(mode)
        self.average.eval()
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return unique_state(self)

    def forward(
        self,
        images: Tensor,
        boxes: Tensor,
        labels: Tensor,
        weights: Tensor,
        ignore: Tensor,
        features: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss of a batch of uint8 images (B, 3, S, S)."""
        pixels = images.float().div_(255)
        if isinstance(self.student, DenseStudent):
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.bf16):
            targets = Targets(boxes, labels, weights, ignore)
            loss = self.student.loss(pixels, targets)
            if self.pupil is not None and features is not None and seen is not None:
                loss = loss + self.pupil.loss(features, seen, targets)
            return {"loss": loss}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average one step towards the student; early on it follows closely."""
        self.updates += 1
        count = int(self.updates)
        share = 1 - min(self.decay, (1 + count) / (10 + count))
        # Not over state dicts: a tensor that two names share would move twice.
        averaged, current = ([*net.parameters(), *net.buffers()] for net in (self.average, self.student))
        for mean, now in zip(averaged, current, strict=True):
            mean.lerp_(now, share) if mean.is_floating_point() else mean.copy_(now)


class Averaging(TrainerCallback):
    """Updates the moving average after each optimizer step."""

    def __init__(self, trainee: Trainee) -> None:
        self.trainee = trainee

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One step."""
        self.trainee.update()


class Views:
    """Positions of `Order` -> a batch of random views, drawn from seed and position: a resumed run repeats none.

    Args:
        multi_scale: how far the side of a batch may be from `size`, as a share of it; not in the calm end of the run.
    """

    def __init__(
        self,
        cache: ImageCache,
        size: int,
        budget: Budget,
        seed: int,
        mosaic: float,
        calm: float,
        augment: bool,
        multi_scale: float = 0.0,
        hints: Hints | None = None,
    ) -> None:
        self.hints = hints
        self.sides = sides(size, multi_scale if augment else 0.0)
        self.cache, self.size, self.budget, self.seed, self.calm = cache, size, budget, seed, calm
        self.augment = Augment(mosaic=mosaic) if augment else STILL

    def __call__(self, items: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, items[0][0]))
        calm = self.budget.share > 1 - self.calm
        side = self.size if calm or len(self.sides) == 1 else int(rng.choice(self.sides))
        views = [self.augment.view(self.cache, row, side, rng, calm=calm) for _, row in items]
        batch = collate([(pixels, labels) for pixels, labels, _ in views])
        if self.hints is not None:
            batch |= self.hints.of([panes for _, _, panes in views], side)
        return {name: torch.from_numpy(value) for name, value in batch.items()}


def sides(size: int, spread: float) -> list[int]:
    """The multiples of 32 px that are at most `spread` away from `size`, as a share of it, and at least 64."""
    reach = int(size * spread / 32) * 32
    return [side for side in range(size - reach, size + reach + 1, 32) if side >= 64]


class GoldWatch(TrainerCallback):
    """Looks at the gold set now and then, and may end a run that no longer gets better on it.

    Args:
        looks: how often, at equal shares of the run; the last is at its end.
        patience: looks without a better AP50 before the run ends with the best weights seen; None never ends it.
        work: where the record and the best weights lie, so that a resumed run still has them.
    """

    def __init__(
        self,
        average: Student,
        gold: Dataset,
        looks: int,
        patience: int | None,
        budget: Budget,
        work: Path,
        progress: Progress | None,
    ) -> None:
        self.average, self.looks, self.patience, self.budget, self.progress = average, looks, patience, budget, progress
        samples = [(sample.image(), sample.truth) for sample in gold]
        self.pixels = np.stack([stretched(image, average.size) for image, _ in samples])
        self.sizes = [image.size for image, _ in samples]
        self.truth = [truth if truth is not None else Detections.empty(gold.classes) for _, truth in samples]
        self.record, self.weights = work / "gold.json", work / "best.safetensors"
        self.history: list[dict[str, float]] = []
        self.stopped = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Read what a resumed run has behind it."""
        known = json.loads(self.record.read_text()) if state.global_step and self.record.is_file() else []
        self.history = [look for look in known if look["share"] <= self.budget.share]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look when it is time."""
        if self.budget.share < min(1.0, (len(self.history) + 1) / self.looks) or len(self.history) >= self.looks:
            return
        scores = self.look()
        best = max((look["ap50"] for look in self.history), default=-1.0)
        self.history.append({"share": self.budget.share, **scores})
        write_text(self.record, json.dumps(self.history))
        if self.progress is not None:
            self.progress.note(f"gold AP50 {scores['ap50']:.3f} at {self.budget.share:.0%} of the run")
        if self.patience is None:
            return
        if scores["ap50"] > best:
            save_file(unique_state(self.average), self.weights)
        order = [look["ap50"] for look in self.history]
        if len(order) - 1 - order.index(max(order)) >= self.patience:
            control.should_training_stop = self.stopped = True

    def look(self) -> dict[str, float]:
        """AP50 and AP of the averaged weights on the gold set."""
        device = next(self.average.parameters()).device
        found: list[Detections] = []
        for start in range(0, len(self.pixels), GOLD_BATCH):
            part = slice(start, start + GOLD_BATCH)
            with torch.inference_mode():
                boxes, scores = self.average.predict(torch.from_numpy(self.pixels[part]).to(device))
            sizes, iou = self.sizes[part], self.average.nms_iou
            found += decode(boxes.cpu().numpy(), scores.cpu().numpy(), sizes, self.average.classes, FLOOR, iou)
        scores = detection.evaluate(self.truth, found)
        return {"ap50": scores["AP50"] or 0.0, "ap": scores["AP"] or 0.0}

    def finish(self) -> None:
        """Put the best weights seen back into the average where patience was asked for."""
        if self.patience is not None and self.weights.is_file():
            self.average.load_state_dict(load_file(self.weights), strict=False)
