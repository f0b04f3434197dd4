from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from evals.cards import NOT_STATED, model_card
from evals.gates import check
from foveal.artifacts import seal

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
