r"""The filter language of image search: parsed here, compiled for Lance and Milvus, and evaluated in Python.

    camera = 'north' AND hour >= 18
    place IN ('yard', 'loading bay') OR taken BETWEEN '2026-11-02' AND '2026-11-02 09:30+02:00'
    NOT (HAS(tags, 'night') OR uri LIKE '%/draft\_%') AND INSIDE(59.2, 17.8, 59.5, 18.3)

A condition compares a column with literals by = == != <> < <= > >=, [NOT] IN, [NOT] BETWEEN, [NOT] LIKE or
IS [NOT] NULL; NOT, AND and OR combine conditions, and bind in this order. Keywords may be of either case. Text stands
in single quotes, a quote within it doubled; a column whose name is a keyword or has odd characters in double quotes.

- LIKE: % is any text, _ any one character, and a backslash makes the next character a plain one.
- The literal for a time is read as stored times are (`times.utc`): a date, or a date and time with or without offset,
  UTC without one, midnight if a bare date, to the second.
- `HAS(column, 'tag')`: the tag is one of those that the text lists, separated by ; with or without spaces around them.
- `INSIDE(lat_min, lon_min, lat_max, lon_max)`: `gps_lat` and `gps_lon` lie in this box of degrees, edges included,
  which crosses the antimeridian where lon_min > lon_max.
- As in SQL, a condition on a missing value is neither true nor false, and neither is its NOT.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from itertools import chain, repeat
from typing import NamedTuple

from foveal.errors import BadInput
from retrieval.filter_engines import KEYWORDS, Column, Literal, split_tags
from retrieval.filter_tree import COMPARE, Compare, Filter, Has, In, IsNull, Like, combined
from retrieval.times import utc

__all__ = ["Filter", "parse"]

MAX_LENGTH = 10_000  # characters
MAX_DEPTH = 100  # brackets and NOTs around a condition
MAX_LEVELS = 20  # ANDs and ORs within each other: Lance's parser takes 24 at worst
MAX_MEMBERS = 1_000  # of a list
SYNONYMS = {"==": "=", "<>": "!="}
LITERAL = {
    "number": "a number",
    "text": "a text in single quotes",
    "time": "a time such as '2026-11-02' or '2026-11-02 09:30:00+02:00'",
}


def parse(expression: str, columns: Mapping[str, str]) -> Filter:
    """The filter that an expression means over `columns`, name -> "number", "text" or "time".

    A column's name is taken as it is written, or else in any case if only one fits.

    Raises:
        BadInput: it is no filter over these columns, or larger than the limits above.
    """
    if not expression.strip() or len(expression) > MAX_LENGTH:
        raise BadInput(
            "the filter is empty or too long", expected=f"1 to {MAX_LENGTH} characters", received=str(len(expression))
        )
    if any("\ud800" <= character <= "\udfff" for character in expression):
        raise BadInput("the filter is not valid text", remedy="Type it in UTF-8.")
    return _Parser(expression, columns).whole()


class _Token(NamedTuple):
    kind: str  # number, text, name, word, sign, stray or end
    text: str
    at: int  # counted from 1


_TOKENS = re.compile(
    r"""\s+
    | (?P<number> [+-]? (?:[0-9]+\.?[0-9]* | \.[0-9]+) (?:[eE][+-]?[0-9]+)? (?![\w.]) )
    | (?P<text> '(?:[^']|'')*' )
    | (?P<name> "(?:[^"]|"")+" )
    | (?P<word> [^\W\d]\w* )
    | (?P<sign> <> | [=!<>]= | [=<>(),] )
    | (?P<stray> . )
    """,
    re.VERBOSE | re.DOTALL,
)


class _Parser:
    """One rule of the grammar a method; each leaves `_token` behind what it has read."""

    def __init__(self, expression: str, columns: Mapping[str, str]) -> None:
        self._expression, self._columns = expression, columns
        read = (_Token(m.lastgroup, m[0], m.start() + 1) for m in _TOKENS.finditer(expression) if m.lastgroup)
        self._tokens = chain(read, repeat(_Token("end", "the end", len(expression) + 1)))
        self._token = next(self._tokens)

    # Grammar.

    def whole(self) -> Filter:
        found = self._any(0)
        if self._token.kind != "end":
            raise self._unexpected("AND, OR or the end")
        if found.depth > MAX_LEVELS:
            raise self._wrong("it is nested too deeply", f"at most {MAX_LEVELS} ANDs and ORs within each other")
        return found

    def _any(self, depth: int) -> Filter:
        parts = [self._every(depth)]
        while self._takes("OR"):
            parts.append(self._every(depth))
        return combined("OR", parts)

    def _every(self, depth: int) -> Filter:
        parts = [self._single(depth)]
        while self._takes("AND"):
            parts.append(self._single(depth))
        return combined("AND", parts)

    def _single(self, depth: int) -> Filter:
        if depth > MAX_DEPTH:
            raise self._wrong("it is nested too deeply", f"at most {MAX_DEPTH} brackets and NOTs within each other")
        if self._takes("NOT"):
            return self._single(depth + 1).negated()
        if not self._takes("("):
            return self._condition()
        found = self._any(depth + 1)
        self._requires(")")
        return found

    def _condition(self) -> Filter:
        name = self._next()
        if name.kind == "word" and name.text.upper() not in KEYWORDS and self._takes("("):
            return self._function(name.text)
        column = self._column(name)
        if sign := self._takes(*COMPARE, *SYNONYMS):
            return Compare(column, SYNONYMS.get(sign, sign), self._literal(column))
        if self._takes("IS"):
            inverse = bool(self._takes("NOT"))
            self._requires("NULL")
            return IsNull(column, inverse)
        inverse = bool(self._takes("NOT"))
        found = self._worded(column)
        return found.negated() if inverse else found

    def _worded(self, column: Column) -> Filter:
        if self._takes("IN"):
            self._requires("(")
            return In(column, self._literals(column))
        if self._takes("BETWEEN"):
            low = self._literal(column)
            self._requires("AND")
            return combined("AND", [Compare(column, ">=", low), Compare(column, "<=", self._literal(column))])
        if self._takes("LIKE"):
            return Like(self._of_kind(column, "text", "time"), self._text("a pattern in single quotes"))
        raise self._unexpected("an operator such as = or IN (a column alone is not a boolean condition)")

    def _function(self, name: str) -> Filter:
        if name.upper() == "INSIDE":
            return self._inside()
        if name.upper() != "HAS":
            raise self._wrong(f"there is no function {name}", "HAS or INSIDE")
        column = self._of_kind(self._column(self._next()), "text")
        self._requires(",")
        tag = self._text("a tag in single quotes").strip(" ")
        self._requires(")")
        if split_tags(tag) != [tag]:
            raise self._wrong("HAS looks for one tag", "a text without ;", received=repr(tag))
        return Has(column, tag)

    def _inside(self) -> Filter:
        lat, lon = (self._of_kind(self._named(name), "number") for name in ("gps_lat", "gps_lon"))
        box = [float(value) for value in self._literals(lat)]
        if len(box) != 4 or not (-90 <= box[0] <= box[2] <= 90 and -180 <= min(box[1::2]) <= max(box[1::2]) <= 180):
            raise self._wrong(
                "INSIDE holds no box",
                "INSIDE(lat_min, lon_min, lat_max, lon_max) in degrees, lat_min <= lat_max",
                received=", ".join(f"{value:g}" for value in box),
            )
        south, west, north, east = box
        lats = Compare(lat, ">=", south), Compare(lat, "<=", north)
        lons = Compare(lon, ">=", west), Compare(lon, "<=", east)
        return combined("AND", [*lats, combined("AND" if west <= east else "OR", lons)])

    # Words of the grammar.

    def _literals(self, column: Column) -> tuple[Literal, ...]:
        """One or more, behind their opening bracket."""
        found = [self._literal(column)]
        while self._takes(","):
            found.append(self._literal(column))
        self._requires(")")
        if len(found) > MAX_MEMBERS:
            raise self._wrong("a list is too long", f"at most {MAX_MEMBERS} values", received=str(len(found)))
        return tuple(found)

    def _literal(self, column: Column) -> Literal:
        token, wanted = self._token, LITERAL[column.kind]
        if token.text.upper() == "NULL":
            raise self._unexpected(wanted, f"Write {column.name} IS NULL.")
        if token.kind in ("name", "word"):
            raise self._unexpected(wanted, f"Put text in single quotes: '{token.text.strip(chr(34))}'.")
        if token.kind not in ("number", "text"):
            raise self._unexpected(wanted)
        found = _read(self._next(), column.kind)
        if found is None:
            remedy = {"number": "Write a number without quotes.", "text": "Put it in single quotes."}.get(column.kind)
            raise self._wrong(f"{column.name} is a {column.kind} column", wanted, token.text, remedy)
        return found

    def _text(self, wanted: str) -> str:
        if self._token.kind != "text":
            raise self._unexpected(wanted)
        return _unquoted(self._next())

    def _of_kind(self, column: Column, *kinds: str) -> Column:
        if column.kind not in kinds:
            raise self._wrong(f"{column.name} is a {column.kind} column", f"a column of {' or '.join(kinds)}")
        return column

    def _column(self, token: _Token) -> Column:
        if token.kind not in ("name", "word") or (token.kind == "word" and token.text.upper() in KEYWORDS):
            raise self._unexpected("a column", token=token)
        return self._named(_unquoted(token) if token.kind == "name" else token.text)

    def _named(self, name: str) -> Column:
        fold = name.casefold()
        same = [name] if name in self._columns else [known for known in self._columns if known.casefold() == fold]
        if len(same) == 1:
            return Column(same[0], self._columns[same[0]])
        close = same or difflib.get_close_matches(name, self._columns, n=1)
        remedy = f"Did you mean {' or '.join(close)}?" if close else None
        raise self._wrong(f"there is no column {name}", f"conditions {self._over()}", remedy=remedy)

    # Tokens and errors.

    def _next(self) -> _Token:
        token, self._token = self._token, next(self._tokens)
        return token

    def _takes(self, *words: str) -> str:
        """The word or sign that comes next, if it is one of these; otherwise nothing."""
        word = self._token.text.upper()
        if self._token.kind not in ("word", "sign") or word not in words:
            return ""
        self._next()
        return word

    def _requires(self, word: str) -> None:
        if not self._takes(word):
            raise self._unexpected(word)

    def _unexpected(self, wanted: str, remedy: str | None = None, token: _Token | None = None) -> BadInput:
        token = token or self._token
        open_quote = " that nothing closes" if token.text in ("'", '"') else ""
        reason = f"it cannot be read at character {token.at}"
        return self._wrong(reason, f"{wanted} there, {self._over()}", token.text + open_quote, remedy)

    def _wrong(self, reason: str, expected: str, received: str | None = None, remedy: str | None = None) -> BadInput:
        shown = self._expression if len(self._expression) <= 200 else self._expression[:200] + "..."
        return BadInput(f"filter {shown!r}: {reason}", expected=expected, received=received, remedy=remedy)

    def _over(self) -> str:
        return "over " + ", ".join(f"{name} ({kind})" for name, kind in self._columns.items())


def _unquoted(token: _Token) -> str:
    quote = token.text[0]
    return token.text[1:-1].replace(quote * 2, quote)


def _read(token: _Token, kind: str) -> Literal | None:
    """The value of a number or text beside a column of a kind, or None if it is not of that kind."""
    if kind == "number":
        number = float(token.text) + 0.0 if token.kind == "number" else math.inf  # -0.0 becomes 0.0
        return number if math.isfinite(number) else None
    if token.kind != "text":
        return None
    return _unquoted(token) if kind == "text" else utc(_unquoted(token))
