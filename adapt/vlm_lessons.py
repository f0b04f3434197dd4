"""Dialogues as batches for a vision-language model: its own prompts, boxes in its own words, loss on answers only.

Shape letters: B examples in a batch, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

TARGETS, SHARE = "targets", "share"


@dataclass(frozen=True, slots=True)
class Lesson:
    """One dialogue in a family's words; `boxes` is the truth behind its one answer, where that is boxes."""

    image: Path
    turns: tuple[tuple[str, str], ...]
    boxes: FloatArray | None = None
    seen: Size = (0, 0)  # of the image as the model sees it, where `boxes` are


def lessons(vlm: TransformersVLM, dialogues: Dialogues) -> list[Lesson]:
    """Every dialogue as the model's family writes it; where it holds no conversations, one lesson a turn.

    Raises:
        BadInput: the chat template does not let an answer be told from its prompt.
    """
    found = [lesson for dialogue in dialogues.items for lesson in _lessons(vlm, dialogue)]
    if isinstance(vlm.prompts, ChatPrompts):
        for lesson in found:
            vlm.prompts.marked(lesson.turns)
    return found


def _lessons(vlm: TransformersVLM, dialogue: Dialogue) -> list[Lesson]:
    if dialogue.phrase is not None and dialogue.boxes is not None:
        form, seen = box_format(vlm.family), seen_size(vlm.processor, size(dialogue.image))
        turn = (form.ask(dialogue.phrase), form.write(dialogue.phrase, dialogue.boxes, seen))
        return [Lesson(dialogue.image, (turn,), dialogue.boxes, seen)]
    if vlm.prompts.conversational:
        return [Lesson(dialogue.image, dialogue.turns)]
    return [Lesson(dialogue.image, (turn,)) for turn in dialogue.turns]


class LessonCollator:
    """Positions of `Order` -> inputs, targets (B, L), and what share of its batch's answer tokens they make up.

    Losses are means over all answer tokens of a batch, however it is divided among processes and micro-batches: the
    number of tokens in the whole batch follows from `Order`, which every process can draw.
    """

    def __init__(self, vlm: TransformersVLM, taught: Sequence[Lesson], order: Order, max_length: int | None) -> None:
        self.vlm, self.taught, self.order, self.max_length = vlm, taught, order, max_length
        self.cut: set[int] = set()  # lessons that were longer than max_length
        self._counts: dict[int, int] = {}

    def __call__(self, items: Sequence[tuple[int, int]]) -> dict[str, Any]:
        inputs, targets = self.batch([index for _, index in items])
        first = items[0][0] - items[0][0] % self.order.batch
        whole = [self.order[first + i][1] for i in range(self.order.batch)]
        answered = sum(self._answered(index) for index in whole)
        # A mean over pieces of the batch follows: this piece's sum counts as often as there are such pieces.
        return {**inputs, TARGETS: targets, SHARE: torch.tensor(len(whole) / len(items) / max(answered, 1))}

    def batch(self, indices: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs and targets (B, L) of lessons, cut at `max_length`.

        Raises:
            BadInput: an image alone is longer than that.
        """
        chosen = [self.taught[i] for i in indices]
        inputs, targets = self.vlm.prompts.lesson([decode(c.image) for c in chosen], [c.turns for c in chosen])
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
                    f"{chosen[int(lengths.argmax())].image} with its question takes more than {limit} tokens",
                    expected=f"max_length of {int(lengths.max())} for it",
                    remedy="Raise max_length, or lower image_side.",
                )
            inputs = {k: v[:, :limit] if v.shape[:2] == targets.shape else v for k, v in inputs.items()}
        self.cut |= {index for index, count in zip(indices, lengths.tolist(), strict=True) if count > limit}
        return inputs, targets[:, :limit]

    def _answered(self, index: int) -> int:
        """How many tokens a lesson's answers have, by the text alone."""
        if index not in self._counts:
            self._counts[index] = self.vlm.prompts.answer_tokens(self.taught[index].turns)
        return self._counts[index]


def answer_loss(model: Any, batch: dict[str, Any]) -> Tensor:
    """Sum over this piece's answer tokens, times its share: see `LessonCollator`."""
    inputs = {k: v for k, v in batch.items() if k not in (TARGETS, SHARE)}
    targets = batch[TARGETS]
    logits = model(**inputs).logits[targets != IGNORED]
    return functional.cross_entropy(logits.float(), targets[targets != IGNORED], reduction="sum") * batch[SHARE]
