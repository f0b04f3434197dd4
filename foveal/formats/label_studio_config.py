"""The labelling configuration of a Label Studio project: which tags take boxes and outlines, and under what names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from foveal.errors import BadInput

KINDS = {"RectangleLabels": "rectanglelabels", "PolygonLabels": "polygonlabels"}


@dataclass(frozen=True, slots=True)
class Control:
    """A tag that takes regions of one kind on one image."""

    name: str  # `from_name` of its regions
    to_name: str  # the Image tag
    kind: str  # rectanglelabels or polygonlabels
    labels: dict[str, str]  # class of a model -> label of the project


@dataclass(frozen=True, slots=True)
class LabellingConfig:
    """What a project asks of a detector."""

    value: str  # the entry of a task's data that holds the image address
    rectangles: Control | None
    polygons: Control | None
    choices: frozenset[str] = field(default_factory=frozenset)  # names of its Choices tags

    @classmethod
    def parse(cls, text: str) -> LabellingConfig:
        """The first Image with RectangleLabels or PolygonLabels on it.

        A label answers to its own name and to those in `predicted_values` (comma separated), as in Label Studio's own
        backends.

        Raises:
            BadInput: not XML, or no tag that takes boxes or outlines of an image.
        """
        try:
            root = ElementTree.fromstring(text)
        except ElementTree.ParseError as error:
            raise BadInput(f"the labelling configuration is not XML: {error}", received=text[:60]) from error
        images = {tag.get("name", ""): tag.get("value", "") for tag in root.iter("Image")}
        found = [
            Control(tag.get("name", ""), tag.get("toName", ""), KINDS[tag.tag], _labels(tag))
            for tag in root.iter()
            if tag.tag in KINDS and tag.get("toName", "") in images
        ]
        if not found:
            raise BadInput(
                "the labelling configuration has nothing for a detector",
                expected="RectangleLabels or PolygonLabels over an Image",
                received=", ".join(dict.fromkeys(tag.tag for tag in root.iter())),
            )
        image = found[0].to_name
        mine = {control.kind: control for control in reversed(found) if control.to_name == image}
        choices = frozenset(tag.get("name", "") for tag in root.iter("Choices"))
        return cls(images[image].lstrip("$"), mine.get("rectanglelabels"), mine.get("polygonlabels"), choices)

    @property
    def labels(self) -> dict[str, str]:
        """Class of a model -> label of the project, over both tags."""
        both = (self.polygons, self.rectangles)
        return {name: label for control in both if control is not None for name, label in control.labels.items()}

    @property
    def names(self) -> list[str]:
        """The project's labels, in order."""
        return list(dict.fromkeys(self.labels.values()))

    def adopt(self, regions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Foveal's regions under this project's names; what it has no label or tag for is left out.

        An outline becomes a box where the project takes only boxes of its label, and a box an outline of four corners.
        """
        adopted: list[dict[str, Any]] = []
        kept: set[str] = set()
        for region in regions:
            if region["type"] == "choices":
                if region["id"] in kept and region["from_name"] in self.choices:
                    adopted.append({**region, "to_name": self._image})
                continue
            name = region["value"][region["type"]][0]
            fitting = [each for each in (self.rectangles, self.polygons) if each is not None and name in each.labels]
            if not fitting:
                continue
            control = next((each for each in fitting if each.kind == region["type"]), fitting[0])
            made = region if control.kind == region["type"] else _CHANGED[control.kind](region)
            kept.add(region["id"])
            value = {**made["value"], control.kind: [control.labels[name]]}
            adopted.append({**made, "from_name": control.name, "to_name": control.to_name, "value": value})
        return adopted

    @property
    def _image(self) -> str:
        control = self.rectangles or self.polygons
        assert control is not None
        return control.to_name


def _labels(tag: ElementTree.Element) -> dict[str, str]:
    labels: dict[str, str] = {}
    for label in tag.iter("Label"):
        name = label.get("value", "")
        for said in [*label.get("predicted_values", "").split(","), name]:
            if said.strip():
                labels.setdefault(said.strip(), name)
    return labels


def _boxed(region: dict[str, Any]) -> dict[str, Any]:
    """A polygon's region as the rectangle around it."""
    xs, ys = zip(*region["value"]["points"], strict=True)
    value = {"x": min(xs), "y": min(ys), "width": max(xs) - min(xs), "height": max(ys) - min(ys), "rotation": 0}
    return {**region, "type": "rectanglelabels", "value": value}


def _cornered(region: dict[str, Any]) -> dict[str, Any]:
    """An upright rectangle's region as the polygon of its corners."""
    x, y, width, height = (region["value"][name] for name in ("x", "y", "width", "height"))
    points = [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]
    return {**region, "type": "polygonlabels", "value": {"points": points, "closed": True}}


_CHANGED = {"rectanglelabels": _boxed, "polygonlabels": _cornered}
