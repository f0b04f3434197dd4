"""What an evaluation found, in a form that stays: one JSON file, figure by figure and item by item.

`docs/results-schema.md` describes the file for readers in other languages. The schema has a version of its own: within
one, fields are only added.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from evals.slicing import columns_of
from foveal import __version__
from foveal.artifacts import write_text
from foveal.dataset import Sample
from foveal.errors import BadInput
from foveal.models import licence_of, parse_ref
from foveal.printing import plain
from foveal.runtime import describe_machine

SCHEMA = "foveal.result/1"


@dataclass(frozen=True, slots=True)
class Measured:
    """What a task measured: nested figures, and columns of equal length with one entry an item.

    The column `id` names each item; `image` names the picture it comes from where several come from one: those err
    together, and are drawn together by the bootstrap. Columns in `slices` hold text (camera, light, class) by which
    the items can be divided.
    """

    figures: dict[str, Any]
    items: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])
    slices: dict[str, list[str | None]] = field(default_factory=dict[str, list[str | None]])


def slices_of(samples: Sequence[Sample]) -> dict[str, list[str | None]]:
    """What an evaluation can be divided by, a column a field: see `evals.slicing.columns_of`."""
    return columns_of(samples)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Subject(_Part):
    """What was measured."""

    reference: str  # as on the command line: bundled:clip, artifact:depot@3, predictions.json, http://host:8000
    fingerprint: str | None = None  # of weights and preprocessing, where the model has one
    licence: str | None = None
    megabytes: float | None = None  # of its files

    @classmethod
    def of(cls, reference: str, model: object = None) -> Subject:
        """What a reference names, with what the loaded model and its files say of themselves."""
        from foveal.served import is_server

        licence = megabytes = None
        if model is not None and not is_server(reference):  # whose files are its own
            folder = parse_ref(reference).folder
            licence = licence_of(reference)
            if folder is not None and folder.is_dir():
                megabytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
        fingerprint = getattr(model, "fingerprint", None)
        return cls(reference=reference, fingerprint=fingerprint, licence=licence, megabytes=megabytes)


class Data(_Part):
    """What it was measured on."""

    source: str
    fingerprint: str  # equal for equal images and truth
    images: int


class Result(_Part):
    """One evaluation of one subject on one data set."""

    schema_: Literal["foveal.result/1"] = Field(alias="schema")
    task: str
    name: str  # what gates and leaderboards call it; the task's name unless given
    subject: Subject
    data: Data
    settings: dict[str, Any] = Field(default_factory=dict)
    figures: dict[str, Any]
    items: dict[str, list[Any]] = Field(default_factory=dict)
    slices: dict[str, list[str | None]] = Field(default_factory=dict)
    machine: dict[str, Any] = Field(default_factory=dict)
    seconds: float
    created: datetime
    foveal_version: str = __version__

    @model_validator(mode="after")
    def _columns_agree(self) -> Result:
        columns = {**self.items, **self.slices}
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of items differ in length: {lengths}")
        if columns and "id" not in self.items:
            raise ValueError("the items have no column 'id'")
        if columns and len(set(self.items["id"])) != len(self.items["id"]):
            raise ValueError("two items share an id")
        return self

    def __len__(self) -> int:
        return len(self.items.get("id", ()))

    @property
    def images(self) -> list[Any]:
        """The picture each item comes from; the item itself where that was not said."""
        return self.items.get("image", self.items.get("id", []))

    def write(self, path: Path) -> None:
        """The result as a JSON file, whole or not at all; numbers that JSON cannot hold become null."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(
            path,
            json.dumps(
                plain(self.model_dump(mode="json", by_alias=True)),
            )
            + "\n",
        )


@dataclass(slots=True)
class Stopwatch:
    """When a measurement began, so that its result can say how long it took."""

    began: float = field(default_factory=time.perf_counter)

    def result(
        self,
        task: str,
        measured: Measured,
        subject: Subject,
        data: Data,
        *,
        name: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Result:
        """What was measured, with the machine, the date and the seconds since the beginning."""
        return Result(
            schema=SCHEMA,
            task=task,
            name=name or task,
            subject=subject,
            data=data,
            settings=dict(settings or {}),
            figures=measured.figures,
            items=measured.items,
            slices=measured.slices,
            machine=describe_machine(),
            seconds=time.perf_counter() - self.began,
            created=datetime.now(UTC),
        )


def result_path(out: Path) -> Path:
    """`out`, a file that may hold a result.

    Raises:
        BadInput: it does not end in `.json`.
    """
    if out.suffix != ".json":
        raise BadInput(f"--out {out} is not a JSON file", expected="a name that ends in .json")
    return out


def read(path: Path) -> Result:
    """The result in a file.

    Raises:
        BadInput: the file cannot be read, is not a result, or is one of another schema.
    """
    try:
        loaded: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read the result {path}: {error}", remedy="Give a file that `--out` wrote.") from None
    if not is_result(loaded):
        schema = loaded.get("schema") if isinstance(loaded, dict) else None
        raise BadInput(
            f"{path} is not a result of `foveal eval`",
            expected=f'a JSON object with "schema": "{SCHEMA}"',
            received=repr(schema) if schema else "none",
            remedy="Measure again with `foveal eval ... --out FILE`.",
        )
    try:
        return Result.model_validate(loaded)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the items"
        raise BadInput(f"{path} is damaged at {where}: {first['msg']}") from None


def is_result(loaded: Any) -> bool:
    """Whether parsed JSON says of itself that it is a result of this schema."""
    return isinstance(loaded, dict) and loaded.get("schema") == SCHEMA


def by_name(results: Sequence[Result]) -> dict[str, Any]:
    """The figures of several results under their names, as gates look them up: `detection.AP50`.

    Besides the figures each holds `seconds`, and `megabytes` where the subject has a size.

    Raises:
        BadInput: two results share a name.
    """
    found: dict[str, Any] = {}
    for result in results:
        if result.name in found:
            raise BadInput(
                f"two results are called {result.name!r}", remedy="Give one of them another --name when measuring."
            )
        found[result.name] = {"seconds": result.seconds, "megabytes": result.subject.megabytes, **result.figures}
    return found
