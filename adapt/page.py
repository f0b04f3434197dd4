"""The page of one adaptation: curves, before and after, and the examples it helped and harmed most."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adapt.job import Example, Validation
from evals import plots
from evals.report import Report, State
from foveal.images import decode

if TYPE_CHECKING:
    from PIL.Image import Image

    from adapt.run import AdaptReport

SHOWN, SIDE = 6, 224  # pictures a gallery, pixels


def write_page(path: Path, report: AdaptReport, before: Validation | None, after: Validation | None) -> None:
    """Write the page of a finished run to `path`."""
    share = report.trainable_params / report.total_params
    facts = [
        ("base", report.base),
        ("trained", f"{report.trainable_params:,} of {report.total_params:,} parameters ({share:.1%})"),
        ("steps", f"{report.steps} in {report.seconds:.0f} s, {report.examples_per_second:.3g} examples/s"),
        *((name, str(count)) for name, count in report.data.items()),
    ]
    page = Report(f"Adapter of {report.base}", "What was trained, and whether it helped.", facts=facts)
    page.section("Training", "Mean loss of each ten steps.")
    if report.losses:
        steps = np.arange(1, len(report.losses) + 1) * 10.0
        page.plot(plots.curves({"loss": (steps, np.asarray(report.losses))}), "training loss")
    if report.watched:
        steps, values = (np.asarray(column, dtype=float) for column in zip(*report.watched, strict=True))
        page.plot(plots.curves({report.metric: (steps, values)}, y=report.metric), "on the validation set")
    if report.notes:
        page.prose("\n\n".join(report.notes))
    if report.skipped:
        page.table(("left out", "reason"), report.skipped[:20], f"{len(report.skipped)} files left out", stack=True)
    if before is not None and after is not None:
        _comparison(page, report, before, after)
    if report.baselines and report.after is not None:
        _worth(page, report.baselines, report.after)
    page.write(path)


def _comparison(page: Report, report: AdaptReport, before: Validation, after: Validation) -> None:
    was, now = before.figures[report.metric], after.figures[report.metric]
    state: State = "good" if now > was else "bad"
    page.section("Before and after", "Both measured on the same held-out examples.")
    page.figures([(report.metric, f"{now:.3f}", f"the base has {was:.3f}", state)])
    rows = [(name, value, after.figures[name], after.figures[name] - value) for name, value in before.figures.items()]
    page.table(("figure", "before", "after", "change"), rows)
    pairs = list(zip(before.examples, after.examples, strict=True))
    change = [new.value - old.value for old, new in pairs]
    order = sorted(range(len(pairs)), key=lambda i: change[i])
    for title, chosen in (
        ("Most improved", [i for i in order[::-1][:SHOWN] if change[i] > 0]),
        ("Most harmed", [i for i in order[:SHOWN] if change[i] < 0]),
    ):
        if chosen:
            page.section(title, "Asked, answered before, answered now.")
            page.gallery([(_picture(pairs[i][0]), _words(*pairs[i])) for i in chosen])


def _worth(page: Report, baselines: dict[str, dict[str, float]], after: dict[str, float]) -> None:
    """Training against what costs none."""
    rows = {**baselines, "this adapter": after}
    names = [name for name in next(iter(baselines.values())) if name in after and name != "count"]
    page.section("Was training worth it", "The base without training, by the same labels, on the same held-out images.")
    page.table(("method", *names), [(method, *(figures[name] for name in names)) for method, figures in rows.items()])


def _picture(example: Example) -> Image:
    image = decode(example.path, min_side=SIDE)
    image.thumbnail((SIDE, SIDE))
    return image


def _words(old: Example, new: Example) -> str:
    return f"{new.asked}: {old.answered} \u2192 {new.answered}"
