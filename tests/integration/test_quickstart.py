"""The whole loop, small: every stage runs for real, a second run has nothing to do, an interrupted one continues."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from adapt.clip import ClipSettings
from adapt.vlm import VlmSettings
from distill.prelabel import PrelabelSettings
from distill.train import TrainSettings
from foveal.errors import FovealError
from serve.quickstart import STAGES, QuickstartSettings, run

SMALL = QuickstartSettings(
    unlabelled=24,
    gold=16,
    test=16,
    archive=48,
    adapt=ClipSettings(max_seconds=3),
    teach=VlmSettings(max_seconds=2, quantise=True, pack=12, batch=4),
    questions=16,
    prelabel=PrelabelSettings(target_precision=0.6),  # two dozen boxes cannot prove more
    distill=TrainSettings(epochs=80),  # steps, not seconds: with too few no student can be quantised
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("loop") / "quickstart"
    run(out, SMALL)
    return out


def test_report_holds_every_promised_figure(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == list(STAGES)
    promised = {
        "adapt": "recall_at_1_before recall_at_1_after zero_shot_before zero_shot_after trainable_params total_params",
        "teach": "exact_match_before exact_match_after located_before located_after trainable_params total_params",
        "archive": "images recall_at_10_vs_exact p50_ms p99_ms",
        "prelabel": "images boxes precision recall accepted_share accepted_precision target_precision",
        "distill": "human_boxes teacher_map50 student_map50 int8_map50 teacher_map student_map int8_map teacher_ms "
        "student_ms int8_ms student_mb int8_mb",
        "gate": "passed checks",
        "serve": "search_ms detect_ms embed_ms",
    }
    for section, keys in promised.items():
        assert not set(keys.split()) - set(report[section]), section
    assert report["archive"]["images"] == SMALL.archive
    assert report["adapt"]["trainable_params"] <= 0.05 * report["adapt"]["total_params"]
    assert report["archive"]["recall_at_10_vs_exact"] >= 0.99


def test_report_page_is_one_file(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "Worst mistakes" in page
    assert 'src="http' not in page
    assert 'href="http' not in page


def test_no_human_box_beyond_the_gold_set_is_used(finished: Path) -> None:
    manifest = json.loads((finished / "prelabels" / "manifest.json").read_text())
    assert manifest["data"]["gold_images"] == SMALL.gold
    report = json.loads((finished / "report.json").read_text())
    gold = json.loads((finished / "world" / "gold" / "instances.json").read_text())
    assert report["distill"]["human_boxes"] == len(gold["annotations"])


def test_a_second_run_has_nothing_to_do(finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file() and p.name != "report.json"}
    began = time.monotonic()
    run(finished, SMALL)
    assert time.monotonic() - began < 5
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_other_settings_are_refused_rather_than_mixed(finished: Path) -> None:
    with pytest.raises(FovealError, match="other settings"):
        run(finished, SMALL.model_copy(update={"seed": 4}))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stages", [1, 4])
def test_an_interrupted_run_continues(tmp_path: Path, stages: int) -> None:
    out = tmp_path / "quickstart"
    command = [sys.executable, "-c", "from foveal.cli import main; main()", "quickstart", "--out", str(out), "--json"]
    for key, value in (
        ("unlabelled", 24),
        ("gold", 16),
        ("test", 16),
        ("archive", 48),
        ("adapt.max_seconds", 6),
        ("teach.max_seconds", 6),
        ("distill.epochs", 80),  # steps, as above
        ("prelabel.target_precision", 0.6),
    ):
        command += ["--set", f"{key}={value}"]

    def done() -> dict[str, Any]:
        state = out / "state.json"
        return json.loads(state.read_text())["stages"] if state.is_file() else {}

    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(done()) < stages:
        assert first.poll() is None
        time.sleep(0.1)
    time.sleep(2)  # into the next stage
    first.send_signal(signal.SIGINT)
    first.wait(120)
    before = done()
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.stdout, second.stderr[-2000:]
    report = json.loads(second.stdout.splitlines()[-1])
    assert [stage["name"] for stage in report["stages"]] == list(STAGES)
    assert len(report["stages"]) > len(before) >= stages
    for name, stage in before.items():
        assert stage["seconds"] == next(s["seconds"] for s in report["stages"] if s["name"] == name)
