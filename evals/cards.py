"""Model cards in Hugging Face's card format: YAML front matter, then what the model is for, made of and good at.

Every value in a card comes from the manifest, from results of `foveal eval`, or from what the caller hands in. What
nobody said stays unsaid, and is listed under *What is not known*; nothing is filled in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from evals import card_results
from evals.markdown import bullets, code, flat, inline, number, pairs
from evals.results import Result
from evals.verdicts import Check, GateReport
from foveal import artifacts
from foveal.artifacts import Manifest
from foveal.errors import BadInput, FovealError
from foveal.models import parse_ref

# Kind of artifact -> the hub's task, where it has one.
TASKS: dict[str, str] = {
    "detector": "object-detection",
    "open-detector": "zero-shot-object-detection",
    "clip-adapter": "zero-shot-image-classification",
    "encoder": "zero-shot-image-classification",
    "vlm": "image-text-to-text",
}
HUB_MODEL = re.compile(r"(?:hf:|https://huggingface\.co/)?([\w-][\w.-]*/[\w-][\w.-]*)$")
NOT_STATED = "Not stated."
# What the hub calls licences that are met here; every other one is `other`, by its own name.
LICENCES = (
    "apache-2.0", "mit", "openrail", "bsd", "bsd-2-clause", "bsd-3-clause", "cc", "cc0-1.0", "cc-by-3.0", "cc-by-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0",
    "cc-by-nc-nd-4.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "gemma", "llama2", "llama3",
    "llama3.1", "llama3.2", "odbl", "odc-by", "pddl", "isc", "unlicense", "wtfpl", "unknown", "other",
)  # fmt: skip
MEASURED = {  # tasks a reader asks after -> what is unknown without them
    "calibration": "whether its confidences can be trusted (`foveal eval calibration`)",
    "robustness": "how it bears blur, noise, weather and compression (`foveal eval robustness`)",
    "scenarios": "whether it passes the cases that must not fail (`foveal scenarios run`)",
    "speed": "how fast it is and what it costs (`foveal eval speed`)",
}
DEPTH = 4  # generations of parents that are looked up


class About(BaseModel):
    """What only people can say of a model: its file is YAML of these keys, all of them optional."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    summary: str | None = None
    intended_use: list[str] = []
    out_of_scope: list[str] = []
    limits: list[str] = []
    contact: str | None = None
    citation: str | None = None


def model_card(
    manifest: Manifest | Mapping[str, Any],
    *,
    summary: str,
    intended_use: Sequence[str] = (),
    out_of_scope: Sequence[str] = (),
    limits: Sequence[str] = (),
    results: Mapping[str, Mapping[str, float]] | None = None,
    results_on: str = "",
    evaluations: Sequence[Result] = (),
    calibration: Mapping[str, float] | None = None,
    gate: GateReport | None = None,
    classes: Sequence[str] = (),
    reference: str | None = None,
    contact: str | None = None,
    citation: str | None = None,
    task: str | None = None,
    tags: Sequence[str] = (),
) -> str:
    """The card as Markdown.

    Args:
        manifest: a sealed manifest, or (to write the card before sealing) a mapping with its fields `name`, `kind`,
            `licence` and, where known, `parents`, `data`, `config`, `metrics`, `created`, `foveal_version`.
        summary: what the model is, in a sentence or two.
        results: a row a model (this one first, then what it is compared with), a column a metric; the manifest's own
            metrics when None.
        results_on: the images the results were measured on.
        evaluations: results of `foveal eval`, told with their slices, and by their data in the `model-index`.
        calibration: named figures on how far its probabilities can be trusted.
        reference: by which it is loaded.
        task: the hub's pipeline tag; by the manifest's kind when None.
    """
    facts: dict[str, Any] = manifest.model_dump() if isinstance(manifest, Manifest) else dict(manifest)
    name, kind, licence = str(facts["name"]), str(facts["kind"]), str(facts["licence"])
    parents = [str(parent) for parent in facts.get("parents") or ()]
    figures = flat(facts.get("metrics") or {})
    own = {k: float(v) for k, v in figures.items() if _is_number(v)}
    table = results or ({name: own} if own else {})
    task = task or TASKS.get(kind)
    told = {
        "": inline(summary),
        "Intended use": bullets(intended_use),
        "Out of scope": bullets(out_of_scope),
        "How to use": _usage(reference),
        "Classes": ", ".join(map(inline, classes)),
        "Results": _results(table, results_on),
        "Evaluation": card_results.sections(evaluations),
        "Calibration": pairs(calibration or {}),
        "Release gate": _gate(gate) if gate is not None else "",
        "Limits": bullets([*limits, *card_results.limits_seen(evaluations)]),
        "Training": pairs(flat(facts.get("config") or {})),
        "Data": pairs(flat(facts.get("data") or {})),
        "Lineage": lineage(parents),
        "Licence": inline(licence),
        "Contact": inline(contact or ""),
        "Citation": inline(citation or ""),
    }
    expected = ("Intended use", "Out of scope", "Results", "Limits", "Training", "Data", "Lineage")
    told["What is not known"] = _unknown([title for title in expected if not told[title]], evaluations)
    told["How it was made"] = _made(facts)
    body = [f"# {inline(name)}"]
    for title, text in told.items():
        if text or title in expected:
            body += [f"## {title}"] * bool(title) + [text or NOT_STATED]
    index = card_results.model_index(name, evaluations, task) or _own_index(name, table, task, results_on)
    return _front_matter(licence, kind, task, parents, tags, index) + "\n\n".join(body) + "\n"


def card_of(folder: Path, evaluations: Sequence[Result], about: About, tags: Sequence[str] = ()) -> str:
    """The card of a sealed model folder with its results.

    Raises:
        BadInput: the folder has no manifest, or a result is of another folder.
        IntegrityError: a file is not what the manifest says.
    """
    manifest = artifacts.read(folder)
    for result in evaluations:
        others = _folders(result.subject.reference)
        if others and folder.resolve() not in others:
            raise BadInput(
                f"the result {result.name!r} is of another model",
                expected=f"one measured on {folder}",
                received=result.subject.reference,
            )
    fingerprints = {result.subject.fingerprint for result in evaluations if result.subject.fingerprint}
    if len(fingerprints) > 1:
        raise BadInput(
            "the results are of different models",
            received=", ".join(f"{one.name} of {(one.subject.fingerprint or 'unknown')[:12]}" for one in evaluations),
            remedy="Measure them again on one model.",
        )
    references = {result.subject.reference for result in evaluations}
    return model_card(
        manifest,
        summary=about.summary or f"Kind of model: {manifest.kind}.",
        intended_use=about.intended_use,
        out_of_scope=about.out_of_scope,
        limits=about.limits,
        evaluations=evaluations,
        reference=references.pop() if len(references) == 1 else None,
        contact=about.contact,
        citation=about.citation,
        tags=tags,
    )


def _folders(reference: str) -> set[Path]:
    """The local folders that a reference names; none for a hub's, a registry's or a server's."""
    try:
        parsed = parse_ref(reference)
    except FovealError:
        return set()
    named = [parsed.folder, parsed.adapter]
    return {path.resolve() for path in named if path is not None}


def lineage(parents: Sequence[str], depth: int = DEPTH, indent: str = "") -> str:
    """A list of what a model was made from, and what that was made from, as far as manifests here tell."""
    lines: list[str] = []
    for parent in parents:
        found = _manifest(parent)
        lines.append(f"{indent}- made from `{code(parent)}`" + (f", {inline(found.licence)}" if found else ""))
        if found is not None and found.parents and depth > 1:
            lines.append(lineage(found.parents, depth - 1, f"{indent}  "))
    return "\n".join(lines)


def _manifest(parent: str) -> Manifest | None:
    paths = [*_folders(parent), Path(parent)] if ":" in parent else [Path(parent)]
    for path in paths:
        try:
            if (path / artifacts.MANIFEST).is_file():
                return artifacts.read(path, verify=False)
        except (FovealError, OSError):
            continue
    return None


def _front_matter(
    licence: str,
    kind: str,
    task: str | None,
    parents: Sequence[str],
    tags: Sequence[str],
    index: Sequence[Mapping[str, Any]],
) -> str:
    data: dict[str, Any] = {**licence_fields(licence), "library_name": "foveal", "tags": ["foveal", *tags]}
    if task:
        data["pipeline_tag"] = task
    hub = [found[1] for parent in parents if (found := HUB_MODEL.match(parent.partition("+")[0]))]
    if hub:
        data["base_model"] = hub
        if "adapter" in kind:
            data["base_model_relation"] = "adapter"
    if index:
        data["model-index"] = list(index)
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---\n\n"


def licence_fields(licence: str) -> dict[str, str]:
    """A licence as the hub's front matter has it: by its own identifier, or as `other` with a name."""
    name = licence.strip().lower()
    return {"license": name} if name in LICENCES else {"license": "other", "license_name": name}


def _own_index(
    name: str, table: Mapping[str, Mapping[str, float]], task: str | None, results_on: str
) -> list[dict[str, Any]]:
    """What the manifest or the caller says the model reaches, where there are no results."""
    own: Mapping[str, float] = next(iter(table.values())) if table else {}
    if not (task and own):
        return []
    metrics = [{"type": metric, "value": float(value), "name": metric} for metric, value in own.items()]
    dataset = {"name": results_on or "not stated", "type": "private"}
    return [{"name": name, "results": [{"task": {"type": task}, "dataset": dataset, "metrics": metrics}]}]


def _usage(reference: str | None) -> str:
    return "" if reference is None else f"Commands and Python load it by the reference `{code(reference)}`."


def _unknown(missing: Sequence[str], evaluations: Sequence[Result]) -> str:
    lines = [f"{title.lower()}: not stated" for title in missing]
    if evaluations:
        tasks = {result.task for result in evaluations}
        lines += [told for task, told in MEASURED.items() if task not in tasks]
        if not any(result.slices for result in evaluations):
            lines.append("how it does on parts of the data: no result has slices")
    return bullets(lines, escape=False)


def _results(table: Mapping[str, Mapping[str, float]], results_on: str) -> str:
    if not table:
        return ""
    columns = list(dict.fromkeys(metric for row in table.values() for metric in row))
    lines = [
        f"| model | {' | '.join(map(inline, columns))} |",
        f"| --- |{' ---: |' * len(columns)}",
        *(
            f"| {inline(model)} | {' | '.join(number(row[c]) if c in row else '' for c in columns)} |"
            for model, row in table.items()
        ),
    ]
    return (f"Measured on {inline(results_on)}.\n\n" if results_on else "") + "\n".join(lines)


def _gate(gate: GateReport) -> str:
    lines = ["| gate | measured | bar | verdict |", "| --- | ---: | ---: | --- |"]
    for check in gate.checks:
        value = "not measured" if check.value is None else number(check.value)
        value = "" if check.value is None and check.op == "is" else value
        lines.append(f"| {inline(check.name)} | {value} | {_bar(check)} | {check.word} |")
    return f"The gate {'passed' if gate.passed else 'did not pass'}.\n\n" + "\n".join(lines)


def _bar(check: Check) -> str:
    if check.op in ("is", "change"):  # said in words, not by a number
        return inline(check.bar_text)
    return f"{check.op} {inline(check.bar_text) if check.bar is None else number(check.bar)}"


def _made(facts: Mapping[str, Any]) -> str:
    parts = [f"with Foveal {facts['foveal_version']}"] if facts.get("foveal_version") else []
    created = facts.get("created")
    if created:
        parts.append(f"on {created if isinstance(created, str) else created.isoformat()}")
    return f"Made {' '.join(parts)}." if parts else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
