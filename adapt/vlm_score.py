"""A vision-language model judged by what it answers."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from adapt.dialogues import Dialogue, Dialogues
from adapt.job import Example, Validation
from adapt.vlm_lessons import Lesson, lessons
from evals.results import Measured
from evals.slicing import MOST_WORDS
from evals.vqa import LOCATED, anls, exact_match, grounding_iou
from foveal.errors import BadInput
from foveal.images import decode, size
from foveal.models import load_vlm
from foveal.progress import Progress, track
from foveal.vlm_boxes import box_format
from foveal.vlm_prompts import Turns
from foveal.vlms import TransformersVLM

if TYPE_CHECKING:
    from PIL.Image import Image

    from foveal.dataset import Dataset

BATCH = 32  # questions asked at once
KIND = 2  # first words of a question that say of which kind it is
SCORES = ("exact_match", "anls", "iou", "located")
BOXED = ("phrase", "true_boxes", "said_boxes")  # columns of answers in boxes


class Answering(Protocol):
    """What can be asked: a `TransformersVLM`, or a server's model."""

    @property
    def family(self) -> str | None:
        """How it writes boxes, see `foveal.vlm_boxes`; None where nobody said."""
        ...

    def replies(self, asked: Sequence[tuple[Image, Turns, str]], max_tokens: int = 64) -> list[str]:
        """The answer to each (image, earlier turns, question)."""
        ...


def load(ref: str) -> TransformersVLM:
    """A model that can be asked in batches, after the true turns before.

    Raises:
        BadInput: the model is of another kind.
    """
    vlm = load_vlm(ref)
    if not isinstance(vlm, TransformersVLM):
        raise BadInput(f"{ref} cannot be asked", expected="a transformers image-text-to-text model")
    return vlm


def evaluate(vlm: Answering, dialogues: Dialogues, max_tokens: int = 64, progress: Progress | None = None) -> Measured:
    """The model asked every question; see `measure`.

    Raises:
        BadInput: boxes are asked for, and it is not known how the model writes them.
    """
    known = lessons(vlm, dialogues) if isinstance(vlm, TransformersVLM) else [_lesson(vlm, d) for d in dialogues.items]
    return measure(vlm, known, max_tokens, progress)


def _lesson(vlm: Answering, dialogue: Dialogue) -> Lesson:
    """A dialogue for a model that takes conversations and whose processor cannot be looked into."""
    if dialogue.phrase is None or dialogue.boxes is None:
        return Lesson(dialogue.image, dialogue.turns)
    if vlm.family is None:
        raise BadInput(
            "it is not known how this model writes boxes",
            remedy="Name its family, as in --vlm-family qwen2_5_vl, or ask for no boxes.",
        )
    form, seen = box_format(vlm.family), size(dialogue.image)
    turn = (form.ask(dialogue.phrase), form.write(dialogue.phrase, dialogue.boxes, seen))
    return Lesson(dialogue.image, (turn,), dialogue.boxes, seen, dialogue.phrase)


def score(
    vlm: TransformersVLM, tested: Sequence[Lesson], max_tokens: int, progress: Progress | None = None
) -> Validation:
    """The shares and means of `measure`, and an example for each answer."""
    measured = measure(vlm, tested, max_tokens, progress)
    paths = [lesson.image for lesson in tested for _ in lesson.turns]
    columns = (measured.items[name] for name in ("question", "said", "anls", "iou"))
    examples = [
        Example(path, question, said, iou if likeness is None else likeness)
        for path, question, said, likeness, iou in zip(paths, *columns, strict=True)
    ]
    return Validation({name: value for name, value in measured.figures.items() if name != "count"}, examples)


def measure(vlm: Answering, tested: Sequence[Lesson], max_tokens: int, progress: Progress | None = None) -> Measured:
    """Every answer generated, after the true turns before it.

    Figures: `exact_match` and `anls` over answers in words, `grounding_iou` (mean) and `located` (share of questions
    with IoU >= 0.5) over answers in boxes; those of which there are none are left out; and `count`, the questions.
    Items, one a question: `image`, `question`, `truth` and what was `said`, the four scores (`iou` is
    `grounding_iou`'s), None where they are not about such an answer; and of answers in boxes the `phrase` located,
    `true_boxes` and `said_boxes`, lists of x1 y1 x2 y2 as shares of the upright image.
    """
    if isinstance(vlm, TransformersVLM):
        vlm.model.eval()
    names = image_ids([lesson.image for lesson in tested])
    items: dict[str, list[Any]] = {name: [] for name in ("id", "image", "question", "truth", "said", *SCORES, *BOXED)}
    asked = [(lesson, i) for lesson in tested for i in range(len(lesson.turns))]
    before: Counter[str] = Counter()
    for start in track(progress, range(0, len(asked), BATCH), "ask"):
        chunk = asked[start : start + BATCH]
        images = {lesson.image: decode(lesson.image) for lesson, _ in chunk}
        answers = vlm.replies([(images[x.image], x.turns[:i], x.turns[i][0]) for x, i in chunk], max_tokens)
        for (lesson, i), said in zip(chunk, answers, strict=True):
            name = names[lesson.image]
            question, truth = lesson.turns[i]
            row = {
                "id": f"{name}#{before[name]}" if before[name] else name,
                "image": name,
                "question": question,
                "truth": truth,
                "said": said,
                **_scores(vlm.family, lesson, truth, said),
            }
            before[name] += 1
            for column, values in items.items():
                values.append(row.get(column))
    return Measured(_figures(items), items, _kinds(asked))


def _scores(family: str | None, lesson: Lesson, truth: str, said: str) -> dict[str, Any]:
    if lesson.boxes is None or family is None:
        return {"exact_match": exact_match(said, [truth]), "anls": anls(said, [truth])}
    boxes = box_format(family).read(said, lesson.seen)
    value = grounding_iou(boxes, lesson.boxes)
    shares = {"phrase": lesson.phrase, "true_boxes": lesson.boxes.tolist(), "said_boxes": boxes.tolist()}
    return {"iou": value, "located": float(value >= LOCATED), **shares}


def _figures(items: dict[str, list[Any]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for column, figure in zip(SCORES, ("exact_match", "anls", "grounding_iou", "located"), strict=True):
        values = [value for value in items[column] if value is not None]
        if values:
            figures[figure] = sum(values) / len(values)
    return {**figures, "count": float(len(items["id"]))}


def _kinds(asked: Sequence[tuple[Lesson, int]]) -> dict[str, list[str | None]]:
    """How questions begin, and which phrases were to be located: what the items can be divided by."""
    begins = [
        " ".join(lesson.turns[i][0].lower().split()[:KIND]) if lesson.boxes is None else None for lesson, i in asked
    ]
    columns: dict[str, list[str | None]] = {"question": begins, "phrase": [lesson.phrase for lesson, _ in asked]}
    return {name: column for name, column in columns.items() if 1 < len({*column} - {None}) <= MOST_WORDS}


def image_ids(paths: Sequence[Path]) -> dict[Path, str]:
    """A name for each image: its path from the folder that holds them all."""
    home = os.path.commonpath([path.absolute().parent for path in paths]) if paths else ""
    return {path: path.absolute().relative_to(home).as_posix() for path in paths}


def pictures(dialogues: Dialogues) -> Dataset:
    """The images that are asked about, under the names that the items of `measure` give them."""
    from foveal.dataset import Dataset, Sample

    names = image_ids([dialogue.image for dialogue in dialogues.items])
    return Dataset.build((Sample(name, path, *size(path)) for path, name in names.items()), ())
