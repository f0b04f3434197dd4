"""Comparing results: only like with like, every figure, slices and what flipped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evals.compare import aligned, compare, part
from evals.compare_page import labels, page
from foveal import world
from foveal.errors import BadInput, UnknownName
from tests.command import foveal
from tests.evals.made import made

BEFORE = [1, 1, 1, 0, 1, 1, 0, 1, 1, 1] * 6
AFTER = [1, 0, 1, 1, 1, 0, 0, 1, 1, 0] * 6


def test_every_figure_with_its_interval_and_what_flipped() -> None:
    found = compare(made(BEFORE, only_here=1.0, shared=3.0), made(AFTER, shared=2.5))
    assert list(found.changes) == ["top1", "top5", "mean_class_accuracy", "count", "shared"]
    top1 = found.changes["top1"]
    assert (top1.before, top1.after) == (pytest.approx(0.8), pytest.approx(0.6))
    assert top1.interval is not None
    assert top1.interval.value == pytest.approx(-0.2)
    assert top1.interval.low < -0.2 < top1.interval.high < 0
    assert top1.verdict == "worse"
    assert top1.mcnemar is not None
    assert (top1.mcnemar.lost, top1.mcnemar.gained) == (18, 6)
    assert found.changes["shared"].interval is None
    assert found.changes["shared"].verdict == "unclear"
    assert found.changes["count"].verdict == "equal"
    assert [i for i in range(60) if BEFORE[i] and not AFTER[i]] == list(found.lost)
    assert [i for i in range(60) if AFTER[i] and not BEFORE[i]] == list(found.gained)
    json.dumps(found.as_dict())


def test_lower_is_better_where_the_measure_says_so() -> None:
    ranks = [1, 1, 2, 2, 3, 3, 4, 1, 2, 9] * 4
    items = {"id": [str(i) for i in range(40)], "rank": ranks, "precision": [0.5] * 40}
    before = made([1] * 40).model_copy(
        update={"task": "retrieval", "items": items, "figures": {"median_rank": 2.0, "map": 0.5}}
    )
    after = before.model_copy(
        update={"items": {**items, "rank": [r + 5 for r in ranks]}, "figures": {"median_rank": 7.0}}
    )
    found = compare(before, after)
    assert list(found.changes) == ["median_rank"]
    assert found.changes["median_rank"].verdict == "worse"
    assert found.changes["median_rank"].mcnemar is None


def test_items_in_another_order_are_the_same_items() -> None:
    before, after = made(BEFORE), made(AFTER)
    turned = part(after, list(range(59, -1, -1)))
    assert aligned(before, turned).items == after.items
    assert compare(before, turned).as_dict() == compare(before, after).as_dict()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (made([1, 0, 1], task="vqa"), r"different tasks.*expected zero-shot.*received vqa"),
        (made([1, 0, 1], ids=["item-0", "item-1", "x"]), r"same items.*1 missing \(item-2\) and 1 others \(x\)"),
        (made([1] * 10), r"same 3 items.*7 others \(item-3, item-4, item-5, item-6, item-7, \.\.\.\)"),
        (made([1, 0]), r"1 missing \(item-2\)"),
        (made([1, 0, 1], data="d2"), r"other images or other truth.*data d1.*received d2"),
    ],
)
def test_only_like_is_compared_with_like(other: object, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        compare(made([1, 0, 1]), other)  # type: ignore[arg-type]


def test_figures_can_be_chosen_and_the_first_leads() -> None:
    found = compare(made(BEFORE), made(AFTER), ["mean_class_accuracy", "top1"])
    assert (list(found.changes), found.headline) == (["mean_class_accuracy", "top1"], "mean_class_accuracy")
    with pytest.raises(UnknownName, match="top1"):
        compare(made(BEFORE), made(AFTER), ["absent"])


def test_slices_say_where_and_only_many_items_are_sure() -> None:
    light: list[str | None] = ["day"] * 60 + ["night"] * 60 + ["dusk"] * 3
    before = made([1] * 123, slices={"light": light, "same": ["x"] * 123})
    lost = [1] * 60 + [0, 0, 1] * 20 + [1] * 3
    found = compare(before, made(lost, slices={"light": light}))
    assert [(s.column, s.word) for s in found.slices] == [("light", "night"), ("light", "day")]  # dusk is too few
    night, day = found.slices
    assert (night.sure, night.change.verdict, day.change.verdict) == (True, "worse", "equal")
    assert night.change.after == pytest.approx(1 / 3)


def test_many_slices_of_nothing_are_not_sure() -> None:
    """Holm: of 20 slices on which two equal models differ by chance, hardly ever is one sure."""
    rng = np.random.default_rng(0)
    surely = 0
    for _ in range(20):
        words: list[str | None] = [f"s{i % 20}" for i in range(400)]
        before, after = (made((rng.random(400) < 0.8).astype(int).tolist(), slices={"s": words}) for _ in range(2))
        surely += any(s.sure for s in compare(before, after, ["top1"], draws=200).slices)
    assert surely <= 4  # at 5% each, more than 4 of 20 is one in 400


def test_items_of_one_picture_have_no_mcnemar() -> None:
    images = [f"picture-{i // 3}" for i in range(60)]
    found = compare(made(BEFORE, images=images), made(AFTER, images=images))
    assert found.changes["top1"].mcnemar is None
    interval = found.changes["top1"].interval
    assert interval is not None
    assert (interval.items, interval.pictures) == (60, 20)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a.json", "runs/b.json"], ["a", "b"]),
        (["one/zero-shot.json", "two/zero-shot.json"], ["one/zero-shot", "two/zero-shot"]),
        (["a.json", "a.json"], ["1: a", "2: a"]),
    ],
)
def test_files_are_called_by_what_tells_them_apart(paths: list[str], names: list[str]) -> None:
    assert labels(paths) == names


def test_the_command_compares_any_number_and_shows_what_flipped(tmp_path: Path) -> None:
    from foveal.dataset import Dataset

    world.write(tmp_path / "site", "base", 4, seed=1, workers=1)
    dataset = Dataset.open(tmp_path / "site")
    ids = [f"{sample.id}#{number}" for sample in dataset for number in range(2)]
    images = [sample.id for sample in dataset for _ in range(2)]
    for name, right in (("old", [1] * 8), ("new", [1, 0] * 4), ("same", [1] * 8)):
        made(right, ids=ids, images=images, data=dataset.fingerprint).write(tmp_path / f"{name}.json")
    files = [str(tmp_path / f"{name}.json") for name in ("new", "old", "same")]
    line = ["eval", "compare", *files, "--baseline", files[1]]
    out = tmp_path / "seen" / "compared.json"
    shown = foveal(*line, "--data", str(tmp_path / "site"), "--out", str(out), "--json")
    assert shown.code == 0, shown.err
    assert shown.json["baseline"] == "old"
    assert shown.json["comparisons"]["new"]["figures"]["top1"]["difference"] == pytest.approx(-0.5)
    assert shown.json["comparisons"]["new"]["lost"] == ids[1::2]
    assert shown.json["comparisons"]["same"]["figures"]["top1"]["verdict"] == "equal"
    assert json.loads(out.read_text()) == shown.json
    page = out.with_suffix(".html").read_text()
    assert page.count("data:image/webp") == 4
    table = foveal(*line)
    assert "Against old" in table.out
    assert "-0.5 [" in table.out
    for wrong, said in (
        ([files[0]], "two result files"),
        ([*files, "--data", str(tmp_path / "site")], "Add --out"),
        ([*files, "--out", "x.txt"], "ends in .json"),
        ([files[0], str(tmp_path / "site" / "none.json")], "cannot read the result"),
    ):
        assert said in foveal("eval", "compare", *wrong).error


def test_where_nothing_is_right_or_wrong_the_items_that_moved_most_come_first() -> None:
    scores = [0.5, 0.5, 0.5, 0.5, None]
    items = {"id": list("abcde"), "exact_match": [1] * 5, "iou": scores}
    before = made([1]).model_copy(update={"task": "vqa", "items": items, "figures": {"grounding_iou": 0.5}})
    after = before.model_copy(update={"items": {**items, "iou": [0.4, 0.1, 0.5, 0.9, None]}})
    found = compare(before, after)
    assert (found.lost, found.gained, found.flipped) == ((1, 0), (3,), False)
    html = page("old", {"new": found}).html()
    assert "grounding iou got worse on 2 items and better on 1" in html
    assert "Worse now: b, a" in html


def test_nested_figures_are_compared_and_shown_where_they_changed() -> None:
    before = made([1, 0] * 10, per_class={"cone": 0.5, "drum": 0.7})
    after = made([1, 0] * 10, per_class={"cone": 0.3, "drum": 0.7})
    found = compare(before, after)
    assert found.changes["per_class.cone"].after == 0.3
    html = page("old", {"new": found}).html()
    assert "per class, cone" in html
    assert "per class, drum" not in html
