"""What a scenario suite may say: a case, what it expects, and how bad it is when it fails."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

KINDS = ("detect", "classify", "search", "answer")
SEVERITIES = ("blocker", "major", "minor")

Kind = Literal["detect", "classify", "search", "answer"]
Severity = Literal["blocker", "major", "minor"]
Box = tuple[float, float, float, float]  # xyxy pixels of the upright image
Value = str | int | float


def _as_text(value: Any) -> Any:
    """Ids are often numbers, which YAML reads as such."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Place(_Part):
    """A box and what is, or is not, to be found there."""

    class_: str = Field(alias="class", min_length=1)
    box: Box
    iou: float = Field(0.5, gt=0, le=1)

    @model_validator(mode="after")
    def _has_extent(self) -> Place:
        if self.box[2] <= self.box[0] or self.box[3] <= self.box[1]:
            raise ValueError("the box must be [x1, y1, x2, y2] with x1 < x2 and y1 < y2")
        return self


class Count(_Part):
    """How many there may be."""

    min: int = Field(0, ge=0)
    max: int | None = Field(None, ge=0)


class Detect(_Part):
    """What a detector must find, and must not, among boxes of at least `score`."""

    present: list[str] = []
    absent: list[str] = []
    count: dict[str, int | Count] = {}
    boxes: list[Place] = []  # must be found
    clear: list[Place] = []  # nothing of that class may be found there
    score: float = Field(0.3, ge=0, le=1)

    @model_validator(mode="after")
    def _asks_something(self) -> Detect:
        if not (self.present or self.absent or self.count or self.boxes or self.clear):
            raise ValueError("one of present, absent, count, boxes, clear is needed")
        return self

    @property
    def classes(self) -> list[str]:
        """Every class that is named."""
        places = [place.class_ for place in (*self.boxes, *self.clear)]
        return list(dict.fromkeys([*self.present, *self.absent, *self.count, *places]))


class Classify(_Part):
    """What an encoder must call the picture, or its part in `box`."""

    class_: str = Field(alias="class", min_length=1)
    among: list[str] = []  # classes to choose from; those of the suite's data when empty
    box: Box | None = None
    confidence: float = Field(0.0, ge=0, le=1)  # that it needs at least


class Search(_Part):
    """A text by which an archive must find each picture, or nothing."""

    text: str = Field(min_length=1)
    within: int = Field(10, ge=1)  # the first so many hits
    nothing: bool = False
    filter: str | None = None


class Answer(_Part):
    """What a vision-language model must answer."""

    question: str = Field(min_length=1)
    accepted: list[str] = Field(min_length=1)
    anls: float | None = Field(None, gt=0, le=1)  # likeness that is enough; None: the same once normalised
    max_tokens: int = Field(64, ge=1)


class Expectation(_Part):
    """Exactly one of the four."""

    detect: Detect | None = None
    classify: Classify | None = None
    search: Search | None = None
    answer: Answer | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Expectation:
        if len([name for name in KINDS if getattr(self, name) is not None]) != 1:
            raise ValueError(f"exactly one of {', '.join(KINDS)} is needed")
        return self

    @property
    def kind(self) -> Kind:
        """Which one."""
        return next(name for name in KINDS if getattr(self, name) is not None)


class Scenario(_Part):
    """One case, as the file states it."""

    name: str = Field(min_length=1)
    images: list[Annotated[str, BeforeValidator(_as_text)]] = []
    slice: dict[str, Value | list[Value]] = {}
    expect: Expectation
    threshold: float = Field(1.0, gt=0, le=1)
    severity: Severity
    owner: str = Field(min_length=1)
    why: str = Field(min_length=1)
    added: date
    source: str | None = None  # where it comes from, e.g. the correction that made it

    @model_validator(mode="after")
    def _shows_something(self) -> Scenario:
        search = self.expect.search
        if search is not None and search.nothing:
            if self.images or self.slice:
                raise ValueError("a search that must find nothing takes neither images nor slice")
        elif bool(self.images) == bool(self.slice):
            raise ValueError("one of images and slice is needed")
        return self

    @property
    def kind(self) -> Kind:
        """What is expected: detect, classify, search or answer."""
        return self.expect.kind
