"""A vision-language model judged by what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adapt.dialogues import open_dialogues
from adapt.job import Example, Validation
from adapt.vlm_lessons import Lesson, lessons
from evals.vqa import anls, exact_match, grounding_iou
from foveal.errors import BadInput
from foveal.images import decode
from foveal.models import load_vlm
from foveal.progress import Progress, track
from foveal.vlm_boxes import box_format
from foveal.vlms import TransformersVLM

BATCH = 32  # questions asked at once
LOCATED = 0.5  # IoU from which a box counts as found


def evaluate(
    ref: str, sources: Sequence[str | Path], max_tokens: int = 64, progress: Progress | None = None
) -> Validation:
    """The model `ref` asked every question of `sources` (see `adapt.dialogues`); figures as in `score`.

    Raises:
        BadInput: no dialogue can be used, or the model is of another kind.
    """
    vlm = load_vlm(ref)
    if not isinstance(vlm, TransformersVLM):
        raise BadInput(f"{ref} cannot be asked", expected="a transformers image-text-to-text model")
    return score(vlm, lessons(vlm, open_dialogues(sources, progress)), max_tokens, progress)


def score(
    vlm: TransformersVLM, tested: Sequence[Lesson], max_tokens: int, progress: Progress | None = None
) -> Validation:
    """Every answer generated, after the true turns before it.

    Figures: `exact_match` and `anls` over answers in words, `grounding_iou` (mean) and `located` (share of questions
    with IoU >= 0.5) over answers in boxes; those of which there are none are left out.
    """
    vlm.model.eval()
    matches: list[float] = []
    likeness: list[float] = []
    overlaps: list[float] = []
    examples: list[Example] = []
    asked = [(lesson, i) for lesson in tested for i in range(len(lesson.turns))]
    for start in track(progress, range(0, len(asked), BATCH), "ask"):
        chunk = asked[start : start + BATCH]
        images = {lesson.image: decode(lesson.image) for lesson, _ in chunk}
        answers = vlm.replies([(images[x.image], x.turns[:i], x.turns[i][0]) for x, i in chunk], max_tokens)
        for (lesson, i), said in zip(chunk, answers, strict=True):
            question, truth = lesson.turns[i]
            if lesson.boxes is not None:
                value = grounding_iou(box_format(vlm.family).read(said, lesson.seen), lesson.boxes)
                overlaps.append(value)
            else:
                value = anls(said, [truth])
                likeness.append(value)
                matches.append(exact_match(said, [truth]))
            examples.append(Example(lesson.image, question, said, value))
    figures: dict[str, float] = {}
    if matches:
        figures |= {"exact_match": _mean(matches), "anls": _mean(likeness)}
    if overlaps:
        figures |= {"grounding_iou": _mean(overlaps), "located": _mean([float(v >= LOCATED) for v in overlaps])}
    return Validation(figures, examples)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
