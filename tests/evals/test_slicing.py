"""What items can be divided by: text, the hour and month of a time, quarters of a number."""

from pathlib import Path
from typing import Any

import pytest

from evals.slicing import columns_of, divided, quarters
from foveal.dataset import Sample


def sample(number: int, width: int = 64, **metadata: Any) -> Sample:
    return Sample(str(number), Path("x.png"), width, 64, metadata=metadata)


def test_text_times_and_numbers_become_words() -> None:
    samples = [
        sample(
            i,
            width=64 * (1 + i % 2),
            camera=f"cam-{i % 2}",
            time=f"2026-0{1 + i // 4}-03T{6 + i % 3:02d}:15:00",
            lux=1.5 * i,
            serial=i,
            note=f"note {i}",
            same="yes",
        )
        for i in range(8)
    ]
    columns = columns_of(samples)
    assert set(columns) == {"camera", "time hour", "time month", "lux", "image size", "note"}
    assert columns["time hour"][:4] == ["06:00", "07:00", "08:00", "06:00"]
    assert set(columns["time month"]) == {"2026-01", "2026-02"}
    assert set(columns["image size"]) == {"64 px", "91 px"}
    assert columns["lux"][:7] == ["0 to 1.5"] * 2 + ["1.5 to 4.5"] * 2 + ["4.5 to 7.5"] * 2 + ["7.5 to 10.5"]


def test_a_field_of_a_hundred_words_divides_nothing() -> None:
    assert columns_of([sample(i, note=f"note {i}") for i in range(100)]) == {}


def test_quarters_hold_about_as_many_and_leave_gaps_alone() -> None:
    words = quarters([*range(100), None, float("nan")])
    assert words[-2:] == [None, None]
    assert [words.count(word) for word in dict.fromkeys(words[:-2])] == [25, 25, 25, 25]
    assert quarters([3, 3, 7, None], " px") == ["3 px", "3 px", "7 px", None]
    assert quarters([]) == []
    crowded = quarters([0.0] * 90 + [float(i) for i in range(1, 11)])
    assert None not in crowded


@pytest.mark.parametrize(
    ("values", "columns"),
    [
        (["2026:11:30 06:15:00", None], {"taken hour": ["06:00", None], "taken month": ["2026-11", None]}),
        (["2026-11-30", "2026-12-01"], {"taken month": ["2026-11", "2026-12"]}),
        (["2026-11-30", "dock"], {"taken": ["2026-11-30", "dock"]}),
        (["2026-11-30T06:15:00+02:00"], {"taken hour": ["06:00"], "taken month": ["2026-11"]}),
        (["20263011", "x"], {"taken": ["20263011", "x"]}),
        ([1.0, "x"], {"taken": [None, "x"]}),
    ],
)
def test_only_a_field_of_times_is_taken_for_one(values: list[Any], columns: dict[str, Any]) -> None:
    assert divided("taken", values) == columns
