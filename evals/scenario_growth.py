"""What production got wrong becomes scenarios: a case a corrected picture, added to a suite's file."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from evals.scenario_form import Severity
from evals.scenario_suite import differences, load, lock_path, read_lock
from foveal.artifacts import write_text
from foveal.config import read_yaml
from foveal.detections import Detections
from foveal.errors import BadInput
from foveal.images import content_hash


@dataclass(frozen=True, slots=True)
class Draft:
    """A picture and what a reviewer said should have been found in it, and should not."""

    image: Path
    missed: Detections
    wrong: Detections

    @property
    def what(self) -> str:
        """In words, e.g. `missed 2 barrel; found a crate that is none`."""
        return "; ".join(
            f"{verb} {', '.join(f'{count} {name}' for name, count in Counter(boxes.label_names).items())}"
            for verb, boxes in (("must find", self.missed), ("wrongly found", self.wrong))
            if len(boxes)
        )


def grow(
    path: Path,
    drafts: Iterable[Draft],
    *,
    owner: str,
    severity: Severity,
    source: str,
    score: float = 0.3,
    iou: float = 0.5,
    why: str | None = None,
    copy: bool = True,
    added: date | None = None,
) -> list[str]:
    """Adds a case for each draft to the suite at `path`, which is made if need be; returns the names of new cases.

    A picture that the suite has a case for by the same source already is passed over. What the file held, comments
    included, stays as it is; the pictures of the new cases are held fast in the lock file.

    Args:
        copy: put a copy of each picture into `SUITE-images/`; else name the file where it lies.

    Raises:
        BadInput: the suite cannot take more cases as it is written, or its pictures are not those it was locked with.
    """
    before = load(path) if path.is_file() else None
    if before is not None and lock_path(path).is_file():
        gone = [line for line in differences(read_lock(lock_path(path)), before.contents()) if not line.endswith("new")]
        if gone:
            raise BadInput(f"{path} cannot grow: {gone[0]}", remedy="Bring the picture back, or lock the suite anew.")
    known = (
        set()
        if before is None
        else {(case.source, h) for case in before.cases for h in before.contents()[case.name].values()}
    )
    names = set() if before is None else {case.name for case in before.cases}
    folder = path.parent / f"{path.stem}-images"
    cases: list[dict[str, Any]] = []
    for draft in drafts:
        digest = content_hash(draft.image)
        if (source, digest) in known:
            continue
        known.add((source, digest))
        name = f"{draft.image.stem}: {draft.what}"
        while name in names:
            name += f" ({digest[:6]})"
        names.add(name)
        place = _copied(draft.image, folder, digest) if copy else draft.image.resolve()
        said = {
            "severity": severity,
            "owner": owner,
            "why": why or f"a reviewer corrected it: {draft.what}",
            "added": added or date.today(),
            "source": source,
        }
        cases.append(
            {"name": name, "images": [_named(place, path.parent)], "expect": _expect(draft, score, iou), **said}
        )
    if cases:
        _append(path, cases)
        load(path).write_lock()
    return [case["name"] for case in cases]


def _expect(draft: Draft, score: float, iou: float) -> dict[str, Any]:
    asked: dict[str, Any] = {"score": score}
    for key, boxes in (("boxes", draft.missed), ("clear", draft.wrong)):
        if len(boxes):
            asked[key] = [
                {"class": name, "box": [round(float(edge), 1) for edge in box], "iou": iou}
                for name, box in zip(boxes.label_names, boxes.boxes, strict=True)
            ]
    return {"detect": asked}


def _copied(image: Path, folder: Path, digest: str) -> Path:
    target = folder / f"{image.stem}-{digest[:8]}{image.suffix.lower()}"
    if not target.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.draft")
        shutil.copyfile(image, draft)
        draft.replace(target)
    return target


def _named(file: Path, base: Path) -> str:
    try:
        return file.resolve().relative_to(base.resolve()).as_posix()
    except ValueError:
        return str(file)


def _append(path: Path, cases: Sequence[Mapping[str, Any]]) -> None:
    """The cases at the end of the file, which is otherwise left as it is."""
    lines = yaml.safe_dump(list(cases), sort_keys=False, allow_unicode=True, width=110)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, f"suite: {path.stem}\ncases:\n{_indented(lines, '  ')}")
        return
    text = path.read_text(encoding="utf-8")
    old = read_yaml(path)
    for indent in ("  ", "", "    "):
        grown = f"{text.rstrip()}\n{_indented(lines, indent)}"
        try:
            parsed = yaml.safe_load(grown)
        except yaml.YAMLError:
            continue
        if isinstance(parsed, dict) and parsed == {**old, "cases": [*old["cases"], *cases]}:
            write_text(path, grown)
            return
    raise BadInput(
        f"{path} cannot take more cases as it is written",
        expected="`cases` as its last key, one `- name: ...` below the other",
        remedy="Write it in that form, or add the new cases to a file of their own.",
    )


def _indented(lines: str, indent: str) -> str:
    return "".join(f"{indent}{line}\n" for line in lines.splitlines())
