"""Runs a scenario suite: each case holds or fails, with a reason, a margin, and what was seen in its pictures."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evals import scenario_judging as judging
from evals.results import Measured
from evals.scenario_form import KINDS, SEVERITIES, Count, Scenario
from evals.scenario_judging import Seen, Subjects
from evals.scenario_suite import Suite
from foveal.dataset import Sample
from foveal.errors import BadInput
from foveal.progress import Progress, track

if TYPE_CHECKING:
    from PIL.Image import Image

KEPT = 4  # pictures of a case whose details stay in the result: the worst
OPTIONS = {"detect": "--detector REF", "classify": "--encoder REF", "search": "--archive DIR", "answer": "--vlm REF"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One run of one case."""

    passed: bool
    margin: float
    reason: str
    seen: tuple[Seen, ...]  # worst first


def measure(
    suite: Suite, subjects: Subjects, *, repeats: int = 1, noise: int = 0, progress: Progress | None = None
) -> Measured:
    """Every case of the suite, `repeats` times over; a case passes when it holds each time.

    Figures: `pass_rate`, `cases`, `passed`, `blockers_failed`, `flaky` (cases whose verdict was not always the same),
    and `by_severity`. Items, one a case: `passed`, `margin` (the least), `reason`, `held` (share of the runs),
    `flaky`, `severity`, `owner`, `kind`, and in `seen` its worst pictures with what was expected.

    Args:
        noise: grey levels by which each value of a picture may differ from the second run on: cases that hold by a
            hair show themselves even where the model says the same twice.

    Raises:
        BadInput: a case needs a kind of model that is not among `subjects`, or names a class its detector cannot say.
    """
    _check(suite, subjects)
    runs: dict[str, list[Verdict]] = {case.name: [] for case in suite.cases}
    contents = suite.contents()
    turns = [(turn, case) for turn in range(repeats) for case in suite.cases]
    for turn, case in track(progress, turns, "run scenarios"):
        level = noise if turn else 0
        pictures = (_noisy(sample, level, turn) for sample in suite.pictures[case.name])
        runs[case.name].append(run(case, suite, list(pictures), contents[case.name], subjects))
    return _measured(suite, runs, repeats)


def run(
    case: Scenario, suite: Suite, images: Sequence[Image], hashes: Mapping[str, str], subjects: Subjects
) -> Verdict:
    """One case on its pictures `images`, which follow `suite.pictures`; `hashes` are their contents by id."""
    ids = [sample.id for sample in suite.pictures[case.name]]
    expect = case.expect
    if expect.detect is not None:
        seen = judging.detected(expect.detect, ids, images, subjects)
    elif expect.classify is not None:
        seen = judging.classified(expect.classify, suite, ids, images, subjects)
    elif expect.answer is not None:
        seen = [judging.answered(expect.answer, id, image, subjects) for id, image in zip(ids, images, strict=True)]
    else:
        assert expect.search is not None  # an expectation is one of the four
        seen = judging.searched(expect.search, ids, hashes, subjects)
    seen.sort(key=lambda one: (one.held, one.margin))
    need = math.ceil(case.threshold * len(seen) - 1e-9)
    held = sum(one.held for one in seen)
    margin = sorted((one.margin for one in seen), reverse=True)[need - 1]
    if held >= need:
        worst = seen[len(seen) - need]
        told = worst.reason if len(seen) == 1 else f"{held} of {len(seen)} pictures hold"
        return Verdict(True, margin, told, tuple(seen))
    many = "" if len(seen) == 1 else f"{held} of {len(seen)} pictures hold, {need} needed; the worst: "
    return Verdict(False, margin, f"{many}{seen[0].reason}", tuple(seen))


def _check(suite: Suite, subjects: Subjects) -> None:
    for case in suite.cases:
        if not subjects.has(case.kind):
            raise BadInput(
                f"{suite.path}: case {case.name!r} is for {case.kind}, and nothing is given to try",
                expected=OPTIONS[case.kind],
                remedy=f"Give it, or run the others alone: {_others(suite, subjects)}.",
            )
        if case.expect.detect is not None and subjects.classes is not None:
            unknown = [name for name in case.expect.detect.classes if name not in subjects.classes]
            if unknown:
                raise BadInput(
                    f"{suite.path}: case {case.name!r}: expect.detect names {unknown[0]!r}, which the detector "
                    "cannot find",
                    expected=f"one of {', '.join(subjects.classes)}",
                )


def _others(suite: Suite, subjects: Subjects) -> str:
    kinds = [kind for kind in KINDS if subjects.has(kind) and any(case.kind == kind for case in suite.cases)]
    return " ".join(f"--only {kind}" for kind in kinds) or "--only KIND"


def _noisy(sample: Sample, level: int, turn: int) -> Image:
    """The picture with whole grey levels of up to `level` added or taken; the same for the same picture and turn."""
    from PIL import Image as pillow

    image = sample.image()
    if not level:
        return image
    seed = int.from_bytes(hashlib.sha256(f"{sample.id} {turn}".encode()).digest()[:8])
    pixels = np.asarray(image, dtype=np.int16)
    shift = np.random.default_rng(seed).integers(-level, level + 1, pixels.shape, dtype=np.int16)
    return pillow.fromarray(np.clip(pixels + shift, 0, 255).astype(np.uint8))


def _measured(suite: Suite, runs: dict[str, list[Verdict]], repeats: int) -> Measured:
    passed = {name: all(one.passed for one in verdicts) for name, verdicts in runs.items()}
    flaky = {name: len({one.passed for one in verdicts}) > 1 for name, verdicts in runs.items()}
    worst = {name: min(verdicts, key=lambda one: (one.passed, one.margin)) for name, verdicts in runs.items()}
    by_severity: dict[str, Any] = {}
    for severity in SEVERITIES:
        mine = [passed[case.name] for case in suite.cases if case.severity == severity]
        if mine:
            by_severity[severity] = {"cases": len(mine), "passed": sum(mine), "pass_rate": sum(mine) / len(mine)}
    blocked = by_severity.get("blocker", {"cases": 0, "passed": 0})
    figures = {
        "pass_rate": sum(passed.values()) / len(passed),
        "cases": len(passed),
        "passed": sum(passed.values()),
        "blockers_failed": blocked["cases"] - blocked["passed"],
        "flaky": sum(flaky.values()),
        "repeats": repeats,
        "by_severity": by_severity,
    }
    names = [case.name for case in suite.cases]
    pictures = [[one for one in worst[name].seen if one.image is not None] for name in names]
    items: dict[str, list[Any]] = {
        "id": names,
        "image": [seen[0].image if seen else name for name, seen in zip(names, pictures, strict=True)],
        "passed": [int(passed[name]) for name in names],
        "margin": [worst[name].margin for name in names],
        "reason": [worst[name].reason for name in names],
        "held": [sum(one.passed for one in runs[name]) / repeats for name in names],
        "flaky": [int(flaky[name]) for name in names],
        "pictures": [len(suite.pictures[name]) for name in names],
        "expects": [in_words(case) for case in suite.cases],
        "why": [case.why for case in suite.cases],
        "expected": [_places(case) for case in suite.cases],
        "seen": [[_plain(one) for one in worst[name].seen[:KEPT]] for name in names],
    }
    slices: dict[str, list[str | None]] = {
        "severity": [case.severity for case in suite.cases],
        "kind": [case.kind for case in suite.cases],
        "owner": [case.owner for case in suite.cases],
    }
    return Measured(figures, items, slices)


def _plain(seen: Seen) -> dict[str, Any]:
    told: dict[str, Any] = {"image": seen.image, "held": seen.held, "margin": seen.margin, "reason": seen.reason}
    if seen.boxes:
        told |= {"boxes": seen.boxes, "labels": seen.labels, "scores": seen.scores}
    return told


def _places(case: Scenario) -> dict[str, Any]:
    """The boxes that a case demands, to be drawn beside those that were found."""
    asked = case.expect.detect
    if asked is None or not asked.boxes:
        return {}
    return {"boxes": [list(place.box) for place in asked.boxes], "labels": [place.class_ for place in asked.boxes]}


def in_words(case: Scenario) -> str:
    """What a case expects, in one line."""
    expect = case.expect
    if expect.detect is not None:
        asked = expect.detect
        parts = [", ".join(asked.present)] if asked.present else []
        parts += [f"no {name}" for name in asked.absent]
        for name, wanted in asked.count.items():
            if isinstance(wanted, Count):
                most = "or more" if wanted.max is None else f"to {wanted.max}"
                parts.append(f"{wanted.min} {most} {name}")
            else:
                parts.append(f"{wanted} {name}")
        parts += [f"{place.class_} near ({', '.join(f'{edge:g}' for edge in place.box)})" for place in asked.boxes]
        parts += [f"no {place.class_} near ({', '.join(f'{v:g}' for v in place.box)})" for place in asked.clear]
        return f"{'; '.join(parts)} (from a score of {asked.score:g})"
    if expect.classify is not None:
        bar = f" at {expect.classify.confidence:g} or more" if expect.classify.confidence else ""
        return f"is called {expect.classify.class_}{bar}"
    if expect.search is not None:
        asked_for = f"the search {expect.search.text!r} finds"
        return f"{asked_for} nothing" if expect.search.nothing else f"{asked_for} it within {expect.search.within}"
    assert expect.answer is not None
    return f"{expect.answer.question} {' or '.join(expect.answer.accepted)}"
