"""What annotators give back, in every format: the difference is told, and nothing of it is lost or counted twice."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.mistakes import mistakes
from distill.ontology import Ontology
from distill.prelabel import load_report, prelabel
from distill.prelabels import as_dataset, load_prelabels
from distill.reviewed import CORRECTED, REVIEWS, compare, corrections, read_corrected, take_back
from distill.train import training_set
from foveal import artifacts
from foveal.dataset import Dataset, Sample
from foveal.detections import Detections
from foveal.errors import BadInput
from foveal.formats import coco
from retrieval.memory import ExemplarMemory
from retrieval.reviewing import correct
from tests.distill.painted import CLASSES, SIDE, DenseBlobs, Swatches, painted, remember

ONTOLOGY = Ontology.of(CLASSES)


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return painted(tmp_path_factory.mktemp("reviewed") / "hidden", 24, 2)


@pytest.fixture(scope="module")
def finished(hidden: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    folder = tmp_path_factory.mktemp("job")
    gold = painted(folder / "gold", 30, 1)
    blank = folder / "blank.png"
    Image.new("RGB", (SIDE, SIDE), (128, 128, 128)).save(blank)  # in which nothing is found
    empty = Sample("blank.png", blank, SIDE, SIDE)
    source = Dataset.build([*hidden.with_truth([None] * len(hidden), CLASSES), empty], CLASSES)
    prelabel(source, ONTOLOGY, DenseBlobs(), gold, remember(gold), folder / "out")
    return folder / "out", gold


@pytest.fixture
def job(finished: tuple[Path, Dataset], tmp_path: Path) -> Path:
    """A copy of the job, to be corrected."""
    return Path(shutil.copytree(finished[0], tmp_path / "job"))


def test_every_fate_of_a_box() -> None:
    shown = Detections.build(
        [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]], 0.5, ["red", "red", "red", "blue"], CLASSES
    )
    places = [[0, 0, 10, 10], [22, 0, 32, 10], [40, 0, 50, 10], [80, 0, 90, 10]]
    final = Detections.build(places, 1.0, ["red", "red", "green", "blue"], CLASSES)
    what, owner = compare(shown, final)
    assert what == ["kept", "moved", "relabelled", "removed"]
    assert owner.tolist() == [0, 1, 2, -1]


def _annotated(job: Path, hidden: Dataset, count: int = 10) -> Dataset:
    """The first images as people would have them: the truth, drawn on top of what was right already."""
    people: list[Detections | None] = []
    for sample, found in load_prelabels(job)[:count]:
        truth = next(item.truth for item in hidden if item.id == sample.id)
        assert truth is not None
        assert found.names == CLASSES
        people.append(truth)
    return hidden.subset(range(count)).with_truth(people, CLASSES)


@pytest.mark.parametrize("name", ["coco", "yolo", "voc", "cvat", "label_studio"])
def test_each_format_comes_back_to_the_same_report(job: Path, hidden: Dataset, tmp_path: Path, name: str) -> None:
    people = _annotated(job, hidden)
    expected = take_back(job, people)
    assert expected.new == expected.images == 10
    assert expected.changes["kept"] + expected.changes["moved"] > 20
    people.write(tmp_path / "back", name)
    again = take_back(job, read_corrected(tmp_path / "back", job))
    assert again.changes == expected.changes
    assert again.boxes == expected.boxes
    if name == "yolo":
        return  # its numbers mean nothing without the images
    for folder in ("images", "JPEGImages"):  # as tools export annotations alone
        shutil.rmtree(tmp_path / "back" / folder, ignore_errors=True)
    assert take_back(job, read_corrected(tmp_path / "back", job)).changes == expected.changes


def test_the_figures_are_those_of_the_truth(job: Path, hidden: Dataset) -> None:
    report = take_back(job, _annotated(job, hidden, 24), seconds_a_box=10)
    accepted = report.precision["accept"]
    assert accepted["boxes"] == load_report(job).boxes["accept"]
    assert accepted["precision"] >= 0.9
    assert report.precision["review"]["precision"] < accepted["precision"]
    changed = sum(report.changes.values()) - report.changes["kept"]
    assert report.saved == pytest.approx(1 - changed / report.boxes)
    assert report.edit_rate == pytest.approx(changed / report.shown)
    assert report.seconds_saved == pytest.approx(10 * (report.boxes - changed))
    assert sum(counts["added"] for counts in report.classes.values()) == report.changes["added"]


def test_the_same_import_twice_changes_nothing_and_a_later_word_counts(job: Path, hidden: Dataset) -> None:
    people = _annotated(job, hidden)
    take_back(job, people)
    before = (job / REVIEWS).read_bytes(), (job / CORRECTED).read_bytes()
    assert take_back(job, people).new == 0
    assert ((job / REVIEWS).read_bytes(), (job / CORRECTED).read_bytes()) == before
    other = [Detections.empty(CLASSES), *[sample.truth for sample in people][1:]]
    assert take_back(job, people.with_truth(other, CLASSES)).new == 1
    trained = {sample.id: sample.truth for sample in training_set(job)}
    first = trained[people.ids[0]]
    assert first is not None
    assert len(first) == 0
    assert artifacts.read(job).kind == "prelabels"


def test_training_takes_peoples_boxes_where_there_are_some(job: Path, hidden: Dataset) -> None:
    people = _annotated(job, hidden, 5)
    take_back(job, people)
    proposed = {sample.id: found for sample, found in load_prelabels(job)}
    for sample in training_set(job):
        assert sample.truth is not None
        if sample.id in people.ids:
            assert sample.truth.probabilities is None
            truth = next(item.truth for item in people if item.id == sample.id)
            assert truth is not None
            np.testing.assert_allclose(sample.truth.boxes, truth.boxes, atol=1e-3)
        else:
            assert sample.truth.provenance == proposed[sample.id].provenance


def test_a_memory_learns_from_what_came_back(
    job: Path, hidden: Dataset, finished: tuple[Path, Dataset], tmp_path: Path
) -> None:
    report = take_back(job, _annotated(job, hidden))
    remember(finished[1]).save(tmp_path / "memory")
    before = ExemplarMemory.load(tmp_path / "memory", Swatches()).counts
    learnt = correct(tmp_path / "memory", Swatches(), corrections(job))
    assert learnt.boxes >= report.boxes
    after = learnt.memory.counts
    assert sum(after.values()) > sum(before.values())
    assert after["background"] - before["background"] <= report.changes["removed"] + 1


def test_what_is_given_to_other_tools_has_probabilities_as_scores(job: Path, tmp_path: Path) -> None:
    shown = as_dataset(job, ["accept"])
    assert sum(len(s.truth) for s in shown if s.truth is not None) == load_report(job).boxes["accept"]
    shown.write(tmp_path / "cvat", "cvat")
    read = Dataset.open(tmp_path / "cvat")
    scores = np.concatenate([s.truth.scores for s in read if s.truth is not None])
    expected: list[float] = []
    for _, found in load_prelabels(job):
        if found.probabilities is not None:  # something was found
            accepted = [p.route == "accept" for p in found.provenance or ()]
            expected += found.probabilities[np.array(accepted, dtype=bool)].tolist()
    np.testing.assert_array_equal(np.sort(scores), np.sort(expected))
    # FiftyOne's COCO importer takes `score` of an annotation for its confidence.
    shown.write(tmp_path / "coco", "coco")
    content = json.loads(next((tmp_path / "coco").glob("*.json")).read_text())
    assert all(0 < item["score"] <= 1 for item in content["annotations"])
    with pytest.raises(BadInput, match="no route maybe"):
        as_dataset(job, ["maybe"])


def test_corrections_that_do_not_fit(job: Path, hidden: Dataset, tmp_path: Path) -> None:
    people = _annotated(job, hidden)
    with pytest.raises(BadInput, match=r"no image of this job.*3 of them unknown"):
        take_back(job, painted(tmp_path / "others", 3, 9))
    mixed = Dataset.build([*people.subset([0]), *painted(tmp_path / "more", 3, 10)], CLASSES)
    with pytest.raises(BadInput, match="most of these images are not of"):
        take_back(job, mixed)
    with pytest.raises(BadInput, match="no image of this job"):
        take_back(job, people.with_truth([None] * len(people), CLASSES))
    edited = ("rde", *CLASSES[1:])
    renamed = Dataset.build(
        [replace(s, truth=None if s.truth is None else replace(s.truth, names=edited)) for s in people], edited
    )
    with pytest.raises(BadInput, match=r"class 'rde'.*--rename rde=red"):
        take_back(job, renamed)
    assert not (job / REVIEWS).exists()
    assert take_back(job, renamed, rename={"rde": "red"}).new == 10
    outside = people.subset([0]).with_truth(
        [Detections.build([[-20, -20, 30, 30], [50, 50, 50, 60], [500, 10, 600, 20]], 1.0, [0, 0, 0], CLASSES)], CLASSES
    )
    assert take_back(job, outside).boxes == 1
    coco.write(outside, tmp_path / "one.json")
    assert len(read_corrected(tmp_path / "one.json", job)) == 1


def test_what_people_mended_is_what_was_wrong(job: Path, hidden: Dataset) -> None:
    with pytest.raises(BadInput, match=r"nothing of .* was reviewed"):
        list(mistakes(job))
    sample, found = load_prelabels(job)[0]
    assert found.provenance is not None
    shown = found[[i for i, made in enumerate(found.provenance) if made.route != "reject"]]
    people = hidden.subset([hidden.ids.index(sample.id)])
    take_back(job, people.with_truth([shown], CLASSES))
    assert list(mistakes(job)) == []
    other = (int(shown.labels[1]) + 1) % len(CLASSES)
    final = Detections.build(
        [*shown.boxes[1:], [0, 0, 12, 12]], 1.0, [other, *shown.labels[2:], shown.labels[0]], CLASSES
    )
    take_back(job, people.with_truth([final], CLASSES))
    (only,) = mistakes(job)
    assert only.sample.path == sample.path
    assert only.missed.label_names == [CLASSES[other], shown.label_names[0]]  # given another label, and drawn
    assert only.wrong.label_names == shown.label_names[:2]  # removed, and what was there before
    np.testing.assert_allclose(only.wrong.boxes, shown.boxes[:2], atol=0.01)
    moved = replace(shown, boxes=shown.boxes + np.array([0, 0, 4, 0], np.float32))  # a little wider
    take_back(job, people.with_truth([moved], CLASSES))
    assert list(mistakes(job)) == []
    (strict,) = mistakes(job, 0.95)
    assert len(strict.missed) == len(shown)
