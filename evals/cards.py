"""Model cards in Hugging Face's card format: YAML front matter, then what the model is for, made of and good at.

Every value in a card comes from the manifest or from what the caller measured and hands in. A section without input
says so; nothing is filled in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import yaml

from evals.verdicts import Check, GateReport
from foveal.artifacts import Manifest

# Kind of artifact -> the hub's task, where it has one.
TASKS: dict[str, str] = {
    "detector": "object-detection",
    "open-detector": "zero-shot-object-detection",
    "clip-adapter": "zero-shot-image-classification",
    "encoder": "zero-shot-image-classification",
}
HUB_MODEL = re.compile(r"(?:hf:|https://huggingface\.co/)?([\w-][\w.-]*/[\w-][\w.-]*)$")
NOT_STATED = "Not stated."


def model_card(
    manifest: Manifest | Mapping[str, Any],
    *,
    summary: str,
    intended_use: Sequence[str] = (),
    limits: Sequence[str] = (),
    results: Mapping[str, Mapping[str, float]] | None = None,
    results_on: str = "",
    calibration: Mapping[str, float] | None = None,
    gate: GateReport | None = None,
    classes: Sequence[str] = (),
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
        calibration: named figures on how far its probabilities can be trusted.
        task: the hub's pipeline tag; by the manifest's kind when None.
    """
    facts: dict[str, Any] = manifest.model_dump() if isinstance(manifest, Manifest) else dict(manifest)
    name, kind, licence = str(facts["name"]), str(facts["kind"]), str(facts["licence"])
    parents = [str(parent) for parent in facts.get("parents") or ()]
    figures = _flat(facts.get("metrics") or {})
    table = results or ({name: {k: v for k, v in figures.items() if _is_number(v)}} if figures else {})
    task = task or TASKS.get(kind)
    sections = {
        "": _inline(summary),
        "Intended use": _bullets(intended_use),
        "Classes": ", ".join(map(_inline, classes)),
        "Results": _results(table, results_on),
        "Calibration": _pairs(calibration or {}),
        "Release gate": _gate(gate) if gate is not None else "",
        "Limits": _bullets(limits),
        "Training": _pairs(_flat(facts.get("config") or {})),
        "Data": _pairs(_flat(facts.get("data") or {})),
        "Lineage": _bullets([f"made from `{_code(parent)}`" for parent in parents], escape=False),
        "Licence": _inline(licence),
        "How it was made": _made(facts),
    }
    optional = {"", "Classes", "Calibration", "Release gate", "How it was made"}
    body = [f"# {_inline(name)}"]
    for title, text in sections.items():
        if text or title not in optional:
            body += [f"## {title}"] * bool(title) + [text or NOT_STATED]
    return _front_matter(name, licence, task, parents, tags, table, results_on) + "\n\n".join(body) + "\n"


def _front_matter(
    name: str,
    licence: str,
    task: str | None,
    parents: Sequence[str],
    tags: Sequence[str],
    table: Mapping[str, Mapping[str, float]],
    results_on: str,
) -> str:
    data: dict[str, Any] = {"license": licence.lower(), "library_name": "foveal", "tags": ["foveal", *tags]}
    if task:
        data["pipeline_tag"] = task
    hub = [found[1] for parent in parents if (found := HUB_MODEL.match(parent.partition("+")[0]))]
    if hub:
        data["base_model"] = hub
    own: Mapping[str, float] = next(iter(table.values())) if table else {}
    if task and own:
        metrics = [{"type": metric, "value": float(value), "name": metric} for metric, value in own.items()]
        dataset = {"name": results_on or "not stated", "type": "private"}
        result = {"task": {"type": task}, "dataset": dataset, "metrics": metrics}
        data["model-index"] = [{"name": name, "results": [result]}]
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---\n\n"


def _results(table: Mapping[str, Mapping[str, float]], results_on: str) -> str:
    if not table:
        return ""
    columns = list(dict.fromkeys(metric for row in table.values() for metric in row))
    lines = [
        f"| model | {' | '.join(map(_inline, columns))} |",
        f"| --- |{' ---: |' * len(columns)}",
        *(
            f"| {_inline(model)} | {' | '.join(_number(row[c]) if c in row else '' for c in columns)} |"
            for model, row in table.items()
        ),
    ]
    return (f"Measured on {_inline(results_on)}.\n\n" if results_on else "") + "\n".join(lines)


def _gate(gate: GateReport) -> str:
    lines = ["| gate | measured | bar | verdict |", "| --- | ---: | ---: | --- |"]
    for check in gate.checks:
        value = "not measured" if check.value is None else _number(check.value)
        value = "" if check.value is None and check.op == "is" else value
        lines.append(f"| {_inline(check.name)} | {value} | {_bar(check)} | {check.word} |")
    return f"The gate {'passed' if gate.passed else 'did not pass'}.\n\n" + "\n".join(lines)


def _bar(check: Check) -> str:
    if check.op in ("is", "change"):  # said in words, not by a number
        return _inline(check.bar_text)
    return f"{check.op} {_inline(check.bar_text) if check.bar is None else _number(check.bar)}"


def _made(facts: Mapping[str, Any]) -> str:
    parts = [f"with Foveal {facts['foveal_version']}"] if facts.get("foveal_version") else []
    created = facts.get("created")
    if created:
        parts.append(f"on {created if isinstance(created, str) else created.isoformat()}")
    return f"Made {' '.join(parts)}." if parts else ""


def _bullets(items: Sequence[str], *, escape: bool = True) -> str:
    return "\n".join(f"- {_inline(item) if escape else item}" for item in items)


def _pairs(values: Mapping[str, Any]) -> str:
    return "\n".join(f"- {_inline(key)}: {_number(value)}" for key, value in values.items())


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists and everything else stay as they are."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(cast(Mapping[str, Any], value), f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_number(item) for item in cast(Sequence[Any], value))
    return _inline(str(value))


def _inline(text: str) -> str:
    """Text that Markdown shows as typed, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    return " ".join(text.split()).replace("`", "'")
