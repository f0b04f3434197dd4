"""The arithmetic a bar may state: numbers, dotted metric names, `+ - * /` and parentheses; nothing is executed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator

from foveal.errors import BadInput

TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?)(?![\w.])|(?P<path>[A-Za-z_]\w*(?:\.\w+)*)|(?P<sign>[-+*/()]))"
)
Token = tuple[str, str]  # (kind, text), kind one of number, path, sign


def evaluate(expression: str, value_of: Callable[[str], float]) -> float:
    """Arithmetic (`+ - * /`, parentheses) over numbers and dotted paths, each path read through `value_of`.

    Raises:
        BadInput: the expression is malformed, divides by zero, or a path has no value.
    """
    tokens = list(_tokens(expression))
    value, rest = _sum(tokens, value_of, expression)
    if rest:
        raise BadInput(f"cannot read the bar {expression!r}", received=f"{rest[0][1]!r} where it should end")
    if math.isinf(value):
        raise BadInput(f"the bar {expression!r} is not finite")
    return value


def _tokens(expression: str) -> Iterator[Token]:
    at = 0
    while expression[at:].strip():
        found = TOKEN.match(expression, at)
        if found is None or found.lastgroup is None:
            raise BadInput(
                f"cannot read the bar {expression!r}",
                expected="numbers, dotted metric names and + - * / ( )",
                received=repr(expression[at:].strip()[:20]),
            )
        yield found.lastgroup, found.group(found.lastgroup)
        at = found.end()


def _sum(tokens: list[Token], value_of: Callable[[str], float], whole: str) -> tuple[float, list[Token]]:
    value, rest = _product(tokens, value_of, whole)
    while rest and rest[0][1] in "+-":
        sign = rest[0][1]
        term, rest = _product(rest[1:], value_of, whole)
        value = value + term if sign == "+" else value - term
    return value, rest


def _product(tokens: list[Token], value_of: Callable[[str], float], whole: str) -> tuple[float, list[Token]]:
    value, rest = _factor(tokens, value_of, whole)
    while rest and rest[0][1] in "*/":
        sign = rest[0][1]
        factor, rest = _factor(rest[1:], value_of, whole)
        if sign == "/" and factor == 0:
            raise BadInput(f"the bar {whole!r} divides by zero")
        value = value * factor if sign == "*" else value / factor
    return value, rest


def _factor(tokens: list[Token], value_of: Callable[[str], float], whole: str) -> tuple[float, list[Token]]:
    if not tokens:
        raise BadInput(f"cannot read the bar {whole!r}", expected="a number or metric at its end")
    (kind, text), rest = tokens[0], tokens[1:]
    if kind == "number":
        return float(text), rest
    if kind == "path":
        return value_of(text), rest
    if text == "-":
        value, rest = _factor(rest, value_of, whole)
        return -value, rest
    if text == "(":
        value, rest = _sum(rest, value_of, whole)
        if rest and rest[0][1] == ")":
            return value, rest[1:]
        raise BadInput(f"cannot read the bar {whole!r}", expected="a closing parenthesis")
    raise BadInput(f"cannot read the bar {whole!r}", received=f"{text!r} where a number or metric should stand")
