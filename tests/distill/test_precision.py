"""What to label first, and what accepted boxes turn out to be worth: samples, spot checks, suspects."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from distill import spot_check
from distill.ontology import Ontology
from distill.prelabel import prelabel
from distill.prelabels import PREDICTIONS, records
from distill.sample import in_order, sample, systematic, write
from distill.suspects import page, suspects
from evals.detection import assign
from foveal.dataset import Dataset
from foveal.detections import Detections
from foveal.errors import BadInput
from foveal.formats import label_studio
from tests.distill.painted import CLASSES, Blobs, DenseBlobs, Swatches, painted, remember

ONTOLOGY = Ontology.of(CLASSES)


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return painted(tmp_path_factory.mktemp("precision") / "hidden", 80, 2)


@pytest.fixture(scope="module")
def job(hidden: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    gold = painted(folder / "gold", 40, 1)
    out = folder / "out"
    prelabel(hidden.with_truth([None] * len(hidden), CLASSES), ONTOLOGY, DenseBlobs(), gold, remember(gold), out)
    return out


def _seen(job: Path) -> Dataset:
    return Dataset.open(job / PREDICTIONS)


def test_every_place_has_the_same_chance() -> None:
    order = np.random.default_rng(0).permutation(50).astype(np.int64)
    rng = np.random.default_rng(1)
    counts = np.bincount(np.concatenate([systematic(order, 10, rng) for _ in range(4000)]), minlength=50)
    assert np.abs(counts / 4000 - 0.2).max() < 0.04
    assert len(set(systematic(order, 50, rng).tolist())) == 50


def test_each_cluster_and_each_degree_of_doubt_has_its_share() -> None:
    rng = np.random.default_rng(0)
    cluster, doubt = np.repeat([0, 1, 2, 3], 25).astype(np.int64), rng.random(100).astype(np.float32)
    chosen = systematic(in_order(cluster, doubt), 20, rng)
    assert np.bincount(cluster[chosen]).tolist() == [5, 5, 5, 5]
    for group in range(4):
        mine = np.sort(doubt[chosen[cluster[chosen] == group]])
        everything = np.sort(doubt[cluster == group])
        assert np.abs(mine - everything[2::5]).max() < 0.35


def test_a_sample_is_written_for_annotators_without_the_teachers_boxes(hidden: Dataset, tmp_path: Path) -> None:
    source = hidden.with_truth([None] * len(hidden), ())
    found = sample(source, ONTOLOGY, Blobs(), Swatches(), 20, each=2)
    assert len(set(found.gold)) == 20
    assert not set(found.gold) & set(found.exemplars)
    assert found == sample(source, ONTOLOGY, Blobs(), Swatches(), 20, each=2)
    assert set(found.gold) != set(sample(source, ONTOLOGY, Blobs(), Swatches(), 20, seed=1).gold)
    # The teacher has no notion of mauve.
    assert found.unlikely == ("mauve",)
    write(found, source, ONTOLOGY, tmp_path / "gold")
    tasks = json.loads((tmp_path / "gold" / "gold.label_studio.json").read_text())
    assert len(tasks) == 20
    assert not any(task.get("predictions") or task.get("annotations") for task in tasks)
    opened = Dataset.open(tmp_path / "gold" / "gold.coco.json")
    assert sorted(opened.ids) == sorted(found.gold)
    assert all(item.truth is None for item in opened)
    with pytest.raises(BadInput, match="not empty"):
        write(found, source, ONTOLOGY, tmp_path / "gold")


def test_a_sample_too_small_to_prove_anything_says_so(hidden: Dataset) -> None:
    found = sample(hidden, ONTOLOGY, Blobs(), Swatches(), 5)
    assert any("label more images" in warning for warning in found.warnings)
    with pytest.raises(BadInput, match="80 readable images"):
        sample(hidden, ONTOLOGY, Blobs(), Swatches(), 81)


def _answered(job: Path, hidden: Dataset, out: Path) -> Dataset:
    """The audit's tasks as annotators who know the truth would give them back."""
    tasks = json.loads((job / spot_check.TASKS).read_text())
    images = [task["data"].get("sample_id", "") for task in tasks]
    place = {id: row for row, id in enumerate(hidden.ids)}
    label_studio.write(hidden.subset([place[id] for id in images]), out)
    return label_studio.read(out)


def test_a_spot_check_tells_the_precision_that_the_truth_has(job: Path, hidden: Dataset, tmp_path: Path) -> None:
    drawn = spot_check.draw(job, _seen(job), 60, seed=3)
    assert drawn == 60
    with pytest.raises(BadInput, match="drawn before"):
        spot_check.draw(job, _seen(job), 60)
    found = spot_check.read(job, _answered(job, hidden, tmp_path / "back"), 0.9)
    (job / spot_check.DRAWN).unlink()
    total = right = 0
    truth = {item.id: item.truth for item in hidden}
    for record in records(job):
        boxes = [box for box in record["boxes"] if box["route"] == "accept"]
        known = truth[record["image"]]
        assert known is not None
        said = Detections.build([b["box"] for b in boxes], 1.0, [b["label"] for b in boxes], CLASSES)
        total, right = total + len(boxes), right + int((assign(said, known) >= 0).sum())
    assert found.answered == 60
    assert found.precision == pytest.approx(right / total, abs=0.08)
    assert found.right + len(found.wrong) == 60
    assert found.precision is not None
    assert found.lower_bound < found.precision


def test_drawing_from_all_gives_all(job: Path, hidden: Dataset, tmp_path: Path) -> None:
    everything = spot_check.draw(job, _seen(job), 10_000)
    (job / spot_check.DRAWN).unlink()
    assert everything == sum(box["route"] == "accept" for record in records(job) for box in record["boxes"])
    spot_check.draw(job, _seen(job), 5)
    with pytest.raises(BadInput, match="none of the audited images"):
        spot_check.read(job, painted(tmp_path / "others", 3, 9), 0.9)
    (job / spot_check.DRAWN).unlink()


class Knowing:
    """A student that sees the truth, but for what it was told to miss."""

    name, fingerprint, classes = "knowing", "knowing-1", CLASSES

    def __init__(self, hidden: Dataset) -> None:
        self._truth = {item.image().tobytes(): item.truth for item in hidden}

    def detect(self, images: list, threshold: float = 0.05) -> list[Detections]:  # type: ignore[type-arg]
        return [self._truth[image.tobytes()] or Detections.empty(CLASSES) for image in images]


def test_wrong_labels_lead_the_list_of_suspects(job: Path, hidden: Dataset, tmp_path: Path) -> None:
    truth = {item.id: item.truth for item in hidden}

    def wrong(one: object) -> bool:
        known = truth[one.image]  # type: ignore[attr-defined]
        box = Detections.build([one.box], 1.0, [one.label], CLASSES)  # type: ignore[attr-defined]
        return known is None or bool((assign(box, known) < 0).all())

    def share(found: list) -> float:  # type: ignore[type-arg]
        return float(np.mean([wrong(one) for one in found if one.label is not None]))

    alone = suspects(job, _seen(job))
    together = suspects(job, _seen(job), Knowing(hidden))  # type: ignore[arg-type]
    shown = [b for record in records(job) for b in record["boxes"] if b["route"] != "reject"]
    bad = sum(one.label is not None and wrong(one) for one in together)
    assert [one.suspicion for one in alone] == sorted((one.suspicion for one in alone), reverse=True)
    # As many suspects as there are wrong labels: far more of them wrong than of all labels.
    assert share(alone[:bad]) > 1.5 * bad / len(shown)
    labelled = [one for one in together if one.label is not None]
    assert share(labelled[:bad]) > 0.9
    assert all("student" in " ".join(one.against) for one in together if one.label is None)
    assert suspects(job, _seen(job), most=3) == alone[:3]
    page(alone, _seen(job)).write(tmp_path / "suspects.html")
    assert "neighbours are" in (tmp_path / "suspects.html").read_text()


def test_what_the_student_sees_and_nobody_proposed_is_listed(job: Path, hidden: Dataset) -> None:
    found = [one for one in suspects(job, _seen(job), Knowing(hidden)) if one.label is None]  # type: ignore[arg-type]
    covered = {record["image"]: [b["box"] for b in record["boxes"]] for record in records(job)}
    for one in found:
        gaps = [abs(np.array(box) - one.box).max() for box in covered[one.image]]
        assert min(gaps, default=99.0) > 2
    missed = sum(
        1
        for item in hidden
        if item.truth is not None
        for box in item.truth.boxes
        if min((abs(np.array(b) - box).max() for b in covered[item.id]), default=99.0) > 12
    )
    assert len(found) >= missed
