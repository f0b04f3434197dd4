"""Dialogues as batches for a vision-language model: its own prompts, boxes in its own words, loss on answers only.

An example is one lesson, or several about the same image that are learnt behind one reading of it.

Shape letters: B examples in a batch, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from adapt.dialogues import Dialogue, Dialogues
from adapt.job import Order
from foveal.detections import FloatArray
from foveal.errors import BadInput
from foveal.images import decode, size
from foveal.vlm_boxes import Size, box_format, seen_size
from foveal.vlm_prompts import IGNORED, ChatPrompts
from foveal.vlms import TransformersVLM

PROBED = 64  # lessons that are put through the chat template before anything is trained
TARGETS, SHARE = "targets", "share"


@dataclass(frozen=True, slots=True)
class Lesson:
    """One dialogue in a family's words; `boxes` is the truth behind its one answer, where that is boxes."""

    image: Path
    turns: tuple[tuple[str, str], ...]
    boxes: FloatArray | None = None
    seen: Size = (0, 0)  # of the image as the model sees it, where `boxes` are
    phrase: str | None = None  # whose boxes they are


def lessons(vlm: TransformersVLM, dialogues: Dialogues) -> list[Lesson]:
    """Every dialogue as the model's family writes it; where it holds no conversations, one lesson a turn.

    Raises:
        BadInput: the chat template does not let an answer be told from its prompt, by the first lessons.
    """
    found = [lesson for dialogue in dialogues.items for lesson in _lessons(vlm, dialogue)]
    if isinstance(vlm.prompts, ChatPrompts):
        for lesson in found[:PROBED]:
            vlm.prompts.marked(lesson.turns)
    return found


def grouped(taught: Sequence[Lesson], most: int, seed: int) -> list[tuple[Lesson, ...]]:
    """Training examples: up to `most` lessons about the same image, which of them drawn by `seed`."""
    by_image: dict[Path, list[Lesson]] = {}
    for lesson in taught:
        by_image.setdefault(lesson.image, []).append(lesson)
    rng, found = np.random.default_rng(seed), list[tuple[Lesson, ...]]()
    for asked in by_image.values():
        shuffled = [asked[i] for i in rng.permutation(len(asked)).tolist()]
        found += [tuple(shuffled[i : i + most]) for i in range(0, len(shuffled), most)]
    return found


def _lessons(vlm: TransformersVLM, dialogue: Dialogue) -> list[Lesson]:
    if dialogue.phrase is not None and dialogue.boxes is not None:
        form, seen = box_format(vlm.family), seen_size(vlm.processor, size(dialogue.image))
        turn = (form.ask(dialogue.phrase), form.write(dialogue.phrase, dialogue.boxes, seen))
        return [Lesson(dialogue.image, (turn,), dialogue.boxes, seen, dialogue.phrase)]
    if vlm.prompts.conversational:
        return [Lesson(dialogue.image, dialogue.turns)]
    return [Lesson(dialogue.image, (turn,)) for turn in dialogue.turns]


class LessonCollator:
    """Positions of `Order` -> inputs, targets (B, L), and what share of its batch's answer tokens they make up.

    Losses are means over all answer tokens of a batch, however it is divided among processes and micro-batches: the
    number of tokens in the whole batch follows from `Order`, which every process can draw.
    """

    def __init__(
        self, vlm: TransformersVLM, taught: Sequence[Sequence[Lesson]], order: Order, max_length: int | None = None
    ) -> None:
        self.vlm, self.taught, self.order, self.max_length = vlm, taught, order, max_length
        self.cut: set[int] = set()  # examples that were longer than max_length
        self._packs = any(len(group) > 1 for group in taught)
        self._counts: dict[int, int] = {}

    def __call__(self, items: Sequence[tuple[int, int]]) -> dict[str, Any]:
        inputs, targets = self.batch([index for _, index in items])
        first = items[0][0] - items[0][0] % self.order.batch
        whole = [self.order[first + i][1] for i in range(self.order.batch)]
        answered = sum(self._answered(index) for index in whole)
        # A mean over pieces of the batch follows: this piece's sum counts as often as there are such pieces.
        return {**inputs, TARGETS: targets, SHARE: torch.tensor(len(whole) / len(items) / max(answered, 1))}

    def batch(self, indices: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs and targets (B, L) of examples, cut at `max_length` where each is one lesson.

        Raises:
            BadInput: an image alone is longer than that.
        """
        chosen = [self.taught[i] for i in indices]
        images = [decode(group[0].image) for group in chosen]
        if self._packs:
            assert isinstance(self.vlm.prompts, ChatPrompts)  # `adapt.vlm` asks for nothing else
            dialogues = [[lesson.turns for lesson in group] for group in chosen]
            return self.vlm.prompts.packed(images, dialogues, self.vlm.image_token)
        inputs, targets = self.vlm.prompts.lesson(images, [group[0].turns for group in chosen])
        limit = self.max_length
        if limit is None or targets.shape[1] <= limit:
            return inputs, targets
        if "decoder_input_ids" in inputs:
            lengths = (targets != IGNORED).sum(dim=1)
            inputs = {**inputs, "decoder_input_ids": inputs["decoder_input_ids"][:, :limit]}
        else:
            lengths = inputs["attention_mask"].sum(dim=1)
            if bool((inputs["input_ids"][:, limit:] == self.vlm.image_token).any()):
                raise BadInput(
                    f"{chosen[int(lengths.argmax())][0].image} with its question takes more than {limit} tokens",
                    expected=f"max_length of {int(lengths.max())} for it",
                    remedy="Raise max_length, or lower image_side.",
                )
            inputs = {k: v[:, :limit] if v.shape[:2] == targets.shape else v for k, v in inputs.items()}
        self.cut |= {index for index, count in zip(indices, lengths.tolist(), strict=True) if count > limit}
        return inputs, targets[:, :limit]

    def _answered(self, index: int) -> int:
        """How many tokens an example's answers have, by the text alone."""
        if index not in self._counts:
            self._counts[index] = sum(self.vlm.prompts.answer_tokens(lesson.turns) for lesson in self.taught[index])
        return self._counts[index]


def answer_loss(model: Any, batch: dict[str, Any]) -> Tensor:
    """Sum over this piece's answer tokens, times its share: see `LessonCollator`."""
    inputs = {k: v for k, v in batch.items() if k not in (TARGETS, SHARE)}
    targets = batch[TARGETS]
    logits = model(**inputs).logits[targets != IGNORED]
    return functional.cross_entropy(logits.float(), targets[targets != IGNORED], reduction="sum") * batch[SHARE]
