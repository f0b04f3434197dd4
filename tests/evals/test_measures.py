"""Figures from weighted items: with all weights 1 they are the task's own, a weight counts as that many copies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals import retrieval, zero_shot
from evals.measures import Measure, mean_by, mean_of, measure_of, measures_of, median_of, share_within
from evals.results import Measured
from foveal import world
from foveal.dataset import Dataset
from foveal.errors import BadInput, UnknownName
from foveal.models import load_encoder
from tests.evals.made import made

MEASURES = [mean_of("value"), share_within("value", 5), median_of("value"), mean_by("value", "group")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("site") / "base"
    world.write(folder, "base", 6, seed=5, workers=1)
    return Dataset.open(folder)


@pytest.mark.parametrize("task", ["zero-shot", "retrieval"])
def test_all_items_alike_give_the_tasks_own_figures(site: Dataset, task: str) -> None:
    measured: Measured = {"zero-shot": zero_shot, "retrieval": retrieval}[task].measure(
        load_encoder("bundled:clip"), site
    )
    result = made([1]).model_copy(update={"task": task, "figures": measured.figures, "items": measured.items})
    found = measures_of(result)
    assert found
    for name, measure in found.items():
        assert measure.of(result.items, np.ones((1, len(result))))[0] == pytest.approx(
            measured.figures[name], abs=1e-12
        )


ROWS = st.lists(
    st.tuples(st.one_of(st.none(), st.integers(0, 9)), st.sampled_from("ab"), st.integers(0, 3)),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("measure", range(len(MEASURES)))
@given(rows=ROWS)
def test_a_weight_counts_as_that_many_copies(measure: int, rows: list[tuple[int | None, str, int]]) -> None:
    items: dict[str, list[Any]] = {"value": [row[0] for row in rows], "group": [row[1] for row in rows]}
    weights = np.array([[row[2] for row in rows]], dtype=np.float64)
    copies = [row for row in rows for _ in range(row[2])]
    copied: dict[str, list[Any]] = {"value": [row[0] for row in copies], "group": [row[1] for row in copies]}
    weighted = MEASURES[measure](items, weights)[0]
    plain = MEASURES[measure](copied, np.ones((1, len(copies))))[0] if copies else math.nan
    assert weighted == pytest.approx(plain, nan_ok=True)


@given(rows=ROWS)
def test_several_sets_of_weights_are_each_measured_alone(rows: list[tuple[int | None, str, int]]) -> None:
    items: dict[str, list[Any]] = {"value": [row[0] for row in rows], "group": [row[1] for row in rows]}
    weights = np.random.default_rng(0).integers(0, 3, (4, len(rows))).astype(np.float64)
    for measure in MEASURES:
        apart = np.concatenate([measure(items, row[None]) for row in weights])
        np.testing.assert_allclose(measure(items, weights), apart)


def test_the_median_is_numpys() -> None:
    values = np.random.default_rng(0).integers(0, 50, 31).tolist()
    for count in (30, 31):
        found = median_of("value")({"value": values[:count]}, np.ones((1, count)))[0]
        assert found == np.median(values[:count])


def test_only_figures_that_the_result_has_and_items_tell() -> None:
    result = made([1, 0])
    assert set(measures_of(result)) == {"top1", "top5", "mean_class_accuracy"}
    assert isinstance(measure_of(result, "top1"), Measure)
    with pytest.raises(UnknownName, match="mean_class_accuracy, top1"):
        measure_of(result, "count")
    with pytest.raises(BadInput, match="keeps no items"):
        measure_of(result.model_copy(update={"items": {}}), "top1")
    assert measures_of(made([1], task="unknown")) == {}
