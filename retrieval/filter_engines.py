"""How a condition on one column is written: in Foveal's filter language, in Lance's SQL and in Milvus' expressions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from foveal.errors import BadInput

Value = str | int | float
Literal = str | float  # what a condition compares with: text, also that of a time, or a number

KEYWORDS = ("AND", "OR", "NOT", "IN", "BETWEEN", "LIKE", "IS", "NULL")
MILVUS_FIELDS = (
    "id",
    "uri",
    "content_hash",
    "width",
    "height",
    "bytes",
)  # never missing; every other column is a key of `meta`
TAGS_OF = ";"  # behind a column's name: the key of `meta` that lists the tags of its text


@dataclass(frozen=True, slots=True)
class Column:
    """A column that a filter may name."""

    name: str
    kind: str  # "number", "text" or "time": ISO-8601 text in UTC, 2026-11-02T09:30:00Z

    def of(self, record: Mapping[str, Value | None]) -> Value | None:
        """Its value in a record, as a table keeps it: None where missing, or where a number column has none."""
        value = record.get(self.name)
        if value is None or self.kind != "number":
            return None if value is None else str(value)
        return None if isinstance(value, str) or not math.isfinite(value) else value


class Engine(Protocol):
    """The conditions of which filters are made; where the column is missing none is true, inverse or not."""

    def joined(self, word: str, parts: Sequence[str]) -> str:
        """Conditions, or groups of them in brackets, under AND or OR."""
        ...

    def compare(self, column: Column, operator: str, value: Literal) -> str:
        """`operator` is one of = != < <= > >=."""
        ...

    def one_of(self, column: Column, values: Sequence[Literal], inverse: bool) -> str:
        """The column equals one of `values`."""
        ...

    def like(self, column: Column, pattern: str, inverse: bool) -> str:
        """The whole text fits a pattern as `like_elements` reads it."""
        ...

    def has(self, column: Column, tag: str, inverse: bool) -> str:
        """`tag` is among the tags of the text, see `split_tags`."""
        ...

    def missing(self, column: Column, inverse: bool) -> str:
        """There is no value."""
        ...


class Text:
    """Foveal's own language."""

    def joined(self, word: str, parts: Sequence[str]) -> str:
        return f" {word} ".join(parts)

    def operand(self, column: Column, values: Sequence[Literal]) -> str:
        """The column, as it stands beside literals."""
        return self.name(column)

    def name(self, column: Column) -> str:
        plain = re.fullmatch(r"[^\W\d]\w*", column.name) and column.name.upper() not in KEYWORDS
        return column.name if plain else '"' + column.name.replace('"', '""') + '"'

    def literal(self, value: Literal) -> str:
        return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else number_text(value)

    def compare(self, column: Column, operator: str, value: Literal) -> str:
        return f"{self.operand(column, [value])} {operator} {self.literal(value)}"

    def one_of(self, column: Column, values: Sequence[Literal], inverse: bool) -> str:
        return f"{self.operand(column, values)} {'NOT ' * inverse}IN ({', '.join(map(self.literal, values))})"

    def like(self, column: Column, pattern: str, inverse: bool) -> str:
        return f"{self.name(column)} {'NOT ' * inverse}LIKE {self.literal(pattern)}"

    def has(self, column: Column, tag: str, inverse: bool) -> str:
        return f"{'NOT ' * inverse}HAS({self.name(column)}, {self.literal(tag)})"

    def missing(self, column: Column, inverse: bool) -> str:
        return f"{self.name(column)} IS {'NOT ' * inverse}NULL"


class Lance(Text):
    """SQL as Lance's planner reads it: names in backticks, since it takes "x" for a text."""

    def operand(self, column: Column, values: Sequence[Literal]) -> str:
        """Cast where needed: Lance refuses to compare an integer column with a fraction."""
        return self.name(column) if _are_whole(values) else f"CAST({self.name(column)} AS DOUBLE)"

    def name(self, column: Column) -> str:
        return "`" + column.name.replace("`", "``") + "`"

    def one_of(self, column: Column, values: Sequence[Literal], inverse: bool) -> str:
        """Asks for a value beside NOT IN: DataFusion turns `a NOT IN (1) OR a NOT IN (2)` into true, missing or not."""
        found = super().one_of(column, values, inverse)
        return f"({self.missing(column, inverse=True)} AND {found})" if inverse else found

    def like(self, column: Column, pattern: str, inverse: bool) -> str:
        return super().like(column, "".join(like_elements(pattern)), inverse)

    def has(self, column: Column, tag: str, inverse: bool) -> str:
        escaped = re.sub(r"([\\.+*?()|\[\]{}^$])", r"\\\1", tag)
        return f"{'NOT ' * inverse}regexp_like({self.name(column)}, {self.literal(f'(^|;) *{escaped} *(;|$)')})"


class Milvus:
    """Expressions over the fields MILVUS_FIELDS and a JSON field `meta` as `milvus_meta` makes it.

    Milvus versions differ in what != and `not` make of a missing key (milvus#47164, milvus#50699), so the key's
    existence is asked for wherever that matters. A condition that Milvus does not have raises BadInput.
    """

    def joined(self, word: str, parts: Sequence[str]) -> str:
        return f" {word.lower()} ".join(parts)

    def compare(self, column: Column, operator: str, value: Literal) -> str:
        found = _milvus_compare(column, "==" if operator == "=" else operator, value)
        return _present(column, found) if operator == "!=" else found

    def one_of(self, column: Column, values: Sequence[Literal], inverse: bool) -> str:
        """As a chain of == or != beside a key of `meta`, where Milvus Lite has no `in`; the server makes it one."""
        if column.name in MILVUS_FIELDS:
            listed = ", ".join(_milvus_literal(column, value) for value in values)
            return f"{column.name} {'not ' * inverse}in [{listed}]"
        chain = [_milvus_compare(column, "!=" if inverse else "==", value) for value in values]
        return _present(column, " and ".join(chain)) if inverse else f"({' or '.join(chain)})"

    def like(self, column: Column, pattern: str, inverse: bool) -> str:
        """Without a backslash to find, whose escape Milvus reads in two ways. Milvus Lite has no escapes in `meta`."""
        elements = like_elements(pattern)
        if "\\\\" in elements:
            raise BadInput(
                f"LIKE {pattern!r} looks for a backslash, which Milvus does not match reliably",
                remedy="Write _ in its place: it stands for any one character.",
            )
        found = f"{_milvus_name(column)} like {_milvus_text(''.join(elements))}"
        return _present(column, f"not ({found})") if inverse else found

    def has(self, column: Column, tag: str, inverse: bool) -> str:
        if column.name in MILVUS_FIELDS:
            raise BadInput(f"Milvus finds no tags in {column.name}", remedy="Use = or LIKE, or another column.")
        name, text, tags = _milvus_key(column.name), _milvus_text(tag), _milvus_key(column.name + TAGS_OF)
        if not inverse:
            return f"({name} == {text} or json_contains({tags}, {text}))"
        return _present(column, f"{name} != {text} and (not exists {tags} or not json_contains({tags}, {text}))")

    def missing(self, column: Column, inverse: bool) -> str:
        if column.name in MILVUS_FIELDS:
            return f"{column.name} is {'not ' * inverse}null"
        return f"{'' if inverse else 'not '}exists {_milvus_name(column)}"


def milvus_meta(metadata: Mapping[str, Value]) -> dict[str, Value | list[str]]:
    """The JSON field `meta` of a record: its values by column, none missing, and the tags of texts that list several.

    In a number column there may be nothing but numbers.
    """
    tags = {name: split_tags(text) for name, text in metadata.items() if isinstance(text, str)}
    return {**metadata, **{name + TAGS_OF: found for name, found in tags.items() if found != [metadata[name]]}}


def split_tags(text: str) -> list[str]:
    """The tags in a text such as `night; rain`, without the spaces around them."""
    return [tag for part in text.split(";") if (tag := part.strip(" "))]


def like_elements(pattern: str) -> list[str]:
    r"""A LIKE pattern as its elements: `%`, `_`, a character, or one of `\%`, `\_`, `\\` standing for the second.

    A backslash makes the next character a plain one.
    """
    plain = {"%": "\\%", "_": "\\_", "\\": "\\\\"}
    found = (match[0] for match in re.finditer(r"\\.|.", pattern, re.DOTALL))
    return [element if element in ("%", "_") else plain.get(element[-1], element[-1]) for element in found]


def like_regex(pattern: str) -> re.Pattern[str]:
    """A LIKE pattern as a regular expression for `fullmatch`.

    Each stretch between two % is atomic, found at its first place and never sought again, so that no pattern takes
    more than (length of the text) x (length of the pattern) steps.
    """
    stretches = [""]
    for element in like_elements(pattern):
        if element == "%":
            stretches.append("")
        else:
            stretches[-1] += "." if element == "_" else re.escape(element[-1])
    if len(stretches) == 1:
        return re.compile(stretches[0], re.DOTALL)
    first, *middle, last = stretches
    return re.compile(f"{first}{''.join(f'(?>.*?{m})' for m in middle if m)}.*{last}", re.DOTALL)


def number_text(value: float) -> str:
    """A number as every engine reads it."""
    return str(int(value)) if _is_whole(value) else repr(value)


def _is_whole(value: float) -> bool:
    """Whether it is an integer that a float holds exactly."""
    return value.is_integer() and abs(value) < 2**53


def _are_whole(values: Sequence[Literal]) -> bool:
    return all(isinstance(value, str) or _is_whole(value) for value in values)


def _milvus_name(column: Column) -> str:
    return column.name if column.name in MILVUS_FIELDS else _milvus_key(column.name)


def _milvus_key(name: str) -> str:
    return f"meta[{_milvus_text(name)}]"


def _milvus_compare(column: Column, operator: str, value: Literal) -> str:
    return f"{_milvus_name(column)} {operator} {_milvus_literal(column, value)}"


def _milvus_literal(column: Column, value: Literal) -> str:
    if column.name in MILVUS_FIELDS and not _are_whole([value]):
        raise BadInput(f"Milvus compares {column.name} with integers only", remedy="Leave out the fraction.")
    return _milvus_text(value) if isinstance(value, str) else number_text(value)


def _milvus_text(text: str) -> str:
    """With the escapes that the server and Milvus Lite share; other characters stand for themselves."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return f'"{text.translate(str.maketrans(escapes))}"'


def _present(column: Column, condition: str) -> str:
    """`condition`, and that there is a value."""
    return condition if column.name in MILVUS_FIELDS else f"(exists {_milvus_name(column)} and {condition})"
