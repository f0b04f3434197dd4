"""The section of a scenario result: every case as a picture, with what was expected and what was seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from evals.report import Cell, Mark, Report, State
from evals.results import Result
from foveal.dataset import Sample
from foveal.detections import Detections

if TYPE_CHECKING:
    from PIL.Image import Image

FAILED_SHOWN = 3  # worst pictures of a case that fails
ORDER = {"fails": 0, "flaky": 1, "holds": 2}
SEVERITY = {"blocker": 0, "major": 1, "minor": 2}
STATES: dict[str, State] = {"fails": "bad", "flaky": "warn", "holds": "good"}


def section(report: Report, result: Result, samples: Mapping[str, Sample]) -> None:
    """What failed first, then what is flaky, then what holds by least."""
    items, severity = result.items, result.slices["severity"]
    words = [_word(items, i) for i in range(len(result))]
    order = sorted(
        range(len(result)), key=lambda i: (ORDER[words[i]], SEVERITY.get(str(severity[i]), 3), items["margin"][i])
    )
    repeats = result.figures["repeats"]
    report.section(
        "Scenarios",
        "Cases that must not fail. A margin tells how far a verdict is from turning"
        + (f"; each case was run {repeats} times." if repeats > 1 else "."),
    )
    rows: list[list[Cell]] = [
        [
            Mark(words[i], STATES[words[i]]),
            items["id"][i],
            severity[i],
            items["expects"][i],
            items["reason"][i] + _share(items, i, repeats),
            f"{items['margin'][i]:+.2f}",
            result.slices["owner"][i],
        ]
        for i in order
    ]
    report.table(("verdict", "case", "severity", "expected", "seen", "margin", "owner"), rows, stack=True)
    report.section("Cases", "Each case as the picture that decides it; of cases that fail, the worst.")
    for i in order:
        if not _small(items, i, samples):
            _case(report, items, i, Mark(words[i], STATES[words[i]]), str(severity[i]), samples)
    report.tiles(_tile(items, i, samples) for i in order if _small(items, i, samples))


def _small(items: Mapping[str, list[Any]], i: int, samples: Mapping[str, Sample]) -> bool:
    """Whether a case holds each time and has a picture: then a small one says enough."""
    return bool(items["passed"][i]) and any(one["image"] in samples for one in items["seen"][i])


def _tile(items: Mapping[str, list[Any]], i: int, samples: Mapping[str, Sample]) -> tuple[Image, Detections, str]:
    one = next(one for one in items["seen"][i] if one["image"] in samples)
    return (
        samples[one["image"]].image(),
        _drawn(one, sorted(set(one.get("labels", [])))),
        f"{items['id'][i]}: {one['reason']}",
    )


def _word(items: Mapping[str, list[Any]], i: int) -> str:
    return "holds" if items["passed"][i] else "flaky" if items["flaky"][i] else "fails"


def _share(items: Mapping[str, list[Any]], i: int, repeats: int) -> str:
    return f"; held {round(items['held'][i] * repeats)} of {repeats} times" if items["flaky"][i] else ""


def _case(
    report: Report, items: Mapping[str, list[Any]], i: int, mark: Mark, severity: str, samples: Mapping[str, Sample]
) -> None:
    title, note = items["id"][i], f"{severity}: {items['why'][i]}"
    shown = [one for one in items["seen"][i] if one["image"] in samples]
    shown = shown[:FAILED_SHOWN]
    expected = cast("dict[str, Any]", items["expected"][i])
    if not shown:
        report.table(
            ("case", "expected", "seen"), [(title, items["expects"][i], items["reason"][i])], f"{mark.text}. {note}"
        )
        return
    if not expected and not any(one.get("boxes") for one in shown):
        strip = [
            (samples[one["image"]].image(), *_heading(one), one["reason"], "good" if one["held"] else "bad")
            for one in shown
        ]
        report.strip(title, cast("Any", strip), f"{items['expects'][i]}. {note}", mark=mark)
        return
    for one in shown:
        names = list(dict.fromkeys([*expected.get("labels", []), *one.get("labels", [])]))  # one colour a class
        panels = {"expected": _drawn(expected, names)} if expected else {}
        report.boxes(
            samples[one["image"]].image(),
            {**panels, "seen": _drawn(one, names)},
            f"Expected: {items['expects'][i]}. Seen: {one['reason']}. {note[0].upper()}{note[1:]}.".replace("..", "."),
            title=title,
            mark=mark,
        )


def _heading(one: Mapping[str, Any]) -> tuple[str]:
    return ("holds" if one["held"] else "fails",)


def _drawn(told: Mapping[str, Any], names: Sequence[str]) -> Detections:
    return Detections.build(told.get("boxes", []), told.get("scores", 1.0), told.get("labels", []), names)
