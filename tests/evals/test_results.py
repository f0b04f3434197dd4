"""Result files: what is written is read, what is not a result is refused, and the schema is what its page says."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from evals.results import SCHEMA, Measured, Result, Stopwatch, Subject, by_name, is_result, read, result_path, slices_of
from foveal.dataset import Sample
from foveal.errors import BadInput
from tests.evals.made import made

DOCUMENT = Path(__file__).parents[2] / "docs" / "results-schema.md"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    result = made([1, 0, 1], images=["a", "a", "b"], slices={"light": ["day", None, "night"]}, nested={"x": [1, 2.5]})
    result.write(tmp_path / "new" / "result.json")
    assert read(tmp_path / "new" / "result.json") == result
    assert is_result(json.loads((tmp_path / "new" / "result.json").read_text()))
    assert result.images == ["a", "a", "b"]
    assert made([1, 0]).images == ["item-0", "item-1"]


def test_numbers_that_json_cannot_hold_are_null(tmp_path: Path) -> None:
    made([1, 0], ap=math.nan).write(tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text()
    json.loads(text, parse_constant=lambda word: pytest.fail(word))
    assert read(tmp_path / "r.json").figures["ap"] is None


def _damaged(change: dict[str, Any]) -> str:
    return json.dumps({**json.loads(made([1, 0]).model_dump_json(by_alias=True)), **change})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot read the result"),
        ("[]", "not a result"),
        ('{"AP50": 0.5}', "received none"),
        (_damaged({"schema": "foveal.result/2"}), r"received 'foveal\.result/2'.*Measure again"),
        (_damaged({"items": {"id": ["a", "b"], "right": [1]}}), "differ in length"),
        (_damaged({"items": {"right": [1, 0]}, "slices": {}}), "no column 'id'"),
        (_damaged({"items": {"id": ["a", "a"]}}), "share an id"),
        (_damaged({"slices": {"light": ["day"]}}), "differ in length"),
        (_damaged({"seconds": "long"}), "damaged at seconds"),
        (_damaged({"subject": {"reference": "x", "colour": "red"}}), r"damaged at subject\.colour"),
        (_damaged({"extra": 1}), "damaged at extra"),
    ],
)
def test_damaged_and_foreign_files_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(BadInput, match=said):
        read(tmp_path / "r.json")


def test_absent_and_misnamed_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="absent"):
        read(tmp_path / "absent.json")
    with pytest.raises(BadInput, match=r"ends in \.json"):
        result_path(Path("out.html"))


def test_gates_find_results_by_name() -> None:
    found = by_name([made([1, 0]), made([1, 1], name="night")])
    assert found["zero-shot"]["top1"] == 0.5
    assert found["night"]["top1"] == 1.0
    assert found["night"]["seconds"] == 1.5
    with pytest.raises(BadInput, match="another --name"):
        by_name([made([1]), made([0])])


def test_a_stopwatch_says_how_long_and_on_what() -> None:
    measured = Measured({"top1": 1.0}, {"id": ["a"]})
    result = Stopwatch().result("zero-shot", measured, Subject(reference="x"), made([1]).data, settings={"k": 1})
    assert (result.name, result.settings, len(result)) == ("zero-shot", {"k": 1}, 1)
    assert 0 <= result.seconds < 60
    assert result.machine["cores"] >= 1
    with pytest.raises(ValidationError):
        result.seconds = 2  # type: ignore[misc]


def test_metadata_divides_the_items() -> None:
    rows = [
        {"light": "day", "same": "x", "n": 1, "each": "a"},
        {"light": "night", "same": "x", "n": 2, "each": "b"},
        {},
    ]
    samples = [
        Sample(id=str(i), path=Path(f"{i}.png"), width=8, height=8, truth=None, metadata=row)
        for i, row in enumerate([*rows[:2], {**rows[0], "light": 3}])
    ]
    assert slices_of(samples)["light"] == ["day", "night", None]
    assert set(slices_of(samples)) == {"light", "each", "n"}


def test_the_document_says_what_the_schema_says() -> None:
    schema = Result.model_json_schema()
    text = DOCUMENT.read_text()
    assert f'"schema": "{SCHEMA}"' in text
    parts = {"Result": schema, **schema["$defs"]}
    for name, part in parts.items():
        section = re.search(rf"## `{name}`\n(.*?)(?=\n## |\Z)", text, flags=re.DOTALL)
        assert section, f"{DOCUMENT.name} has no section `{name}`"
        rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| (yes|no) \|", section[1], flags=re.MULTILINE)
        said = {field: (kind.strip(), needed == "yes") for field, kind, needed in rows}
        known = {field: (_kind(spec), field in part.get("required", ())) for field, spec in part["properties"].items()}
        assert said == known


def _kind(spec: dict[str, Any]) -> str:
    """A JSON schema's type in the words of the document."""
    if "const" in spec:
        return f"`{spec['const']}`"
    if "$ref" in spec:
        return f"`{spec['$ref'].rpartition('/')[2]}`"
    if "anyOf" in spec:
        return " or ".join(_kind(choice) for choice in spec["anyOf"])
    if spec["type"] == "object":
        inner = spec.get("additionalProperties")
        return f"object of {_kind(inner)}" if isinstance(inner, dict) else "object"
    if spec["type"] == "array":
        return f"array of {_kind(spec['items'])}" if spec.get("items") else "array"
    return "date-time" if spec.get("format") == "date-time" else spec["type"]


def test_the_example_in_the_document_is_a_result(tmp_path: Path) -> None:
    (example,) = re.findall(r"```json\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    (tmp_path / "example.json").write_text(example)
    assert len(read(tmp_path / "example.json")) == 2
