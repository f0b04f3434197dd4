"""Reviewing a labelling job: what is decided outlives the server, can be undone, and `prelabel import` reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from distill.ontology import Ontology
from distill.prelabel import prelabel
from distill.prelabels import PREDICTIONS, records
from distill.reviewed import CORRECTED, read_corrected, take_back
from foveal.dataset import Dataset
from foveal.errors import BadInput
from foveal.formats import coco
from serve.app import create_app
from serve.corrections import Corrections
from serve.demo.review import ReviewPage, Said
from serve.reviewing import STORE, Case, ReviewJob
from tests.distill.painted import CLASSES, DenseBlobs, painted, remember

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    folder = tmp_path_factory.mktemp("reviewing")
    gold, hidden = painted(folder / "gold", 30, 1), painted(folder / "hidden", 24, 2)
    source = hidden.with_truth([None] * len(hidden), CLASSES)
    prelabel(source, Ontology.of(CLASSES), DenseBlobs(), gold, remember(gold), folder / "out")
    return folder / "out", gold


@pytest.fixture
def out(finished: tuple[Path, Dataset], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "job"))


@pytest.fixture
def job(out: Path, finished: tuple[Path, Dataset]) -> ReviewJob:
    return ReviewJob(out, finished[1])


def decided(job: ReviewJob) -> dict[tuple[str, int], tuple[bool, str]]:
    pairs = ((case, job.decision(case)) for case in job.cases)
    return {(case.image, case.box): (said.keep, said.label) for case, said in pairs if said is not None}


def export(job: ReviewJob, to: Path) -> Path:
    to.write_text(json.dumps(job.corrections.tasks()))
    return to


def first_picture(job: ReviewJob) -> list[Case]:
    return [case for case in job.cases if case.image == job.cases[0].image]


def test_the_queue_is_what_is_in_doubt_the_most_valuable_picture_first(job: ReviewJob) -> None:
    doubtful = {r["image"]: [b for b in r["boxes"] if b["route"] == "review"] for r in records(job.out)}
    assert sum(map(len, doubtful.values())) == len(job.cases) > 0
    worth = [sum(box["value"] for box in doubtful[image]) for image in dict.fromkeys(c.image for c in job.cases)]
    assert worth == sorted(worth, reverse=True)
    assert [case.number for case in job.cases] == list(range(len(job.cases)))


def test_decisions_outlive_the_server(job: ReviewJob, finished: tuple[Path, Dataset]) -> None:
    one, two, three = job.cases[:3]
    job.decide(one, keep=True)
    job.decide(two, keep=False)
    job.decide(three, keep=True, label="blue", place=(1, 2, 30, 40))
    again = ReviewJob(job.out, finished[1])
    assert decided(again) == decided(job)
    assert len(decided(again)) == 3
    said = again.decision(three)
    assert said is not None
    assert (said.label, said.place) == ("blue", (1, 2, 30, 40))
    assert again.open_after(0) == job.cases[3]


def test_undo_takes_the_latest_back_one_after_the_other(job: ReviewJob, out: Path) -> None:
    for case in job.cases[:3]:
        job.decide(case, keep=True)
    job.decide(job.cases[0], keep=False)  # anew: the latest
    assert job.undo() == job.cases[0]
    assert job.undo() == job.cases[2]
    assert list(decided(job)) == [(job.cases[1].image, job.cases[1].box)]
    assert decided(ReviewJob(out)) == decided(job)
    assert job.undo() == job.cases[1]
    assert job.undo() is None


def test_only_finished_pictures_come_back_and_as_they_were_decided(job: ReviewJob, out: Path, tmp_path: Path) -> None:
    mine = first_picture(job)
    image = mine[0].image
    for case in mine[:-1]:
        job.decide(case, keep=False)
    other = next(case for case in job.cases if case.image != image)
    job.decide(mine[-1], keep=True, label="green", place=(3, 4, 33, 44))
    if sum(case.image == other.image for case in job.cases) > 1:
        job.decide(other, keep=True)  # its picture stays open
    report = take_back(out, read_corrected(export(job, tmp_path / "export.json"), out))
    assert report.images == job.progress.finished == 1
    record = next(record for record in records(out) if record["image"] == image)
    accepted = [box for box in record["boxes"] if box["route"] == "accept"]
    truth = next(sample.truth for sample in coco.read(out / CORRECTED) if sample.id == image)
    assert truth is not None
    assert sorted(truth.label_names) == sorted([*(box["label"] for box in accepted), "green"])
    green = truth.boxes[list(truth.label_names).index("green")] if "green" not in str(accepted) else truth.boxes[-1]
    assert green.tolist() == pytest.approx([3, 4, 33, 44], abs=0.01)
    assert report.changes["removed"] + report.changes["relabelled"] >= len(mine) - 1


def test_a_picture_opened_again_no_longer_comes_back(job: ReviewJob, out: Path, tmp_path: Path) -> None:
    for case in first_picture(job):
        job.decide(case, keep=True)
    assert read_corrected(export(job, tmp_path / "a.json"), out)[0].truth is not None
    job.undo()
    assert job.progress.finished == 0
    assert read_corrected(export(job, tmp_path / "b.json"), out)[0].truth is None


@pytest.mark.parametrize("place", [(5, 5, 5, 5), (1, 2, 3), (float("nan"), 0, 9, 9), (900, 900, 999, 999)])
def test_what_cannot_be_a_box_is_refused_and_nothing_kept(job: ReviewJob, place: tuple[float, ...]) -> None:
    with pytest.raises(BadInput):
        job.decide(job.cases[0], keep=True, place=place)
    with pytest.raises(BadInput, match="no class 'rde'"):
        job.decide(job.cases[0], keep=True, label="rde")
    assert decided(job) == {}
    assert job.corrections.tasks() == []


def test_decisions_may_lie_beside_what_label_studio_tells(out: Path, tmp_path: Path) -> None:
    kept = Corrections(tmp_path / "corrections.sqlite")
    job = ReviewJob(out, corrections=kept)
    job.decide(job.cases[0], keep=True)
    assert not (out / STORE).exists()
    assert [task["data"]["sample_id"] for task in kept.tasks()] == [job.cases[0].image]


def test_neighbours_are_crops_of_the_gold_set(job: ReviewJob, finished: tuple[Path, Dataset], out: Path) -> None:
    sample = next(sample for sample in finished[1] if sample.truth is not None and len(sample.truth))
    crop, whole = job.thumbnail(f"{sample.id}#0"), job.thumbnail(f"{sample.id}#candidate0")
    assert crop is not None
    assert whole is not None
    assert crop.width < whole.width == sample.width
    assert job.thumbnail("nowhere#1") is None
    assert ReviewJob(out).thumbnail(f"{sample.id}#0") is None
    known = {near["id"].rpartition("#")[0] for case in job.cases for near in job.record(case)["neighbours"]}
    assert known <= set(finished[1].ids)


async def test_accept_reject_and_undo_lead_through_the_queue(job: ReviewJob) -> None:
    page = ReviewPage(job)
    at, status, panel = await page.start()
    assert (at, f"0 of {len(job.cases)} boxes decided" in status) == (0, True)
    assert "Speak for it" in panel or "Speak against it" in panel
    assert panel.count("<img") == len(job.record(job.cases[0])["neighbours"])
    at, status, panel = await page.act(Said("accept", 0, "green", (1.0, 2.0, 30.0, 40.0)), at, True)
    assert (at, "1 of" in status) == (1, True)
    at, *_ = await page.act(Said("reject", 1), at, True)
    assert list(decided(job).values()) == [(True, "green"), (False, job.record(job.cases[1])["label"])]
    at, _, panel = await page.act(Said("undo"), at, True)
    assert at == 1
    at, _, panel = await page.act(Said("back"), at, True)
    assert (at, "kept before" in panel) == (0, True)


async def test_two_reviewers_are_at_different_pictures_as_long_as_there_are_any(job: ReviewJob) -> None:
    page = ReviewPage(job)
    first, second = (await page.start("ann"))[0], (await page.start("bob"))[0]
    assert job.cases[first].image != job.cases[second].image
    assert (await page.start("ann"))[0] == first  # her own stays hers
    at, *_ = await page.act(Said("accept", second), second, True, "bob")
    assert job.cases[at].image != job.cases[first].image
    for case in job.cases:
        if case.image != job.cases[first].image:
            job.decide(case, keep=True)
    assert job.cases[(await page.start("bob"))[0]].image == job.cases[first].image


async def test_the_end_is_said_and_can_be_undone(job: ReviewJob) -> None:
    page = ReviewPage(job)
    for case in job.cases[:-1]:
        job.decide(case, keep=True)
    last = len(job.cases) - 1
    at, status, panel = await page.act(Said("reject", last), last, True)
    assert "Every doubtful box is decided" in panel
    assert "--share:100.0%" in status
    assert (await page.act(Said("undo"), at, True))[0] == last


async def test_a_key_that_may_not_write_decides_nothing(job: ReviewJob) -> None:
    page = ReviewPage(job)
    for said in (Said("accept", 0), Said("reject", 0), Said("undo")):
        at, status, panel = await page.act(said, 0, False)
        assert (at, "may look" in status, "data-case" in panel) == (0, True, True)
    assert (await page.act(Said("next"), 0, False))[0] == 1
    assert decided(job) == {}


async def test_what_the_page_never_sends_is_refused(job: ReviewJob) -> None:
    for text in ("no json", "[1]", '{"case": "x"}', '{"box": 3}'):
        with pytest.raises(BadInput):
            Said.of("accept", text)
    page = ReviewPage(job)
    for said in (Said("accept", 10_000), Said("accept"), Said("accept", 0, "rde")):
        assert "fv-problem" in (await page.act(said, 0, True))[1]
    assert decided(job) == {}


async def test_a_picture_that_has_gone_is_said_and_passed(job: ReviewJob) -> None:
    page = ReviewPage(job)
    path = next(sample.path for sample in coco.read(job.out / PREDICTIONS) if sample.id == job.cases[0].image)
    path.rename(path.with_suffix(".away"))
    try:
        assert "fv-problem" in (await page.start())[2]
        assert (await page.act(Said("next"), 0, True))[0] == 1
    finally:
        path.with_suffix(".away").rename(path)


def test_the_page_stands_alone(job: ReviewJob) -> None:
    from fastapi.testclient import TestClient

    config = TestClient(create_app(review=job, demo=True)).get("/config").json()
    assert [page[0] for page in config["pages"]] == [""]
    assert "Review" in str(config["components"])
