"""Attributes of boxes in annotation tools: which there are, and under which names the tools hold them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from foveal.detections import Detections

Schema = Mapping[str, Mapping[str, Sequence[str]]]  # class -> attribute -> its values
UNSET = "__undefined__"  # what a tool that must choose shows where nothing is known


def used(truths: Iterable[Detections | None]) -> dict[str, dict[str, list[str]]]:
    """The attributes and values that occur, as text, in order of appearance."""
    found: dict[str, dict[str, dict[str, None]]] = {}
    for truth in truths:
        if truth is not None and truth.attributes is not None:
            for label, attributes in zip(truth.label_names, truth.attributes, strict=True):
                for name, value in attributes.items():
                    found.setdefault(label, {}).setdefault(name, {})[as_text(value)] = None
    return {label: {name: list(v) for name, v in attributes.items()} for label, attributes in found.items()}


def as_text(value: str | int | float | bool) -> str:
    """A value as tools write it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def controls(schema: Schema) -> dict[tuple[str, ...], tuple[str, list[str], Sequence[str]]]:
    """One control an attribute, its attribute, the classes it is for, and the values to choose from.

    Its key is (attribute,) or, where classes differ in the values, (class, attribute).
    """
    found: dict[tuple[str, ...], tuple[str, list[str], Sequence[str]]] = {}
    for label, attributes in schema.items():
        for name, values in attributes.items():
            alike = all(list(values) == list(other[name]) for other in schema.values() if name in other)
            key = (name,) if alike else (label, name)
            found.setdefault(key, (name, [], values))[1].append(label)
    return found
