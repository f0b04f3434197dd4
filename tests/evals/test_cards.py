from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from evals.cards import NOT_STATED, About, card_of, model_card
from evals.gates import check
from evals.results import Data, Measured, Result, Stopwatch, Subject
from foveal.artifacts import seal
from foveal.errors import BadInput, IntegrityError
from tests.command import foveal

FACTS: dict[str, Any] = {
    "name": "depot-student",
    "kind": "detector",
    "licence": "Apache-2.0",
    "parents": ["hf:google/owlv2-base-patch16+runs/adapter", "bundled:clip", "sha256:12ab"],
    "data": {"prelabels": {"images": 400, "fingerprint": "ab12"}},
    "config": {"steps": 1200, "lr": 0.0002, "sizes": [160, 224]},
    "metrics": {"AP50": 0.7812345, "note": "x"},
}


def test_front_matter_is_read_by_the_hub_library() -> None:
    text = model_card(FACTS, summary="A small detector.", results_on="200 hidden test images", tags=["onnx"])
    data = ModelCard(text).data.to_dict()
    assert data["license"] == "apache-2.0"
    assert data["pipeline_tag"] == "object-detection"
    assert data["base_model"] == ["google/owlv2-base-patch16"]
    assert data["tags"] == ["foveal", "onnx"]
    metric = data["model-index"][0]["results"][0]["metrics"][0]
    assert (metric["type"], metric["value"]) == ("AP50", pytest.approx(0.7812345))


def test_every_number_comes_from_the_input() -> None:
    gate = check([{"name": "g", "metric": "a", "op": ">=", "bar": 0.5, "why": "w"}], {"a": 0.25})
    text = model_card(
        FACTS,
        summary="A small detector.",
        results={"student": {"AP50": 0.7812, "ms": 8.5}, "teacher": {"AP50": 0.81}},
        calibration={"ECE": 0.031},
        gate=gate,
    )
    body = text.split("---\n", 2)[2]
    given = {"400", "12", "1200", "0.0002", "160", "224", "0.7812", "8.5", "0.81", "0.031", "0.5", "0.25", "2", "2.0"}
    found = set(re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\d)", body))
    assert found <= given, found - given
    assert {"0.7812", "8.5", "0.81", "0.031", "0.25"} <= found
    assert "| teacher | 0.81 |  |" in body
    assert "The gate did not pass." in body


def test_what_is_not_given_is_said_to_be_missing() -> None:
    text = model_card({"name": "m", "kind": "other", "licence": "MIT"}, summary="s")
    for title in ("Intended use", "Results", "Limits", "Training", "Data", "Lineage"):
        assert f"## {title}\n\n{NOT_STATED}" in text
    assert "Calibration" not in text
    assert "model-index" not in text


def test_markdown_and_yaml_cannot_be_broken_out_of() -> None:
    nasty = "a | b\n# title\n<script>`x`"
    text = model_card(
        {**FACTS, "name": nasty}, summary=nasty, limits=[nasty], results={nasty: {"AP|50": 1.0}}, classes=[nasty]
    )
    assert "\n# title" not in text
    assert "<script>" not in re.sub(r"\\<", "", text.split("---\n", 2)[2])
    assert ModelCard(text).data.to_dict()["model-index"][0]["name"] == nasty


def test_a_sealed_manifest_makes_the_same_card(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    manifest = seal(tmp_path, **{key: value for key, value in FACTS.items()})
    from_manifest = model_card(manifest, summary="s")
    assert from_manifest.startswith(model_card(FACTS, summary="s").rstrip("\n"))
    assert f"Made with Foveal {manifest.foveal_version} on {manifest.created.isoformat()}." in from_manifest


def measured(folder: Path, task: str, figures: dict[str, Any], items: dict[str, list[Any]], **more: Any) -> Result:
    """A result of the model in a folder."""
    slices = more.pop("slices", {})
    data = Data(
        source=more.pop("source", "site/test"), fingerprint=more.pop("data", "d" * 64), images=more.pop("images", 400)
    )
    subject = Subject(reference=f"onnx:{folder}", fingerprint=more.pop("fingerprint", "f" * 64))
    return Stopwatch().result(task, Measured(figures, items, slices), subject, data, **more)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "parent").mkdir()
    (tmp_path / "parent" / "model.onnx").write_bytes(b"p")
    seal(tmp_path / "parent", name="teacher", kind="open-detector", parents=["hf:org/grand"], licence="MIT")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.onnx").write_bytes(b"m")
    facts = {**FACTS, "parents": [str(tmp_path / "parent"), "sha256:12ab"]}
    seal(tmp_path / "model", **facts)
    return tmp_path / "model"


def named(folder: Path, **more: Any) -> Result:
    """40 crops, 30 right; of 10 at night 2."""
    right = [1] * 28 + [0] * 2 + [1] * 2 + [0] * 8
    items: dict[str, list[Any]] = {
        "id": [str(i) for i in range(40)],
        "right": right,
        "rank": [1 if r else 2 for r in right],
    }
    slices = {"light": ["day"] * 30 + ["night"] * 10, "camera": ["b"] * 6 + ["a"] * 34}
    return measured(folder, "zero-shot", {"top1": 0.75, "top5": 1.0, "note": "x"}, items, slices=slices, **more)


def scenarios(folder: Path) -> Result:
    items: dict[str, list[Any]] = {"id": ["doors", "ladders"], "passed": [1, 0]}
    return measured(folder, "scenarios", {"pass_rate": 0.5}, items, images=2)


def test_results_become_entries_that_the_hub_library_reads(model: Path) -> None:
    text = card_of(model, [named(model), scenarios(model)], About())
    card = ModelCard(text)
    first, second, third = card.data.eval_results
    assert (first.task_type, first.task_name) == ("zero-shot-image-classification", "Zero shot")
    assert (first.dataset_name, first.dataset_revision) == ("site/test", "d" * 12)
    assert (first.metric_type, first.metric_name, first.metric_value) == ("accuracy", "top1", 0.75)
    assert (second.metric_type, second.metric_value) == ("top5", 1.0)
    assert (third.task_type, third.metric_type, third.metric_value) == ("object-detection", "pass_rate", 0.5)
    assert card.data.model_name == "depot-student"
    again = ModelCard(str(ModelCard(str(card))))
    assert again.data.to_dict()["model-index"][0]["results"][0]["dataset"]["args"]["images"] == 400


def test_slices_and_what_they_show_are_told(model: Path) -> None:
    text = card_of(model, [named(model), scenarios(model)], About(limits=["Never seen snow."]))
    assert (
        "By light:\n\n| light | items | top1 | top5 |\n| --- | ---: | ---: | ---: |\n| night | 10 | 0.2 | 1 |" in text
    )
    limits = text.split("## Limits\n")[1].split("\n## ")[0]
    assert "- Never seen snow." in limits
    assert "- Weakest where light is night: top1 0.2 on 10, 0.75 on all." in limits
    assert "camera" not in limits
    assert "Fails 1 of 2 scenarios: ladders." in limits
    assert "scenarios was measured on 2 images only." in limits


def test_lineage_follows_manifests_and_the_unknown_is_listed(model: Path) -> None:
    text = card_of(model, [named(model)], About(intended_use=["Depots."], contact="cv@example.org"))
    lineage = text.split("## Lineage\n\n")[1].split("\n\n## ")[0].splitlines()
    assert lineage == [
        f"- made from `{model.parent / 'parent'}`, MIT", "  - made from `hf:org/grand`", "- made from `sha256:12ab`"
    ]  # fmt: skip
    unknown = text.split("## What is not known\n\n")[1].split("\n\n## ")[0]
    assert "out of scope: not stated" in unknown
    assert "intended use" not in unknown
    assert "foveal eval calibration" in unknown
    assert "parts of the data" not in unknown
    assert "cv@example.org" in text


def test_results_of_another_model_are_refused(model: Path) -> None:
    with pytest.raises(BadInput, match="is of another model"):
        card_of(model, [named(model.parent / "parent")], About())
    with pytest.raises(BadInput, match="the results are of different models"):
        card_of(model, [named(model), named(model, name="again", fingerprint="e" * 64)], About())
    (model / "model.onnx").write_bytes(b"changed")
    with pytest.raises(IntegrityError):
        card_of(model, [], About())


def test_a_licence_the_hub_does_not_know_keeps_its_name() -> None:
    data = ModelCard(model_card({"name": "m", "kind": "other", "licence": "Acme 2"}, summary="s")).data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", "acme 2")


def test_the_commands_write_cards_that_the_hub_library_reads(model: Path, tmp_path: Path) -> None:
    named(model).write(tmp_path / "named.json")
    (tmp_path / "about.yaml").write_text("summary: Finds things.\nintended_use: [Depots.]\n")
    line = [
        "card",
        "model",
        str(model),
        "--results",
        str(tmp_path / "named.json"),
        "--about",
        str(tmp_path / "about.yaml"),
    ]
    shown = foveal(*line, "--out", str(tmp_path / "card.md"), "--json")
    assert shown.code == 0, shown.err
    text = (tmp_path / "card.md").read_text()
    assert ModelCard(text).data.to_dict()["model-index"]
    assert "Finds things." in text
    unknown = text.split("## What is not known\n\n")[1].split("\n\n## ")[0]
    assert shown.json["unknown"] == len(unknown.splitlines())
    assert "is sealed" in foveal(*line, "--out", str(model / "card.md")).error
    assert "ends in .md" in foveal(*line, "--out", str(tmp_path / "card.txt")).error
