"""Labelling as a job: the promise holds on unseen images, the memory helps, and a kill costs nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distill.archive_source import open_source
from distill.audit import compare_verification, measure
from distill.gold import fit_labeller
from distill.ontology import Ontology
from distill.prelabel import PrelabelSettings, load_labeller, load_prelabels, load_report, prelabel
from distill.records import Chunks
from distill.workers import Processes, RayActors
from evals import prelabels
from foveal import artifacts
from foveal.dataset import Dataset, Sample
from foveal.detections import Detections
from foveal.errors import BadInput
from foveal.formats import coco, label_studio
from retrieval.archive import Archive
from tests.distill.painted import CLASSES, Blobs, DenseBlobs, Swatches, Toys, painted, remember

ONTOLOGY = Ontology.of(CLASSES)
MADE = ("predictions.coco.json", "accepted.coco.json", "label_studio.json", "review.json", "boxes.jsonl", "banks.npz")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset, Dataset]:
    """Gold, the images to label, and those images' hidden truth."""
    folder = tmp_path_factory.mktemp("painted")
    gold = painted(folder / "gold", 40, 1)
    hidden = painted(folder / "hidden", 150, 2)
    source = hidden.with_truth([None] * len(hidden), ())
    return gold, source, hidden


@pytest.fixture(scope="module")
def job(scenes: tuple[Dataset, Dataset, Dataset], tmp_path_factory: pytest.TempPathFactory) -> Path:
    gold, source, _ = scenes
    out = tmp_path_factory.mktemp("job") / "out"
    prelabel(source, ONTOLOGY, DenseBlobs(), gold, remember(gold), out)
    return out


def test_accepted_boxes_keep_the_precision_that_was_asked_for(
    scenes: tuple[Dataset, Dataset, Dataset], job: Path
) -> None:
    quality, report = measure(job, scenes[2]), load_report(job)
    assert report.proven
    assert quality.accepted_precision is not None
    assert quality.accepted_precision >= 0.9
    assert quality.accepted_recall is not None
    assert quality.accepted_recall >= 0.5
    assert report.expected_precision == pytest.approx(quality.accepted_precision, abs=0.06)


def test_the_evaluation_of_prelabels_counts_as_the_audit_does(
    scenes: tuple[Dataset, Dataset, Dataset], job: Path
) -> None:
    _, _, hidden = scenes
    known, figures = measure(job, hidden), prelabels.measure(Dataset.open(job / MADE[0]), hidden).figures
    assert figures["accepted_precision"] == known.accepted_precision
    assert figures["accepted_recall"] == known.accepted_recall
    assert (figures["precision"], figures["recall"]) == (known.precision, known.recall)
    assert figures["review_rate"] == pytest.approx(1 - (known.accepted_share or 0))
    low, high = known.accepted_interval
    assert figures["accepted_low"] < low  # boxes of an image err together, which the audit's interval passes over
    assert figures["accepted_high"] > high - 0.02


def test_the_memory_raises_precision_at_the_same_recall(scenes: tuple[Dataset, Dataset, Dataset], job: Path) -> None:
    compared = compare_verification(job, scenes[2])
    for recall in ("0.5", "0.7"):
        alone = compared["without_memory"]["precision_at_recall"][recall]
        together = compared["with_memory"]["precision_at_recall"][recall]
        assert together > (alone or 0.0)
    assert compared["with_memory"]["average_precision"] > compared["teacher_score"]["average_precision"]


def test_the_memory_finds_a_class_the_teacher_does_not_know(
    scenes: tuple[Dataset, Dataset, Dataset], job: Path
) -> None:
    counts = measure(job, scenes[2]).per_class["mauve"]
    assert counts["accepted"] >= 0.5 * counts["truth"]
    assert counts["correct"] >= 0.85 * counts["accepted"]


def test_what_is_written_reads_back_the_same(scenes: tuple[Dataset, Dataset, Dataset], job: Path) -> None:
    _, source, _ = scenes
    loaded = load_prelabels(job)
    assert [sample.id for sample, _ in loaded] == list(source.ids)
    assert all(sample.truth is None for sample, _ in loaded)
    everything = [p for _, found in loaded for p in found.provenance or ()]
    routes = [p.route for p in everything]
    report = load_report(job)
    assert {r: routes.count(r) for r in ("accept", "review", "reject")} == report.boxes
    assert all(p.neighbours for p in everything)
    assert all(found.probabilities is not None for _, found in loaded if len(found))
    accepted = coco.read(job / "accepted.coco.json")
    assert sum(len(s.truth) for s in accepted if s.truth is not None) == report.boxes["accept"]
    shown = label_studio.read_predictions(job / "label_studio.json", source.with_truth([None] * len(source), CLASSES))
    assert sum(map(len, shown)) == report.boxes["accept"] + report.boxes["review"]
    tasks = json.loads((job / "label_studio.json").read_text())
    assert {task["data"]["sample_id"] for task in tasks} == set(source.ids)
    assert not any("annotations" in task for task in tasks)
    queue = json.loads((job / "review.json").read_text())
    values = [item["value"] for item in queue]
    assert values == sorted(values, reverse=True)
    assert artifacts.read(job).kind == "prelabels"


def test_a_finished_job_is_not_run_again_and_another_is_refused(
    scenes: tuple[Dataset, Dataset, Dataset], job: Path
) -> None:
    gold, source, _ = scenes
    teacher = DenseBlobs()
    assert prelabel(source, ONTOLOGY, teacher, gold, remember(gold), job) == load_report(job)
    assert teacher.looked == []
    with pytest.raises(BadInput, match="another job"):
        prelabel(source, ONTOLOGY, teacher, gold, None, job)


def test_the_labeller_of_a_job_labels_other_images_alike(scenes: tuple[Dataset, Dataset, Dataset], job: Path) -> None:
    gold, source, _ = scenes
    labeller = load_labeller(job, lambda: (DenseBlobs(), remember(gold), None))
    (again,) = labeller.detect([source[3].image()], threshold=0.0)
    recorded = load_prelabels(job)[3][1]
    np.testing.assert_allclose(again.boxes, recorded.boxes, atol=0.01)
    np.testing.assert_allclose(again.scores, recorded.probabilities, atol=1e-4)
    other = DenseBlobs()
    other.fingerprint = "other"
    with pytest.raises(BadInput, match="another teacher"):
        load_labeller(job, lambda: (other, remember(gold), None))


def test_a_plain_detector_will_do(scenes: tuple[Dataset, Dataset, Dataset], tmp_path: Path) -> None:
    gold, source, hidden = scenes
    report = prelabel(source.subset(range(40)), ONTOLOGY, Blobs(), gold, remember(gold), tmp_path / "out")
    assert report.images == 40
    quality = measure(tmp_path / "out", hidden)
    assert quality.accepted_precision is not None
    assert quality.accepted_precision >= 0.85


class Stops(DenseBlobs):
    """Raises after some images, as a Ctrl-C would."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def dense(self, images, prompts):  # type: ignore[no-untyped-def]
        if sum(self.looked) >= self.after:
            raise KeyboardInterrupt
        return super().dense(images, prompts)


def test_an_interrupted_job_continues_to_the_same_bytes(
    scenes: tuple[Dataset, Dataset, Dataset], job: Path, tmp_path: Path
) -> None:
    gold, source, _ = scenes
    out = tmp_path / "out"
    looked: list[int] = []
    for after in (20, 70, 30):  # the first stops within the gold set
        teacher = Stops(after)
        with pytest.raises(KeyboardInterrupt):
            prelabel(source, ONTOLOGY, teacher, gold, remember(gold), out)
        assert not out.exists()
        looked += teacher.looked
    (tmp_path / ".out.work" / "chunks" / ".0000009.jsonl.partial").write_bytes(b'{"image": "cut o')
    teacher = DenseBlobs()
    prelabel(source, ONTOLOGY, teacher, gold, remember(gold), out)
    for name in MADE:
        assert (out / name).read_bytes() == (job / name).read_bytes(), name
    assert sum(looked) + sum(teacher.looked) == 20 + 40 + len(source)
    assert not (tmp_path / ".out.work").exists()


KILLED = """
import sys, time
from pathlib import Path
from distill.prelabel import prelabel
from foveal.formats import coco
from tests.distill.painted import DenseBlobs, remember
from tests.distill.test_prelabel import ONTOLOGY

class Slow(DenseBlobs):
    def dense(self, images, prompts):
        time.sleep(0.004 * len(images))
        return super().dense(images, prompts)

folder = Path(sys.argv[1])
gold, source = coco.read(folder / "gold.json"), coco.read(folder / "source.json")
print("ready", flush=True)
prelabel(source, ONTOLOGY, Slow(), gold, remember(gold), folder / "out")
"""


@pytest.mark.slow
def test_a_job_killed_many_times_loses_and_repeats_nothing(
    scenes: tuple[Dataset, Dataset, Dataset], job: Path, tmp_path: Path
) -> None:
    gold, source, _ = scenes
    coco.write(gold, tmp_path / "gold.json")
    coco.write(source, tmp_path / "source.json")
    rng = np.random.default_rng(0)
    for _ in range(20):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": "."}
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(float(rng.uniform(0.05, 0.5)))
            process.send_signal(signal.SIGKILL)
    subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        check=True,
        env={**os.environ, "PYTHONPATH": "."},
        stdout=subprocess.DEVNULL,
    )
    lines = [json.loads(line) for line in (tmp_path / "out" / "boxes.jsonl").read_text().splitlines()[1:]]
    assert [line["image"] for line in lines] == list(source.ids)
    assert (tmp_path / "out" / "boxes.jsonl").read_bytes().split(b"\n", 1)[1] == (
        (job / "boxes.jsonl").read_bytes().split(b"\n", 1)[1]
    )


def _body(out: Path) -> bytes:
    return (out / "boxes.jsonl").read_bytes().split(b"\n", 1)[1]


def test_several_processes_give_the_same_boxes(
    scenes: tuple[Dataset, Dataset, Dataset], job: Path, tmp_path: Path
) -> None:
    gold, source, _ = scenes
    coco.write(gold, tmp_path / "gold.json")
    options: dict[str, Any] = {"through": Processes(2), "parts": Toys(tmp_path / "gold.json"), "price": 3.6}
    report = prelabel(source, ONTOLOGY, DenseBlobs(), gold, remember(gold), tmp_path / "out", **options)
    assert _body(tmp_path / "out") == _body(job)
    assert report.cost == pytest.approx(report.seconds / 1000)
    assert load_report(job).cost is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore:lance is not fork-safe")
def test_ray_gives_the_same_boxes(
    scenes: tuple[Dataset, Dataset, Dataset], job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gold, source, _ = scenes
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # the actors import the toys of these tests
    coco.write(gold, tmp_path / "gold.json")
    options: dict[str, Any] = {"through": RayActors(1), "parts": Toys(tmp_path / "gold.json")}
    prelabel(source, ONTOLOGY, DenseBlobs(), gold, remember(gold), tmp_path / "out", **options)
    assert _body(tmp_path / "out") == _body(job)


@pytest.mark.slow
def test_an_image_that_kills_its_process_does_not_stop_the_job(
    scenes: tuple[Dataset, Dataset, Dataset], job: Path, tmp_path: Path
) -> None:
    gold, source, _ = scenes
    coco.write(gold, tmp_path / "gold.json")
    few = [source[row] for row in range(10)]
    bad = tmp_path / "bad.png"
    Image.new("RGB", (33, 20)).save(bad)
    mixed = Dataset.build([*few[:4], Sample("bad", bad, 33, 20), *few[4:]], ())
    options: dict[str, Any] = {"through": Processes(2), "parts": Toys(tmp_path / "gold.json", fatal=True)}
    report = prelabel(mixed, ONTOLOGY, DenseBlobs(), gold, remember(gold), tmp_path / "out", **options)
    assert report.images == 10
    assert [name for name, why in report.skipped if "died" in why] == ["bad"]
    rest = [line for line in _body(tmp_path / "out").splitlines() if b'"bad"' not in line]
    assert rest == _body(job).splitlines()[:10]


def test_two_jobs_do_not_share_a_folder(scenes: tuple[Dataset, Dataset, Dataset], tmp_path: Path) -> None:
    gold, source, _ = scenes
    with (
        Chunks(tmp_path / ".out.work" / "chunks", "another", 3),
        pytest.raises(BadInput, match="another process is labelling"),
    ):
        prelabel(source, ONTOLOGY, DenseBlobs(), gold, None, tmp_path / "out")
    with pytest.raises(BadInput, match="chunks of another job"):
        prelabel(source, ONTOLOGY, DenseBlobs(), gold, None, tmp_path / "out")
    with pytest.raises(BadInput, match="load the teacher themselves"):
        prelabel(source, ONTOLOGY, DenseBlobs(), gold, None, tmp_path / "two", through=Processes(2))


def test_an_archive_is_a_source(scenes: tuple[Dataset, Dataset, Dataset], tmp_path: Path) -> None:
    _, source, _ = scenes
    archive = Archive.create(tmp_path / "archive", Swatches())
    for number in range(6):
        shutil.copy(source[number].path, tmp_path / f"copy{number}.png")
    archive.add([tmp_path / f"copy{number}.png" for number in range(6)], Swatches())
    (tmp_path / "copy3.png").unlink()
    opened = open_source(tmp_path / "archive")
    assert sorted(sample.path.name for sample in opened) == [f"copy{n}.png" for n in (0, 1, 2, 4, 5)]
    assert [path.name for path, _ in opened.skipped] == ["copy3.png"]
    assert len(open_source(tmp_path / "archive", "width < 10 or uri = '" + str(tmp_path / "copy1.png") + "'")) == 1
    (tmp_path / "copy1.png").unlink()
    with pytest.raises(BadInput, match=r"nothing to label.*1 whose file is not here"):
        open_source(tmp_path / "archive", "uri = '" + str(tmp_path / "copy1.png") + "'")
    with pytest.raises(BadInput, match="only an archive"):
        open_source(tmp_path, "width < 10")


def test_unreadable_images_are_counted_and_passed_over(
    scenes: tuple[Dataset, Dataset, Dataset], tmp_path: Path
) -> None:
    gold, _, _ = scenes
    painted(tmp_path / "in", 9, 5, labels=False)
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    whole = sorted((tmp_path / "in").glob("in-*.png"))[4]
    whole.write_bytes(whole.read_bytes()[:400])
    report = prelabel(tmp_path / "in", ONTOLOGY, DenseBlobs(), gold, remember(gold), tmp_path / "out")
    assert report.images == 8
    assert sorted(Path(name).name for name, _ in report.skipped) == sorted(["broken.png", whole.name])
    assert len(load_prelabels(tmp_path / "out")) == 8


def test_gold_sets_that_cannot_calibrate_are_refused(scenes: tuple[Dataset, Dataset, Dataset], tmp_path: Path) -> None:
    gold, source, _ = scenes
    for bad, said in (
        (gold.subset([]), "empty"),
        (gold.with_truth([Detections.empty(CLASSES)] * len(gold)), "no box"),
        (gold.with_truth([Detections.empty(("cat",))] * len(gold), ("cat",)), "none of the ontology's classes"),
    ):
        with pytest.raises(BadInput, match=said):
            prelabel(source, ONTOLOGY, DenseBlobs(), bad, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_class_without_gold_is_never_accepted_and_it_says_so(
    scenes: tuple[Dataset, Dataset, Dataset], tmp_path: Path
) -> None:
    gold, source, _ = scenes
    without = [t[np.array([n != "red" for n in t.label_names], dtype=bool)] for s in gold if (t := s.truth) is not None]
    report = prelabel(source, ONTOLOGY, DenseBlobs(), gold.with_truth(without), None, tmp_path / "out")
    assert report.classes["red"]["accept"] == 0
    assert any("red" in warning and "no promise" in warning for warning in report.warnings)


def test_a_gold_set_that_is_too_small_says_so(scenes: tuple[Dataset, Dataset, Dataset], tmp_path: Path) -> None:
    gold, source, _ = scenes
    few = gold.subset(range(4))
    report = prelabel(source.subset(range(10)), ONTOLOGY, DenseBlobs(), few, remember(few), tmp_path / "out")
    assert not report.proven
    assert any("too small" in warning or "not proven" in warning for warning in report.warnings)


def test_what_the_ontology_says_is_obeyed(scenes: tuple[Dataset, Dataset, Dataset], tmp_path: Path) -> None:
    gold, _, _ = scenes
    ontology = Ontology.model_validate(
        {"classes": [{"name": n, "min_size": 18 if n == "red" else 0, "guideline": f"{n} discs"} for n in CLASSES]}
    )
    labeller, _ = fit_labeller(ontology, DenseBlobs(), gold, remember(gold), PrelabelSettings())
    found = [d for s in gold for d in labeller.detect([s.image()], threshold=0)]
    short = [
        float(side)
        for d in found
        for side, name in zip((d.boxes[:, 2:] - d.boxes[:, :2]).min(axis=1), d.label_names, strict=True)
        if name == "red"
    ]
    assert short
    assert min(short) >= 18


class Everywhere(DenseBlobs):
    """A teacher that fires everywhere, out of frame and with no area too."""

    def dense(self, images, prompts):  # type: ignore[no-untyped-def]
        from distill.teacher import Dense

        rng = np.random.default_rng(0)
        corner = rng.uniform(-40, 120, (500, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(0, 60, (500, 2))], axis=1).astype(np.float32)
        boxes[:50, 2:] = boxes[:50, :2]
        return [Dense(boxes, np.full((500, len(prompts)), 0.9, dtype=np.float32)) for _ in images]


def test_a_teacher_that_fires_everywhere_is_held_back(scenes: tuple[Dataset, Dataset, Dataset], tmp_path: Path) -> None:
    gold, source, hidden = scenes
    settings = PrelabelSettings(keep_from=0.0)
    report = prelabel(
        source.subset(range(12)), ONTOLOGY, Everywhere(), gold.subset(range(12)), None, tmp_path / "out", settings
    )
    assert report.total_boxes <= 12 * settings.candidates
    for sample, found in load_prelabels(tmp_path / "out"):
        assert (found.boxes >= 0).all()
        assert (found.boxes[:, 2:] <= [sample.width, sample.height]).all()
        assert ((found.boxes[:, 2:] - found.boxes[:, :2]) >= 1).all()
    assert report.boxes["accept"] <= 12
    assert report.gold["full_images"] == 12
    assert "16 boxes or more" in report.warnings[-1]
    assert measure(tmp_path / "out", hidden).images == 12


def test_gold_in_both_places_and_samples_without_labels(scenes: tuple[Dataset, Dataset, Dataset]) -> None:
    gold, _, _ = scenes
    blank = Sample("blank", gold[0].path, gold[0].width, gold[0].height)
    mixed = Dataset.build([*gold, blank], CLASSES)
    _, summary = fit_labeller(ONTOLOGY, DenseBlobs(), mixed, None, PrelabelSettings())
    assert summary.images == len(gold)
    assert summary.skipped == (("blank", "no labels"),)
