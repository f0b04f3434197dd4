"""Kinds of gates that are no figures: under which licence a candidate may be used, and whether its origin is known."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from evals.bars import Entry
from evals.evidence import Evidence
from evals.results import Result
from evals.verdicts import Check
from foveal import artifacts
from foveal.artifacts import Manifest
from foveal.errors import FovealError


class LicenceGate(Entry):
    """Every licence that the artifact and the measured models state is one of these; saying none is none of them."""

    licence_in: list[str] = Field(min_length=1)

    def verify(self) -> None:
        """Nothing more to read."""

    def decide(self, evidence: Evidence) -> Check:
        """The licences against the list, whatever their case."""
        allowed = {licence.lower() for licence in self.licence_in}
        stated = {result.subject.reference: result.subject.licence for result in evidence.results.values()}
        problems: list[str] = []
        if evidence.artifact is not None:
            try:
                stated[str(evidence.artifact)] = artifacts.read(evidence.artifact, verify=False).licence
            except FovealError as error:
                problems.append(str(error))
        for name, licence in stated.items():
            if licence is None or licence.lower() == "unknown":
                problems.append(f"{name} states no licence")
            elif licence.lower() not in allowed:
                problems.append(f"{name} is under {licence}")
        if not stated and not problems:
            problems.append("nothing here names a model: give results of `foveal eval ... --out`, or --artifact FOLDER")
        found = ", ".join(sorted({licence for licence in stated.values() if licence}))
        return _check(self, "licence", " or ".join(self.licence_in), problems, found)


class ProvenanceGate(Entry):
    """It can be told what was measured on what, and where it came from.

    Every result names the fingerprints of its model and its data; results of one name agree on their data with the
    incumbent's; with an artifact, its files are what its manifest says, its parents are known, and at least one result
    was measured on it.
    """

    provenance: Literal["complete"]

    def verify(self) -> None:
        """Nothing more to read."""

    def decide(self, evidence: Evidence) -> Check:
        """Everything that is not known, all at once."""
        problems: list[str] = []
        for result in evidence.results.values():
            problems += _unknown(result)
            old = evidence.incumbent.get(result.name)
            if old is not None:
                problems += [f"incumbent: {problem}" for problem in _unknown(old)]
                if old.data.fingerprint != result.data.fingerprint:
                    problems.append(f"{result.name} was measured on other data than the incumbent's")
        if not evidence.results:
            problems.append("no result names a model or data")
        if evidence.artifact is not None:
            problems += _artifact(evidence)
        count = len(evidence.results)
        found = f"{count} {'result' if count == 1 else 'results'}{' and the artifact' * bool(evidence.artifact)} traced"
        return _check(self, "provenance", self.provenance, problems, found)


def _unknown(result: Result) -> list[str]:
    missing: list[str] = []
    if not result.subject.fingerprint:
        missing.append(f"{result.name} does not name the fingerprint of {result.subject.reference}")
    if not result.data.fingerprint:
        missing.append(f"{result.name} does not name the fingerprint of {result.data.source}")
    return missing


def _artifact(evidence: Evidence) -> list[str]:
    folder = evidence.artifact
    assert folder is not None
    try:
        manifest = artifacts.read(folder)
    except FovealError as error:
        return [str(error)]
    problems: list[str] = []
    if not manifest.parents:
        problems.append(f"the manifest of {folder} names no parents")
    if not any(_measured_on(result, manifest, str(folder)) for result in evidence.results.values()):
        problems.append(f"no result was measured on {folder} (fingerprint {manifest.fingerprint[:12]})")
    return problems


def _measured_on(result: Result, manifest: Manifest, folder: str) -> bool:
    """By fingerprint, or by a reference that leads to the folder (`onnx:FOLDER`, `bundled:clip+FOLDER`)."""
    from pathlib import Path

    if result.subject.fingerprint == manifest.fingerprint:
        return True
    places = result.subject.reference.replace("+", ":").split(":")
    return any(place and Path(place).resolve() == Path(folder).resolve() for place in places)


def _check(gate: Entry, metric: str, wanted: str, problems: list[str], found: str) -> Check:
    return Check(
        name=gate.name,
        metric=metric,
        value=None,
        op="is",
        bar=None,
        bar_text=wanted,
        passed=not problems,
        reason="; ".join(problems) or found,
        why=gate.why,
        verdict="fail" if problems else "pass",
    )
