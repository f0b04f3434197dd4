"""The quickstart's stages, each a call into its room.

The site's images carry no label but the gold set's, and the archive's captions and questions; truth of the rest is only
read to measure.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from adapt import vlm
from adapt.clip import adapt
from adapt.dialogues import Dialogues, open_dialogues
from adapt.job import Example
from adapt.vlm_lessons import lessons
from adapt.vlm_score import score
from distill.audit import compare_verification, measure
from distill.export import export
from distill.ontology import Ontology
from distill.prelabel import prelabel
from distill.students import load_student
from distill.train import train, training_set
from evals import cards, gates, retrieval, zero_shot
from evals.detection import evaluate
from evals.detection import measure as detection_measured
from evals.evidence import gather
from evals.results import Stopwatch
from evals.speed import detector_latency
from foveal import artifacts, world
from foveal.dataset import Dataset
from foveal.detections import Detections
from foveal.images import decode
from foveal.models import load_detector, load_encoder, load_open_detector, load_vlm
from foveal.registry import Registry
from retrieval.archive import Archive
from retrieval.memory import ExemplarMemory
from retrieval.query import SearchQuery
from serve.client_check import exercise
from serve.quickstart_results import Side, keep
from serve.quickstart_results import folder as results
from serve.quickstart_settings import Run
from serve.quickstart_trials import EVERYTHING, tried
from serve.reviewing import ReviewJob

NAME = "depot-student"
ROUNDS = 5  # of timing
ANSWER_TOKENS = 32  # enough for a box
SHOWN_ANSWERS = 8


def render(run: Run) -> dict[str, Any]:
    """Stage 1: unlabelled images, a gold set, a hidden test set and an archive, all of the site."""
    settings = run.settings
    for number, split in enumerate(("unlabelled", "gold", "test", "archive")):
        folder, count = run.world(split), getattr(settings, split)
        if (folder / "instances.json").is_file():
            continue
        run.progress.start(f"render {split}", count)
        world.write(
            folder, "site", count, settings.seed * 10 + number, settings.size, progress=run.progress.advance, workers=2
        )
        run.progress.finish()
    ontology = "\n".join(["classes:", *(f"  - {name}" for name in world.kinds("site")), ""])
    artifacts.write_text(run.out / "ontology.yaml", ontology)
    return {split: getattr(settings, split) for split in ("unlabelled", "gold", "test", "archive")}


def adaptation(run: Run) -> dict[str, Any]:
    """Stage 2: LoRA on the archive's captions, measured on the hidden test set before and after."""
    report = adapt(run.settings.encoder, run.truth("archive"), run.adapter, run.settings.adapt, run.progress)
    test = run.truth("test")
    result: dict[str, Any] = {"trainable_params": report.trainable_params, "total_params": report.total_params}
    # A scene's first caption is the complete one; the shorter ones fit several scenes.
    described = Dataset.build([_with_first_caption(sample) for sample in test], test.classes)
    sides: tuple[tuple[Side, str, str], ...] = (
        ("incumbent", "before", run.settings.encoder),
        ("candidate", "after", run.encoder),
    )
    for side, moment, reference in sides:
        encoder, watch = load_encoder(reference), Stopwatch()
        found = retrieval.measure(encoder, described)
        keep(run, side, "retrieval", found, reference, encoder, ("test", described), watch)
        named = zero_shot.measure(encoder, test)
        keep(run, side, "zero-shot", named, reference, encoder, ("test", test), watch)
        result[f"recall_at_1_{moment}"] = found.figures["recall_at_1"]
        result[f"zero_shot_{moment}"] = named.figures["top1"]
    return {**result, "steps": report.steps, "images": report.data["images"], "losses": report.losses}


def _with_first_caption(sample: Any) -> Any:
    from dataclasses import replace

    return replace(sample, captions=sample.captions[:1])


def teaching(run: Run) -> dict[str, Any]:
    """Stage 3: QLoRA on the archive's questions; put to the hidden test set before and after."""
    settings, out = run.settings, run.out / "vlm-adapter"
    sources = [run.world("archive") / "questions.jsonl"]
    report = vlm.adapt(settings.vlm, sources, out, settings.teach, run.progress)
    asked = open_dialogues([run.world("test") / "questions.jsonl"])
    boxes = open_dialogues([run.world("test") / "instances.json"])
    words = asked.items[: settings.questions]
    single = [d for d in boxes.items if d.boxes is not None and len(d.boxes) == 1][: settings.questions // 2]
    result: dict[str, Any] = {"trainable_params": report.trainable_params, "total_params": report.total_params}
    examples: list[list[Example]] = []
    for moment, reference in (("before", settings.vlm), ("after", run.vlm)):
        model: Any = load_vlm(reference)
        told = score(model, lessons(model, Dialogues(words + single)), ANSWER_TOKENS, run.progress)
        result |= {f"{name}_{moment}": told.figures[name] for name in ("exact_match", "located")}
        examples.append(told.examples)
    changed: list[dict[str, Any]] = [
        {"path": str(a.path), "asked": a.asked, "before": a.answered, "after": b.answered, "gain": b.value - a.value}
        for a, b in zip(*examples, strict=True)
        if a.answered != b.answered
    ]
    changed.sort(key=lambda row: row["gain"])
    return {
        **result,
        "questions": len(words),
        "objects": len(single),
        "steps": report.steps,
        "losses": report.losses,
        "changed": [*changed[::-1][:SHOWN_ANSWERS], *[row for row in changed[:2] if row["gain"] < 0]],
    }


def indexing(run: Run) -> dict[str, Any]:
    """Stage 4: embed the archive with the adapted encoder, index it, and search it in three ways."""
    encoder, folder = load_encoder(run.encoder), run.out / "archive"
    archive = (
        Archive.open(folder)
        if (folder / "archive.json").is_file()
        else Archive.create(folder, encoder, reference=run.encoder)
    )
    archive.add(run.world("archive") / "images", encoder, run.progress)
    measured = archive.recall_at_k(10, 200)
    picture = str(sorted((run.world("test") / "images").iterdir())[0])
    searches: list[dict[str, Any]] = [
        {"text": "a yellow drone on the floor"},
        {"text": "a rusty valve on the wall", "filter": "place = 'loading bay'"},
        {"image": picture},
        {"image": picture, "text": "a blue cable reel"},
    ]
    for search in searches:
        query = SearchQuery(
            text=search.get("text"),
            image=Path(search["image"]) if "image" in search else None,
            filter=search.get("filter"),
            k=6,
        )
        search["hits"] = [asdict(hit) for hit in archive.search(query, encoder)]
    return {
        "images": len(archive),
        "recall_at_10_vs_exact": measured.recall,
        "p50_ms": measured.p50_ms,
        "p99_ms": measured.p99_ms,
        "index": archive.stats(),
        "searches": searches,
    }


def labelling(run: Run) -> dict[str, Any]:
    """Stage 5: pre-label the unlabelled images; their truth is opened afterwards, to measure."""
    gold, out = run.truth("gold"), run.out / "prelabels"
    memory = ExemplarMemory.build(load_encoder(run.encoder), gold, progress=run.progress)
    source = Dataset.open(run.world("unlabelled") / "images")
    report = prelabel(
        source,
        Ontology.load(run.out / "ontology.yaml"),
        load_open_detector(run.settings.teacher),
        gold,
        memory,
        out,
        run.settings.prelabel,
        run.progress,
    )
    hidden = run.truth("unlabelled")
    quality = measure(out, hidden)
    return {
        "images": report.images,
        "boxes": report.total_boxes,
        "precision": quality.precision,
        "recall": quality.recall,
        "accepted_share": quality.accepted_share,
        "accepted_recall": quality.accepted_recall,
        "accepted_precision": quality.accepted_precision,
        "accepted_interval": quality.accepted_interval,
        "accepted": quality.accepted,
        "target_precision": quality.target_precision,
        "routes": report.boxes,
        "warnings": report.warnings,
        "gold": report.gold,
        "verification": compare_verification(out, hidden),
    }


def distillation(run: Run) -> dict[str, Any]:
    """Stage 6: train the student on the pre-labels, export it, quantise it; both exports are parity-checked."""
    settings, labels = run.settings, training_set(run.out / "prelabels")
    trained = train(
        labels, settings.student, run.out / "student", settings.distill, run.progress, gold=run.truth("gold")
    )
    images = Dataset.open(run.world("unlabelled") / "images")
    result: dict[str, Any] = {"train": _plain(trained), "human_boxes": _boxes(run.truth("gold"))}
    for key, data in (("student", None), ("int8", images)):
        folder = run.out / f"{key}-onnx"
        if not folder.exists():
            export(run.out / "student", folder, "onnx", int8=data, progress=run.progress)
        result[key] = artifacts.read(folder).metrics
    return result


def evaluation(run: Run) -> dict[str, Any]:
    """Stage 7: teacher, student and INT8 student on the hidden test set, with their speed at one image at a time."""
    test = run.truth("test")
    images = [sample.image() for sample in test]
    teacher = load_open_detector(run.settings.teacher)
    models: dict[str, Any] = {
        "teacher": Prompted(teacher, test.classes),
        "student": load_detector(f"onnx:{run.out / 'student-onnx'}"),
        "int8": load_detector(f"onnx:{run.out / 'int8-onnx'}"),
    }
    result: dict[str, Any] = {}
    sides: dict[str, Side] = {"student": "incumbent", "int8": "candidate"}
    for name, model in models.items():
        watch = Stopwatch()
        run.progress.start(f"evaluate {name}", len(images))
        found: list[Detections] = []
        for start in range(0, len(images), 8):
            found += model.detect(images[start : start + 8], EVERYTHING)
            run.progress.advance(len(images[start : start + 8]))
        run.progress.finish()
        measured = detection_measured(test, found, samples=test)
        if name in sides:
            held = keep(run, sides[name], "detection", measured, model.name, model, ("test", test), watch)
            if name == "int8":
                tried(run, held, model, model.name)
        scores = measured.figures
        result[f"{name}_map50"], result[f"{name}_map"] = scores["AP50"], scores["AP"]
        result[f"{name}_per_class"] = scores["per_class"]
    # In turns, so that whatever else the machine does meets all three of them.
    rounds = [
        {name: detector_latency(model, images[:20], runs=20)["p50_ms"] for name, model in models.items()}
        for _ in range(ROUNDS)
    ]
    result |= {f"{name}_ms": float(np.median([times[name] for times in rounds])) for name in models}
    torch_student = load_student(run.out / "student")
    result["torch_map50"] = evaluate(test, torch_student.detect(images, EVERYTHING))["AP50"]
    for key in ("student", "int8"):
        result[f"{key}_mb"] = (run.out / f"{key}-onnx" / "model.onnx").stat().st_size / 1e6
    return result


class Prompted:
    """An open-vocabulary detector with its prompts fixed, so that it is measured like any other detector."""

    def __init__(self, model: Any, classes: tuple[str, ...]) -> None:
        self.model, self.classes, self.name, self.fingerprint = model, classes, model.name, model.fingerprint

    def detect(self, images: Any, threshold: float = 0.05) -> list[Detections]:
        """As `Detector.detect`."""
        return self.model.detect(images, self.classes, threshold)


def gating(run: Run) -> dict[str, Any]:
    """Stage 8: hold the figures against the bars; register and promote what passed, with its card."""
    text = files("serve").joinpath("quickstart_gates.yaml").read_text("utf-8")
    artifacts.write_text(run.out / "gates.yaml", text)
    measured, folder = figures(run), run.out / "int8-onnx"
    held = gather([results(run, "candidate")], [results(run, "incumbent")], folder, measured)
    verdict = gates.check(run.out / "gates.yaml", held)
    manifest = artifacts.read(folder)
    release = run.out / "release"
    if release.exists():
        shutil.rmtree(release)
    with artifacts.staged(release) as staged:
        for file in (*manifest.files, "manifest.json"):
            (staged / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / file, staged / file)
        d = measured["distill"]
        card = cards.model_card(
            manifest,
            summary=f"A compact detector of {len(world.kinds('site'))} kinds of depot equipment, distilled from "
            f"{run.settings.teacher} without a human box beyond a gold set of {run.settings.gold} images.",
            intended_use=["Show the whole of Foveal's loop on its rendered sample site."],
            limits=[
                "Trained on rendered images only: it knows nothing of photographs.",
                "Kinds of the sample site only.",
            ],
            results={
                NAME: {"mAP50": d["int8_map50"], "mAP": d["int8_map"], "ms per image": d["int8_ms"]},
                "fp32 student": {"mAP50": d["student_map50"], "mAP": d["student_map"], "ms per image": d["student_ms"]},
                "teacher": {"mAP50": d["teacher_map50"], "mAP": d["teacher_map"], "ms per image": d["teacher_ms"]},
            },
            results_on=f"{run.settings.test} held-out rendered site images",
            gate=verdict,
            classes=world.kinds("site"),
        )
        (staged / "README.md").write_text(card, "utf-8")
        artifacts.seal(
            staged,
            name=NAME,
            kind=manifest.kind,
            parents=manifest.parents,
            data=manifest.data,
            config=manifest.config,
            metrics={**manifest.metrics, "gate_passed": verdict.passed},
            licence=manifest.licence,
        )
    result: dict[str, Any] = {"passed": verdict.passed, "checks": [asdict(check) for check in verdict.checks]}
    if verdict.passed:
        registry = Registry(run.out / "registry")
        version = registry.register(release, NAME)
        registry.promote(NAME, version)
        result |= {"registered": f"{NAME}@{version}", "alias": "production"}
    return result


def serving(run: Run) -> dict[str, Any]:
    """Stage 9: start the server on a free port, use it as a client would, and stop it."""
    return exercise(application(run), decode(sorted((run.world("test") / "images").iterdir())[0]))


def application(run: Run, demo: bool = False) -> Any:
    """The server over what the run made."""
    from serve.app import create_app

    registry = run.out / "registry"
    promoted = run.results["gate"]["passed"]
    detector = (
        load_detector(f"artifact:{NAME}@production", registry)
        if promoted
        else load_detector(f"onnx:{run.out / 'int8-onnx'}")
    )
    return create_app(
        archive=Archive.open(run.out / "archive"),
        encoder=load_encoder(run.encoder),
        detector=detector,
        open_detector=load_open_detector(run.settings.teacher),
        vlm=load_vlm(run.vlm),
        review=ReviewJob(run.out / "prelabels", run.truth("gold")) if demo else None,
        demo=demo,
    )


Stage = Callable[[Run], dict[str, Any]]
STAGES: dict[str, Stage] = {
    "render": render,
    "adapt": adaptation,
    "teach": teaching,
    "index": indexing,
    "prelabel": labelling,
    "distill": distillation,
    "evaluate": evaluation,
    "gate": gating,
    "serve": serving,
}


def figures(run: Run) -> dict[str, Any]:
    """The measured part of the report, by the names gates use."""
    found = run.results
    adapted = {k: v for k, v in found["adapt"].items() if k != "losses"}
    labels = {k: v for k, v in found["prelabel"].items() if k not in ("gold", "verification")}
    verification = found["prelabel"]["verification"]
    taught = {k: v for k, v in found["teach"].items() if k not in ("losses", "changed")}
    return {
        "adapt": {**adapted, "trainable_share": adapted["trainable_params"] / adapted["total_params"]},
        "teach": {**taught, "trainable_share": taught["trainable_params"] / taught["total_params"]},
        "archive": {k: found["index"][k] for k in ("images", "recall_at_10_vs_exact", "p50_ms", "p99_ms")},
        "prelabel": {**labels, "verification": verification},
        "distill": {"human_boxes": found["distill"]["human_boxes"], **found["evaluate"]},
    }


def _boxes(dataset: Dataset) -> int:
    return sum(len(sample.truth) for sample in dataset if sample.truth is not None)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value if isinstance(value, dict) else _fields(value), default=str))


def _fields(value: Any) -> dict[str, Any]:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else asdict(value)
