"""The sections of a result of questions and answers: what is right, what was said instead, and where boxes miss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from evals import plots
from evals.intervals import wilson
from evals.report import Report, State
from evals.results import Result
from evals.vqa import LOCATED
from foveal.dataset import Sample
from foveal.detections import Detections

WORST = 16  # answers in words shown
TOGETHER = 4  # of them under one question
WORST_BOXES = 8
COMMON = 12  # mistakes listed
Samples = Mapping[str, Sample]


def section(report: Report, result: Result, samples: Samples) -> None:
    """Answers in words and answers in boxes; pictures only of images that are among `samples`."""
    if not len(result):
        return
    items = result.items
    words = [i for i, value in enumerate(items["exact_match"]) if value is not None]
    boxes = [i for i, value in enumerate(items["iou"]) if value is not None]
    if words:
        _words(report, items, words, samples)
    if boxes:
        _boxes(report, items, boxes, samples)


def _words(report: Report, items: Mapping[str, list[Any]], rows: list[int], samples: Samples) -> None:
    report.section("Answers in words", "A match is exact once case, articles and punctuation are left aside.")
    wrong = [i for i in rows if not items["exact_match"][i]]
    near = sum(items["anls"][i] > 0 for i in wrong)
    report.figures(
        [
            _share("exactly right", len(rows) - len(wrong), len(rows)),
            ("nearly right", f"{near:,}", "wrong by at most half of their letters", None),
            ("mean ANLS", f"{np.mean([items['anls'][i] for i in rows]):.3f}", "of all answers", None),
        ]
    )
    if not wrong:
        return
    common = Counter((items["truth"][i], items["said"][i]) for i in wrong).most_common(COMMON)
    report.table(
        ("true answer", "was said", "times"), [(truth, said or "nothing", count) for (truth, said), count in common]
    )
    report.section("Wrong answers", "The questions most often answered wrongly first, the answers furthest off first.")
    by_question: dict[str, list[int]] = {}
    for i in sorted(wrong, key=lambda i: items["anls"][i]):
        if items["image"][i] in samples:
            by_question.setdefault(items["question"][i], []).append(i)
    asked = Counter(items["question"][i] for i in rows)
    shown = 0
    for question, those in sorted(by_question.items(), key=lambda entry: -len(entry[1])):
        if shown >= WORST:
            break
        cells: list[tuple[Any, str, str, State | None]] = [
            (
                samples[items["image"][i]].image(),
                f"said: {items['said'][i] or 'nothing'}",
                f"true: {items['truth'][i]} \u00b7 {items['image'][i]}",
                "warn" if items["anls"][i] > 0 else "bad",
            )
            for i in those[:TOGETHER]
        ]
        report.strip(question, cells, f"wrong {len(those)} of {asked[question]} times")
        shown += len(cells)


def _boxes(report: Report, items: Mapping[str, list[Any]], rows: list[int], samples: Samples) -> None:
    overlap = np.array([items["iou"][i] for i in rows])
    report.section("Answers in boxes", "Boxes matched one to one with the true ones; each that is left over counts 0.")
    silent = sum(not items["said_boxes"][i] for i in rows)
    report.figures(
        [
            _share("located", int((overlap >= LOCATED).sum()), len(rows)),
            ("mean IoU", f"{overlap.mean():.3f}", "of all questions", None),
            ("without any box", f"{silent:,}", "answers that hold none", None),
        ]
    )
    report.plot(
        plots.histogram({"questions": overlap}, x="IoU", lines={"located from here": LOCATED}),
        "How well the answered boxes cover the true ones",
    )
    missed = [i for i in rows if items["iou"][i] < LOCATED and items["image"][i] in samples]
    if not missed:
        return
    report.section("Worst boxes", "Left what is there, right what was said.")
    for i in sorted(missed, key=lambda i: items["iou"][i])[:WORST_BOXES]:
        sample = samples[items["image"][i]]
        phrase = items["phrase"][i] or "box"
        sides = {"truth": items["true_boxes"][i], "said": items["said_boxes"][i]}
        panels = {name: _drawn(shares, sample, phrase) for name, shares in sides.items()}
        report.boxes(
            sample.image(), panels, f"{items['question'][i]} IoU {items['iou'][i]:.2f} \u00b7 {items['image'][i]}"
        )


def _drawn(shares: list[list[float]], sample: Sample, phrase: str) -> Detections:
    sides = np.array([sample.width, sample.height] * 2, np.float32)
    boxes = np.asarray(shares, np.float32).reshape(-1, 4) * sides
    return Detections.build(boxes.tolist(), 1.0, [0] * len(boxes), (phrase,))


def _share(name: str, count: int, of: int) -> tuple[str, str, str, State | None]:
    low, high = wilson(count, of)
    return name, f"{count / of:.1%}", f"of {of:,}; 95%: {low:.1%} to {high:.1%}", None
