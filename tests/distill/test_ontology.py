"""The ontology file: both forms, what prompts ask for, and refusals that name the culprit."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.ontology import Ontology
from foveal.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "examples" / "ontology.yaml"


def load(folder: Path, text: str) -> Ontology:
    path = folder / "ontology.yaml"
    path.write_text(text)
    return Ontology.load(path)


def test_the_example_loads() -> None:
    ontology = Ontology.load(EXAMPLE)
    assert ontology.names == ("barrel", "cone", "pallet")
    assert ontology.prompts == ("barrel", "steel drum", "traffic cone", "pallet", "bucket", "shadow", "reflection")
    assert ontology.classes_of_prompts() == [0, 0, 1, 2, None, None, None]
    assert ontology.classes[0].target_precision == 0.95


def test_short_forms_mean_the_same(tmp_path: Path) -> None:
    expected = Ontology.of(["barrel", "cone"])
    assert load(tmp_path, "classes: [barrel, cone]") == expected
    assert load(tmp_path, "- barrel\n- name: cone\n") == expected
    assert expected.prompts == ("barrel", "cone")


def test_a_look_alike_that_is_itself_a_class_is_asked_once(tmp_path: Path) -> None:
    ontology = load(tmp_path, "classes: [{name: barrel, negative_prompts: [Bucket]}, bucket]")
    assert ontology.prompts == ("barrel", "bucket")
    assert ontology.classes_of_prompts() == [0, 1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("classes: [cone, Cone]", "'Cone' is listed twice"),
        ("classes: []", "classes is empty"),
        ("classes: [cone, '  ']", "classes.1.name is empty"),
        ("clases: [cone]", "did you mean 'classes'"),
        ("classes: [{name: cone, promts: [x]}]", "did you mean 'prompts'"),
        ("classes: cone", "a list of class names"),
        ("classes: [{prompts: [x]}]", "classes.0.name is missing"),
        ("classes: [{name: a, prompts: [x]}, {name: b, prompts: [X]}]", "asked for both 'a' and 'b'"),
        ("classes: [{name: a, prompts: [x], negative_prompts: [x]}]", "both as prompt and as negative"),
        ("classes: [{name: a, target_precision: 2}]", "target_precision"),
        ("classes: [cone, 3]", "classes.1"),
        ("{classes: [cone], attributes: {lid: [open]}}", "two or more different values, received open"),
        ("classes: [{name: cone, attributes: {lid: [open, Open]}}]", "two or more different values"),
        ("classes: [{name: cone, attributes: {lid.top: [a, b]}}]", "full stop in its name"),
        ("classes: [", "is not YAML"),
        ("42", "holds no classes"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read"):
        Ontology.load(tmp_path / "none.yaml")
