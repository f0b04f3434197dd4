"""Results and verdicts kept beside the registered versions that they are about.

They lie in `ROOT/NAME/results/VERSION/`, outside the version's own folder: that never changes, and what is measured on
it later, or on other data, still finds its place.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evals.results import Result, read
from evals.verdicts import GateReport, Word
from foveal import artifacts
from foveal.artifacts import write_text
from foveal.errors import BadInput
from foveal.registry import Entry, Registry

VERDICT = "gate-verdict.json"


@dataclass(frozen=True, slots=True)
class Filed:
    """One registered version with what is known of it."""

    entry: Entry
    licence: str
    megabytes: float
    results: tuple[Result, ...]
    gate: Word | None  # of the last gate that it was held against, else of its manifest's

    @property
    def label(self) -> str:
        """`depot@3`, as a reference names it."""
        return f"{self.entry.name}@{self.entry.version}"


def file_results(registry: Registry, name: str, version: int, paths: Sequence[Path]) -> list[Path]:
    """Copies of result files beside a version; one of the same name and data takes the place of the earlier one.

    Raises:
        UnknownName: no such name or version.
        BadInput: a file is not a result, or says that it is of another registered version.
    """
    folder = _folder(registry, name, version)
    results = [read(path) for path in paths]
    for path, result in zip(paths, results, strict=True):
        said = result.subject.reference.partition("+")[0]
        if said.startswith("artifact:") and registry.resolve(said.removeprefix("artifact:")) != _home(
            registry, name, version
        ):
            raise BadInput(f"{path} is about another version", expected=f"a result of {name}@{version}", received=said)
    targets = [folder / f"{result.name}-{result.data.fingerprint[:12]}.json" for result in results]
    for target, result in zip(targets, results, strict=True):
        result.write(target)
    return targets


def file_verdict(registry: Registry, name: str, version: int, gates: str, report: GateReport) -> None:
    """Keeps what the gates of a file said of a version, in place of what any said before."""
    folder = _folder(registry, name, version)
    folder.mkdir(parents=True, exist_ok=True)
    told: dict[str, Any] = {"gates": gates, "at": datetime.now(UTC).isoformat(), **report.as_dict()}
    write_text(folder / VERDICT, json.dumps(told, indent=1) + "\n")


def filed(registry: Registry) -> list[Filed]:
    """Every registered version, by name and number.

    Raises:
        BadInput: a filed result is damaged.
    """
    found: list[Filed] = []
    for entry in registry.list():
        home = _home(registry, entry.name, entry.version)
        folder = _folder(registry, entry.name, entry.version)
        paths = sorted(path for path in folder.glob("*.json") if path.name != VERDICT)
        megabytes = sum(path.stat().st_size for path in home.rglob("*") if path.is_file()) / 1e6
        licence = artifacts.read(home, verify=False).licence
        results = tuple(read(path) for path in paths)
        found.append(Filed(entry, licence, megabytes, results, _verdict(folder / VERDICT, entry)))
    return found


def _verdict(path: Path, entry: Entry) -> Word | None:
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))["verdict"]
    passed = entry.metrics.get("gate_passed")
    return None if passed is None else "pass" if passed else "fail"


def _home(registry: Registry, name: str, version: int) -> Path:
    return registry.resolve(f"{name}@{version}")


def _folder(registry: Registry, name: str, version: int) -> Path:
    return _home(registry, name, version).parent / "results" / str(version)
