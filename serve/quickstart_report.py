"""The quickstart's report: `report.html` to look at, and the table it ends with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evals import gates, pages, plots
from evals.report import Report, State
from foveal import world
from foveal.detections import Detections
from foveal.images import decode
from foveal.models import load_detector, load_open_detector
from serve.quickstart_results import kept
from serve.quickstart_trials import TRIALS

if TYPE_CHECKING:
    from foveal.dataset import Sample
    from serve.quickstart_settings import Run

SHOWN = 0.45  # score from which boxes are drawn
EXAMPLES = 4


def figures(report: dict[str, Any]) -> list[tuple[str, str, str, State | None]]:
    """The headline figures as (label, value, note, state)."""
    adapt, teach, archive, labels, distill = (report[k] for k in ("adapt", "teach", "archive", "prelabel", "distill"))
    low, high = labels["accepted_interval"]
    verify, served = labels["verification"], report["serve"]
    shared = "0.5"
    with_memory, without = (verify[k]["precision_at_recall"][shared] for k in ("with_memory", "without_memory"))

    def state(good: bool) -> State:
        return "good" if good else "bad"

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    return [
        (
            "text to image recall@1",
            f"{adapt['recall_at_1_after']:.1%}",
            f"before adapting {adapt['recall_at_1_before']:.1%}, {adapt['trainable_share']:.1%} of parameters trained",
            state(adapt["recall_at_1_after"] >= adapt["recall_at_1_before"] + 0.15),
        ),
        (
            "zero-shot accuracy",
            f"{adapt['zero_shot_after']:.1%}",
            f"before {adapt['zero_shot_before']:.1%}, on crops of the hidden test set",
            None,
        ),
        (
            "right answers",
            f"{teach['exact_match_after']:.1%}",
            f"before teaching {teach['exact_match_before']:.1%}, {teach['questions']} questions of the hidden test set",
            state(teach["exact_match_after"] >= teach["exact_match_before"] + 0.02),
        ),
        (
            "objects located by words",
            f"{teach['located_after']:.1%}",
            f"before {teach['located_before']:.1%}; IoU of at least 0.5 with each of {teach['objects']} single objects",
            None,
        ),
        (
            "archive recall@10",
            f"{archive['recall_at_10_vs_exact']:.4f}",
            f"against exact search; {archive['images']} images, p50 {archive['p50_ms']:.1f} ms",
            state(archive["recall_at_10_vs_exact"] >= 0.99),
        ),
        (
            "accepted precision",
            number(labels["accepted_precision"]),
            f"asked {labels['target_precision']:.2f}; 95% interval {low:.3f} to {high:.3f}, {labels['accepted']} boxes",
            state((labels["accepted_precision"] or 0) >= labels["target_precision"]),
        ),
        (
            "accepted of all true boxes",
            f"{labels['accepted_recall'] or 0:.1%}",
            f"{report['distill']['human_boxes']} human boxes in the gold set, none besides",
            state((labels["accepted_recall"] or 0) >= 0.5),
        ),
        (
            "precision at recall 0.5",
            number(with_memory),
            f"verified by memory; {number(without)} without",
            state((with_memory or 0) > (without or 0)),
        ),
        (
            "student mAP50",
            f"{distill['student_map50']:.3f}",
            f"teacher {distill['teacher_map50']:.3f}",
            state(distill["student_map50"] >= 0.95 * distill["teacher_map50"]),
        ),
        (
            "INT8 student mAP50",
            f"{distill['int8_map50']:.3f}",
            f"{distill['int8_mb']:.1f} MB, fp32 {distill['student_mb']:.1f} MB",
            state(distill["int8_map50"] >= distill["student_map50"] - 0.01),
        ),
        (
            "INT8 ms an image",
            f"{distill['int8_ms']:.1f}",
            f"teacher {distill['teacher_ms']:.1f} ms, {distill['teacher_ms'] / distill['int8_ms']:.1f} times faster",
            state(distill["int8_ms"] <= distill["teacher_ms"] / 8),
        ),
        (
            "served over HTTP",
            f"{served['search_ms']:.0f} ms",
            f"a search; detection {served['detect_ms']:.0f} ms, embedding {served['embed_ms']:.0f} ms",
            None,
        ),
    ]


def show(report: dict[str, Any], out: Path) -> None:
    """Print the closing table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("measured", "", ""):
        table.add_column(column, overflow="fold")
    colours = {"good": "green", "bad": "red", "warn": "yellow", None: "default"}
    for label, value, note, state in figures(report):
        table.add_row(label, f"[{colours[state]}]{value}[/]", f"[dim]{note}[/]")
    console = Console(stderr=True)
    console.print(table)
    passed = report["gate"]["passed"]
    verdict = "[green]passed[/]" if passed else "[red]refused[/]"
    console.print(f"gate {verdict}; {report['seconds_total']:.0f} s; open {out / 'report.html'}")


def write(run: Run, report: dict[str, Any]) -> None:
    """Write `report.html` beside the run's other results."""
    machine, minutes = report["machine"], report["seconds_total"] / 60
    page = Report(
        "Quickstart",
        "One pass through the loop on the rendered sample site: adapt, index, pre-label, distil, gate, serve.",
        facts=[
            ("encoder", report["backbones"]["encoder"]),
            ("teacher", report["backbones"]["teacher"]),
            ("student", report["backbones"]["student"]),
            ("machine", f"{machine['cpu']}, {machine['cores']} cores"),
            ("time", f"{minutes:.1f} minutes"),
            ("peak memory", f"{report['peak_memory_mb'] / 1024:.1f} GB"),
        ],
    )
    page.section("At a glance", "Green figures clear their bar, red ones do not.").figures(figures(report))
    page.plot(plots.timeline([(s["name"], s["seconds"]) for s in report["stages"]]), "Where the time went")
    _verdict(page, run)
    _searches(page, run)
    _answers(page, run)
    _labels(page, report)
    _detectors(page, run, report)
    _results(page, run)
    page.write(run.out / "report.html")


def _verdict(page: Report, run: Run) -> None:
    checks = [gates.Check(**check) for check in run.results["gate"]["checks"]]
    registered = run.results["gate"].get("registered")
    outcome = f"Registered as {registered}, in production." if registered else "Nothing was registered."
    page.section("Release gate", outcome).checks(gates.GateReport(tuple(checks)))


def _searches(page: Report, run: Run) -> None:
    losses = run.results["adapt"]["losses"]
    page.section(
        "Adapt and search",
        "The adapted encoder finds images by words, by example, and by both among what a filter keeps.",
    )
    page.plot(plots.curves({"training loss": (np.arange(len(losses)) * 10, losses)}), "LoRA on the archive's captions")
    for search in run.results["index"]["searches"]:
        hits = [(decode(Path(h["uri"])), h["similarity"], _place(h["metadata"])) for h in search["hits"]]
        page.hits(
            search.get("text") or "",
            hits,
            image=decode(Path(search["image"])) if "image" in search else None,
            note=f"where {search['filter']}" if "filter" in search else "",
        )


def _answers(page: Report, run: Run) -> None:
    taught = run.results["teach"]
    page.section(
        "Ask",
        "The vision-language model learns the site's things from the archive's questions (QLoRA: 4-bit weights, a LoRA "
        "adapter on top). Answers that teaching changed, the most improved first, and the most harmed.",
    )
    losses = taught["losses"]
    page.plot(
        plots.curves({"training loss": (np.arange(len(losses)) * 10, losses)}), "QLoRA on the archive's questions"
    )
    rows = taught["changed"]
    page.gallery((decode(Path(c["path"])), f"{c['asked']}: {c['before']} \u2192 {c['after']}") for c in rows)


def _place(metadata: dict[str, Any]) -> str:
    return ", ".join(str(metadata[key]) for key in ("place", "light", "camera") if key in metadata)


def _labels(page: Report, report: dict[str, Any]) -> None:
    verification = report["prelabel"]["verification"]
    page.section(
        "Pre-labels",
        "The teacher proposes, the exemplar memory verifies, and calibration on the gold set decides what is accepted "
        "without a look, what a reviewer sees first, and what is dropped. Measured against truth that no stage saw.",
    )
    curves = {
        name.replace("_", " "): (v["curve"]["precision"], v["curve"]["recall"]) for name, v in verification.items()
    }
    page.plot(plots.precision_recall(curves), "The same boxes ranked with and without the memory's word")
    rows = [
        (
            name.replace("_", " "),
            v["average_precision"],
            v["precision_at_recall"]["0.5"],
            v["precision_at_recall"]["0.7"],
            v["ece"],
        )
        for name, v in verification.items()
    ]
    page.table(
        ("ranked by", "average precision", "precision at recall 0.5", "at recall 0.7", "calibration error"), rows
    )
    routes = report["prelabel"]["routes"]
    page.table(("route", "boxes"), [(route, routes[route]) for route in ("accept", "review", "reject")])


def _detectors(page: Report, run: Run, report: dict[str, Any]) -> None:
    d = report["distill"]
    names = ("teacher", "student", "int8")
    page.section("Teacher and student", "On the hidden test set, which no stage has trained or calibrated on.")
    page.plot(
        plots.bars({"mAP50": {n: d[f"{n}_map50"] for n in names}, "mAP": {n: d[f"{n}_map"] for n in names}}),
        "Detection quality",
    )
    page.plot(plots.bars({"ms an image": {n: d[f"{n}_ms"] for n in names}}, unit=" ms"), "Time, one image at a time")
    page.table(
        ("kind", "teacher AP50", "student AP50", "INT8 AP50"),
        [(kind, *(d[f"{n}_per_class"].get(kind) for n in names)) for kind in world.kinds("site")],
        "Average precision at IoU 0.5, a kind a row",
    )
    test = run.truth("test")
    samples = [test[i] for i in range(len(test))]
    student = load_detector(f"onnx:{run.out / 'int8-onnx'}")
    teacher = load_open_detector(run.settings.teacher)
    by_student = [student.detect([sample.image()], SHOWN)[0] for sample in samples]
    for sample, seen in list(zip(samples, by_student, strict=True))[:EXAMPLES]:
        image = sample.image()
        panels: dict[str, Detections] = {
            "truth": _truth(sample),
            "teacher": teacher.detect([image], test.classes, SHOWN)[0],
            "INT8 student": seen,
        }
        page.boxes(image, panels, sample.captions[0] if sample.captions else "")


def _results(page: Report, run: Run) -> None:
    """What was measured of the INT8 student item by item, as `foveal eval ... --out` would show it."""
    test = run.truth("test")
    samples = {sample.id: sample for sample in test}
    for task in ("detection", *TRIALS):
        if (result := kept(run, "candidate", task)) is None:
            continue
        pages.SECTIONS[task](page, result, samples)
        if task == "detection":
            pages.slices(page, result)


def _truth(sample: Sample) -> Detections:
    assert sample.truth is not None  # a rendered split always has it
    return sample.truth
