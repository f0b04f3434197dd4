"""The whole loop on the sample world: `foveal quickstart`.

A stage that finished is recorded in `state.json` and not run again; one that was interrupted resumes by its room's own
means.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from foveal import artifacts
from foveal.errors import FovealError
from foveal.progress import Progress, SilentProgress
from foveal.runtime import describe_machine, peak_memory_mb
from serve import quickstart_report
from serve.quickstart_settings import QuickstartSettings, Run
from serve.quickstart_stages import STAGES, application, figures

__all__ = ["STAGES", "QuickstartSettings", "run"]


def run(
    out: Path,
    settings: QuickstartSettings | None = None,
    *,
    fresh: bool = False,
    demo: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run or resume every stage, write `report.json` and `report.html` into `out`, and return the report.

    Raises:
        FovealError: `out` holds a run with other settings.
    """
    settings, progress = settings or QuickstartSettings(), progress or SilentProgress()
    if fresh:
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    state = _read_state(out, settings)
    current = Run(out, settings, progress, {name: s["result"] for name, s in state["stages"].items()})
    todo = [name for name in STAGES if name not in state["stages"]]
    for number, (name, stage) in enumerate(STAGES.items(), 1):
        label = f"[{number}/{len(STAGES)}] {name}"
        if name not in todo:
            progress.note(f"{label}: done before, {state['stages'][name]['seconds']:.1f} s")
            continue
        progress.note(label)
        began = time.monotonic()
        try:
            result = stage(current)
        finally:
            state["spent"][name] = state["spent"].get(name, 0.0) + time.monotonic() - began
            _write_state(out, state)
        seconds = round(state["spent"][name], 2)
        current.results[name] = result
        state["stages"][name] = {"seconds": seconds, "result": result}
        state["peak_memory_mb"] = max(state["peak_memory_mb"], peak_memory_mb())
        _write_state(out, state)
        progress.note(f"{label}: {seconds:.1f} s")
    report = _report(current, state)
    artifacts.write_text(out / "report.json", json.dumps(report, indent=2) + "\n")
    if todo or not (out / "report.html").is_file():
        quickstart_report.write(current, report)
    quickstart_report.show(report, out)
    if demo:
        _demo(current)
    return report


def _read_state(out: Path, settings: QuickstartSettings) -> dict[str, Any]:
    described = settings.model_dump_json()
    path = out / "state.json"
    if not path.is_file():
        return {"settings": described, "stages": {}, "spent": {}, "peak_memory_mb": 0.0}
    state = json.loads(path.read_text())
    if state["settings"] != described:
        raise FovealError(
            f"{out} holds a run with other settings", remedy="Pass --fresh to start over, or choose another --out."
        )
    return state


def _write_state(out: Path, state: dict[str, Any]) -> None:
    artifacts.write_text(out / "state.json", json.dumps(state, indent=1) + "\n")


def _demo(run: Run) -> None:
    from serve.server import serve

    serve(
        application(run, demo=True),
        port=8000,
        on_ready=lambda url: run.progress.note(f"Search, Detect and Ask are at {url} - Ctrl-C stops the server"),
    )


def _report(run: Run, state: dict[str, Any]) -> dict[str, Any]:
    stages: list[dict[str, Any]] = [{"name": name, "seconds": state["stages"][name]["seconds"]} for name in STAGES]
    return {
        "seconds_total": round(sum(s["seconds"] for s in stages), 2),
        "peak_memory_mb": state["peak_memory_mb"],
        "machine": describe_machine(),
        "backbones": {
            "encoder": run.settings.encoder,
            "teacher": run.settings.teacher,
            "student": run.settings.student,
            "adapted_encoder_fingerprint": run.results["index"]["index"]["fingerprint"],
        },
        "stages": stages,
        **figures(run),
        "gate": run.results["gate"],
        "serve": run.results["serve"],
    }
