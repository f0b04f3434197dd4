"""Which metrics and labels an expression of PromQL names, and which of them a server exports."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from prometheus_client.parser import text_string_to_metric_families

Labels = dict[str, set[str]]  # of each series name
OPERATORS = {"and", "or", "unless", "offset", "bool"}
SCRAPED: Labels = {"up": {"job", "instance"}}  # what Prometheus adds
EVERYWHERE = {"job", "instance"}


def exported(*texts: str) -> Labels:
    """Series name -> labels, of all samples in texts that /metrics answered."""
    found: Labels = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def _bare(expression: str) -> tuple[str, set[str]]:
    """(the expression without strings, grouping and Grafana's variables, the labels that it groups by)."""
    text = re.sub(r'"[^"]*"', '""', expression.replace("$__rate_interval", "5m"))
    grouping = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)")
    labels = {label.strip() for group in grouping.findall(text) for label in group.split(",")}
    return grouping.sub("", text), labels - {""}


def series(expression: str) -> Iterator[tuple[str, set[str]]]:
    """(series, labels that its matcher names) of an expression."""
    text, _ = _bare(re.sub(r"label_values\((.*), \w+\)", r"\1", expression))
    matchers: list[str] = []

    def keep(found: re.Match[str]) -> str:
        matchers.append(found[0])
        return f"\0{len(matchers) - 1}\0"

    text = re.sub(r"\{[^}]*\}", keep, text)
    for name, number in re.findall(r"(?<![\w.])([a-zA-Z_:][\w:]*)(?![\w:]*\s*\()(?:\0(\d+)\0)?", text):
        if name not in OPERATORS:
            yield name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers[int(number)])) if number else set()


def unknown(expressions: Iterable[str], known: Labels) -> list[str]:
    """What the expressions name and nobody exports: series, and labels of series."""
    wrong: list[str] = []
    for expression in expressions:
        named = list(series(expression))
        assert named, f"no series in {expression}"
        there = EVERYWHERE.union(*(known.get(name, set()) for name, _ in named))
        wrong += [f"{name} in {expression}" for name, _ in named if name not in known]
        for name, labels in named:
            strange = labels - known.get(name, labels) - EVERYWHERE
            wrong += [f"label {label} of {name} in {expression}" for label in strange]
        wrong += [f"label {label} in {expression}" for label in _bare(expression)[1] - there]
    return wrong
