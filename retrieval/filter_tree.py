"""A filter as a tree: conditions on columns under AND and OR; NOT is no node, as it moves inwards to the conditions."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from retrieval.filter_engines import Column, Engine, Lance, Literal, Milvus, Text, like_regex, split_tags

Record = Mapping[str, str | int | float | None]  # column -> value, None or no key where it is missing

COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
OPPOSITE = {"=": "!=", "!=": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}


class Filter(ABC):
    """What a record must be like. Its `str` parses back to an equal filter."""

    __slots__ = ()

    def sql(self) -> str:
        """In the SQL of a Lance table."""
        return self.write(Lance())

    def milvus(self) -> str:
        """In Milvus' language, over fields as `filter_engines.Milvus` has them.

        Raises:
            BadInput: Milvus has no such condition: LIKE with a backslash to find, a fraction beside an integer field,
                HAS on another field than `meta`.
        """
        return self.write(Milvus())

    def __str__(self) -> str:
        return self.write(Text())

    def matches(self, record: Record) -> bool:
        """Whether it is true of a record."""
        return self.truth(record) is True

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The columns it looks at, each once, in the order of their first use."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """How many ANDs and ORs lie within each other."""

    @abstractmethod
    def truth(self, record: Record) -> bool | None:
        """True, false, or None where a missing value leaves it open."""

    @abstractmethod
    def negated(self) -> Filter:
        """True where this is false, open where this is open."""

    @abstractmethod
    def write(self, engine: Engine) -> str:
        """In an engine's language."""


@dataclass(frozen=True, slots=True)
class Combined(Filter):
    """AND or OR of two or more filters, none of them combined by the same word: made by `combined`."""

    word: str
    parts: tuple[Filter, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for part in self.parts for name in part.columns))

    @property
    def depth(self) -> int:
        return 1 + max(part.depth for part in self.parts)

    def truth(self, record: Record) -> bool | None:
        decisive = self.word == "OR"
        found = {part.truth(record) for part in self.parts}
        return decisive if decisive in found else None if None in found else not decisive

    def negated(self) -> Filter:
        return Combined("AND" if self.word == "OR" else "OR", tuple(part.negated() for part in self.parts))

    def write(self, engine: Engine) -> str:
        written = [(part, part.write(engine)) for part in self.parts]
        return engine.joined(self.word, [f"({text})" if isinstance(part, Combined) else text for part, text in written])


def combined(word: str, parts: Sequence[Filter]) -> Filter:
    """AND or OR of one or more filters, as flat as can be."""
    flat: list[Filter] = []
    for part in parts:
        flat += part.parts if isinstance(part, Combined) and part.word == word else [part]
    return flat[0] if len(flat) == 1 else Combined(word, tuple(flat))


@dataclass(frozen=True, slots=True)
class Condition(Filter):
    """A filter on one column."""

    column: Column

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column.name,)

    @property
    def depth(self) -> int:
        return 0

    def truth(self, record: Record) -> bool | None:
        value = self.column.of(record)
        return None if value is None else self.holds(value)

    @abstractmethod
    def holds(self, value: Any) -> bool:
        """Whether it is true of a value of the column's kind."""


@dataclass(frozen=True, slots=True)
class Compare(Condition):
    """The column is = != < <= > or >= a literal."""

    operator: str
    value: Literal

    def holds(self, value: Any) -> bool:
        return COMPARE[self.operator](value, self.value)

    def negated(self) -> Filter:
        return replace(self, operator=OPPOSITE[self.operator])

    def write(self, engine: Engine) -> str:
        return engine.compare(self.column, self.operator, self.value)


@dataclass(frozen=True, slots=True)
class In(Condition):
    """The column equals one of the literals, or none of them."""

    values: tuple[Literal, ...]
    inverse: bool = False

    def holds(self, value: Any) -> bool:
        return (value in self.values) != self.inverse

    def negated(self) -> Filter:
        return replace(self, inverse=not self.inverse)

    def write(self, engine: Engine) -> str:
        return engine.one_of(self.column, self.values, self.inverse)


@dataclass(frozen=True, slots=True)
class Like(Condition):
    """The whole text fits a pattern of % and _, or does not."""

    pattern: str
    inverse: bool = False

    def holds(self, value: Any) -> bool:
        return (like_regex(self.pattern).fullmatch(value) is None) == self.inverse

    def negated(self) -> Filter:
        return replace(self, inverse=not self.inverse)

    def write(self, engine: Engine) -> str:
        return engine.like(self.column, self.pattern, self.inverse)


@dataclass(frozen=True, slots=True)
class Has(Condition):
    """The tag is one of those in the text, or is not."""

    tag: str
    inverse: bool = False

    def holds(self, value: Any) -> bool:
        return (self.tag in split_tags(value)) != self.inverse

    def negated(self) -> Filter:
        return replace(self, inverse=not self.inverse)

    def write(self, engine: Engine) -> str:
        return engine.has(self.column, self.tag, self.inverse)


@dataclass(frozen=True, slots=True)
class IsNull(Condition):
    """The value is missing, or is there."""

    inverse: bool = False

    def truth(self, record: Record) -> bool:
        return (self.column.of(record) is None) != self.inverse

    def holds(self, value: Any) -> bool:
        return self.inverse

    def negated(self) -> Filter:
        return replace(self, inverse=not self.inverse)

    def write(self, engine: Engine) -> str:
        return engine.missing(self.column, self.inverse)
