"""What gates are held against: figures by name, the results that they come from, the incumbent's, and the artifact."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from evals.results import Result, by_name, is_result, read
from foveal.errors import BadInput

INCUMBENT = "incumbent"  # the name under which bars and comparisons find the other side


@dataclass(frozen=True, slots=True)
class Evidence:
    """Nested figures as `report.json` or results have them; the incumbent's stand under `incumbent` as well."""

    figures: Mapping[str, Any]
    results: Mapping[str, Result] = field(default_factory=dict[str, Result])
    incumbent: Mapping[str, Result] = field(default_factory=dict[str, Result])
    artifact: Path | None = None

    def value(self, path: str) -> float:
        """The number at a dotted path, as `lookup`."""
        return lookup(self.figures, path)

    def origin(self, path: str, *, incumbent: bool = False) -> tuple[Result, str]:
        """The result that a path leads into, and the figure in it.

        Raises:
            BadInput: no result of that name is there; says which are.
        """
        results = self.incumbent if incumbent else self.results
        name, _, figure = path.partition(".")
        if (key := _key(results, name)) is None:
            side = "incumbent" if incumbent else "candidate"
            held = ", ".join(results) or "none that keeps items"
            raise BadInput(
                f"the {side} has no result {name!r}",
                received=held,
                remedy=f"Give {'--incumbent' if incumbent else '--results'} a file of `foveal eval ... --out`.",
            )
        return results[key], figure


def gather(
    results: Sequence[Path],
    incumbent: Sequence[Path] = (),
    artifact: Path | None = None,
    figures: Mapping[str, Any] | None = None,
) -> Evidence:
    """Evidence from files: results, found under their names, and plain reports, whose keys stand as they are.

    Args:
        results, incumbent: files, or folders of them.
        figures: known beforehand, e.g. those of a manifest; files win over them.

    Raises:
        BadInput: a file cannot be read, or two of them say something under one name.
    """
    own, found = _merged(results)
    old, before = _merged(incumbent)
    if INCUMBENT in own:
        raise BadInput(f"a result may not be called {INCUMBENT!r}", remedy="Measure it under another --name.")
    return Evidence({**(figures or {}), **own, **({INCUMBENT: old} if old else {})}, found, before, artifact)


def lookup(results: Mapping[str, Any], path: str) -> float:
    """The number at a dotted path; integer parts index lists; booleans count as 0 and 1.

    A dash in a name may be written as an underscore, since a bar reads a dash as minus.

    Raises:
        BadInput: nothing stands there, or not a finite number.
    """
    here: Any = results
    walked: list[str] = []
    for part in path.split("."):
        at = ".".join(walked) or "the results"
        if isinstance(here, Mapping) and (key := _key(cast(Mapping[str, Any], here), part)) is not None:
            here = cast(Mapping[str, Any], here)[key]
        elif isinstance(here, list) and part.isdecimal() and int(part) < len(cast(list[Any], here)):
            here = cast(list[Any], here)[int(part)]
        else:
            names = sorted(str(key) for key in cast(Mapping[Any, Any], here)) if isinstance(here, Mapping) else []
            raise BadInput(
                f"{path} was not measured: {at} has no {part!r}",
                remedy=f"It has {', '.join(names[:12])}." if names else None,
            )
        walked.append(part)
    if not isinstance(here, int | float):
        raise BadInput(f"{path} is not a number", received=repr(here)[:80])
    if not math.isfinite(here):
        raise BadInput(f"{path} is not finite", received=str(here))
    return float(here)


def _key(values: Mapping[str, Any], name: str) -> str | None:
    if name in values:
        return name
    return next((key for key in values if key.replace("-", "_") == name), None)


def _merged(paths: Sequence[Path]) -> tuple[dict[str, Any], dict[str, Result]]:
    """Figures of several files by name, and those that are results."""
    figures: dict[str, Any] = {}
    results: list[Result] = []
    files = [file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    for path in files:
        loaded = _json(path)
        if is_result(loaded) or str(loaded.get("schema", "")).startswith(
            "foveal."
        ):  # of another schema: `read` says so
            results.append(read(path))
            continue
        twice = sorted(set(figures) & set(loaded))
        if twice:
            raise BadInput(f"two files of results have {twice[0]!r}, the second is {path}", remedy="Leave one out.")
        figures |= loaded
    named = by_name(results)
    twice = sorted(set(figures) & set(named))
    if twice:
        raise BadInput(
            f"a report and a result both have {twice[0]!r}", remedy="Measure the result under another --name."
        )
    return figures | named, {result.name: result for result in results}


def _json(path: Path) -> dict[str, Any]:
    try:
        loaded: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read {path} as JSON: {error}") from None
    if not isinstance(loaded, dict):
        raise BadInput(f"{path} holds no figures", expected="a JSON object", received=type(loaded).__name__)
    return cast(dict[str, Any], loaded)
