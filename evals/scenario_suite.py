"""Scenario suites: named cases that must not fail, in a YAML file, and the lock file that holds their pictures fast.

    suite: dock
    data: ../site                      # whose ids, slices and classes the cases may name; optional
    cases:
      - name: barrels in dim light are found
        slice: {light: dim light}      # or images: [scene_3, odd/photo.jpg]: of the data, or files beside
        expect:
          detect: {present: [barrel], score: 0.3}
        threshold: 0.9                 # share of its pictures that must hold; all of them unless said
        severity: blocker              # blocker, major or minor
        owner: night shift
        why: two falls in March were over barrels that nobody saw
        added: 2026-03-30

`SUITE.lock.json` beside it keeps the sha256 of each picture: one that has changed or gone is an error with its case's
name, never a case that quietly tests something else. `foveal scenarios lock` writes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from evals.scenario_form import KINDS, Scenario
from foveal.artifacts import write_text
from foveal.config import check_keys, read_yaml
from foveal.dataset import Dataset, Sample
from foveal.errors import BadInput, ConfigError, IntegrityError
from foveal.images import content_hash, size

LOCK = "foveal.scenarios-lock/1"
SHOWN = 3  # of many things that an error could list


@dataclass(frozen=True, slots=True)
class Suite:
    """The cases of a file with their pictures found; `pictures` has an entry a case."""

    path: Path
    title: str
    data: Path | None
    classes: tuple[str, ...]  # of the data
    cases: tuple[Scenario, ...]
    pictures: Mapping[str, tuple[Sample, ...]]
    hashes: dict[str, str] = field(default_factory=dict[str, str])  # image id -> sha256, filled when asked for

    @property
    def prompts(self) -> tuple[str, ...]:
        """What an open-vocabulary detector is asked for, in every case alike: the data's classes and those named."""
        named = [name for case in self.cases if case.expect.detect for name in case.expect.detect.classes]
        return tuple(dict.fromkeys([*self.classes, *named]))

    @property
    def lock_path(self) -> Path:
        """The file beside the suite that holds its pictures fast."""
        return lock_path(self.path)

    @property
    def fingerprint(self) -> str:
        """sha256 hex over what is expected and the content of the pictures."""
        cases = [case.model_dump(mode="json", by_alias=True) for case in self.cases]
        return hashlib.sha256(json.dumps([cases, self.contents()], sort_keys=True).encode()).hexdigest()

    def contents(self) -> dict[str, dict[str, str]]:
        """Case -> image id -> sha256 hex of the file; reads each file once."""
        for sample in self.samples():
            if sample.id not in self.hashes:
                self.hashes[sample.id] = content_hash(sample.path)
        return {name: {sample.id: self.hashes[sample.id] for sample in found} for name, found in self.pictures.items()}

    def samples(self) -> Iterator[Sample]:
        """Every picture once."""
        yield from {sample.id: sample for found in self.pictures.values() for sample in found}.values()

    def dataset(self) -> Dataset:
        """The pictures as a dataset, without truth."""
        return Dataset.build((replace(sample, truth=None) for sample in self.samples()), ())

    def only(self, names: Sequence[str]) -> Suite:
        """The cases of these names or kinds; all of them when none is given.

        Raises:
            BadInput: a name is neither.
        """
        known = {case.name for case in self.cases}
        unknown = [name for name in names if name not in known and name not in KINDS]
        if unknown:
            raise BadInput(
                f"{self.path} has no case {unknown[0]!r}",
                expected=f"a kind ({', '.join(KINDS)}) or one of {_some(sorted(known))}",
            )
        cases = tuple(case for case in self.cases if not names or case.name in names or case.kind in names)
        if not cases:
            raise BadInput(f"{self.path} has no case of the kind {', '.join(names)}", received=_kinds(self.cases))
        return replace(self, cases=cases, pictures={case.name: self.pictures[case.name] for case in cases})

    def write_lock(self) -> int:
        """Hold the pictures fast as they are now; returns how many there are."""
        record = {"schema": LOCK, "suite": self.path.name, "cases": self.contents()}
        write_text(self.lock_path, json.dumps(record, indent=1, sort_keys=True) + "\n")
        return len(self.hashes)

    def verify(self) -> None:
        """Raises `IntegrityError` unless every picture is what the lock file holds, and `BadInput` without one."""
        if not self.lock_path.is_file():
            raise BadInput(
                f"the pictures of {self.path} are not held fast",
                expected=f"{self.lock_path.name} beside it",
                remedy=f"Look at them, then run `foveal scenarios lock {self.path}`.",
            )
        found = differences(read_lock(self.lock_path), self.contents())
        if found:
            raise IntegrityError(
                f"{self.path} is not what {self.lock_path.name} holds: {_some(found, '; ')}",
                remedy=f"Bring the pictures back, or look at them and run `foveal scenarios lock {self.path}`.",
            )


def lock_path(suite: Path) -> Path:
    """The lock file that belongs to a suite."""
    return suite.with_name(f"{suite.stem}.lock.json")


def read_lock(path: Path) -> dict[str, dict[str, str]]:
    """Case -> image id -> sha256 hex.

    Raises:
        IntegrityError: the file is damaged.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["schema"] != LOCK:
            raise ValueError(f"schema {record['schema']!r}")
        return {name: {str(k): str(v) for k, v in held.items()} for name, held in record["cases"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path} is damaged: {error}", remedy="Take it from version control.") from None


def differences(held: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What is not as it was held fast, a line each; cases that are not asked about do not count."""
    lines: list[str] = []
    for name, images in now.items():
        if name not in held:
            lines.append(f"case {name!r} is new")
            continue
        before = held[name]
        lines += [f"case {name!r}: image {i} has changed" for i in images if i in before and before[i] != images[i]]
        lines += [f"case {name!r}: image {i} is missing" for i in before if i not in images]
        lines += [f"case {name!r}: image {i} is new" for i in images if i not in before]
    return lines


def load(path: Path) -> Suite:
    """The suite in a file, its pictures found but not yet read.

    Raises:
        BadInput, ConfigError: the file cannot be read, a case is malformed or a picture is not there; names the case
            and the field.
    """
    head, cases = read(path)
    data = None if head.get("data") is None else (path.parent / str(head["data"])).resolve()
    dataset = None if data is None else Dataset.open(data)
    samples = [] if dataset is None else list(dataset)
    pictures = {case.name: _pictures(path, case, samples, data) for case in cases}
    classes = () if dataset is None else dataset.classes
    suite = Suite(path, str(head.get("suite") or path.stem), data, classes, cases, pictures)
    for case in cases:
        _check_classify(suite, case)
    return suite


def read(path: Path) -> tuple[dict[str, Any], tuple[Scenario, ...]]:
    """What else the file says (`suite`, `data`), and its cases, without looking for their pictures.

    Raises:
        ConfigError: as `load`.
    """
    loaded = read_yaml(path)
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} is no scenario suite", expected="a mapping with `cases`", received=repr(loaded)[:80])
    head = cast("dict[str, Any]", loaded)
    unknown = sorted(set(map(str, head)) - {"suite", "data", "cases"})
    if unknown:
        raise ConfigError(f"{path} has no key {unknown[0]!r}", expected="one of cases, data, suite")
    cases = head.get("cases")
    if not isinstance(cases, list) or not cases:
        raise ConfigError(f"{path} has no cases", expected="a list of cases under `cases`", received=repr(cases)[:80])
    found = tuple(_case(path, number, record) for number, record in enumerate(cast("list[Any]", cases)))
    names = [case.name for case in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{path}: two cases are called {twice[0]!r}", remedy="Give each case its own name.")
    return head, found


def _case(path: Path, number: int, record: Any) -> Scenario:
    if not isinstance(record, dict):
        raise ConfigError(f"{path}: case {number + 1} is no mapping", received=repr(record)[:80])
    said = cast("dict[str, Any]", record)
    where = f"{path}: case {said.get('name') or number + 1!r}"
    try:
        check_keys(Scenario, said, where)
        return Scenario.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part not in ("int", "Count", "str"))
        if first["type"] == "missing":
            raise ConfigError(f"{where} lacks {field}", remedy=f"Say it: `{field}: ...`.") from None
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        told = first["type"] != "value_error"
        raise ConfigError(
            f"{where}: {field or 'the case'} does not fit",
            expected=message,
            received=repr(first.get("input"))[:80] if told else None,
        ) from None


def _pictures(path: Path, case: Scenario, samples: Sequence[Sample], data: Path | None) -> tuple[Sample, ...]:
    if case.slice:
        if data is None:
            raise ConfigError(f"{path}: case {case.name!r}: slice needs the suite's `data`")
        return _sliced(path, case, samples, data)
    by_id = {**{sample.path.name: sample for sample in samples}, **{sample.id: sample for sample in samples}}
    found: list[Sample] = []
    for name in dict.fromkeys(case.images):
        if name in by_id:
            found.append(by_id[name])
            continue
        file = path.parent / name
        if not file.is_file():
            near = f" or an image of {data} such as {_some([sample.id for sample in samples])}" if samples else ""
            raise BadInput(
                f"{path}: case {case.name!r}: image {name!r} is not there", expected=f"a file in {path.parent}{near}"
            )
        width, height = size(file)
        found.append(Sample(name, file, width, height))
    return tuple(found)


def _sliced(path: Path, case: Scenario, samples: Sequence[Sample], data: Path) -> tuple[Sample, ...]:
    where = f"{path}: case {case.name!r}: slice"
    chosen = list(samples)
    for column, wanted in case.slice.items():
        values = {sample.metadata[column] for sample in samples if column in sample.metadata}
        if not values:
            known = sorted({name for sample in samples for name in sample.metadata})
            raise BadInput(f"{where}: {data} has no metadata {column!r}", expected=f"one of {_some(known) or 'none'}")
        accepted = wanted if isinstance(wanted, list) else [wanted]
        unknown = [value for value in accepted if value not in values]
        if unknown:
            raise BadInput(
                f"{where}.{column}: nothing in {data} is {unknown[0]!r}",
                expected=f"one of {_some(sorted(map(str, values)))}",
            )
        chosen = [sample for sample in chosen if sample.metadata.get(column) in accepted]
    if not chosen:
        raise BadInput(f"{where} leaves no image of {data}")
    return tuple(chosen)


def _check_classify(suite: Suite, case: Scenario) -> None:
    asked = case.expect.classify
    if asked is None:
        return
    among = asked.among or list(suite.classes)
    if len(among) < 2 or asked.class_ not in among:
        raise ConfigError(
            f"{suite.path}: case {case.name!r}: expect.classify.class {asked.class_!r} cannot be chosen",
            expected=f"one of {_some(among)}" if len(among) > 1 else "classes to choose from",
            remedy=None if among else "Name them in `among`, or give the suite `data` with classes.",
        )


def _kinds(cases: Sequence[Scenario]) -> str:
    return f"cases of {', '.join(sorted({case.kind for case in cases}))}"


def _some(things: Sequence[str], between: str = ", ") -> str:
    more = f"{between}and {len(things) - SHOWN} more" if len(things) > SHOWN + 1 else ""
    return between.join(things[: SHOWN if more else SHOWN + 1]) + more
