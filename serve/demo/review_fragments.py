"""The pieces of HTML of the review page; every text in them is escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.look import box_colour
from foveal.detections import Detections
from serve.fragments import status, text

DIGITS = "1234567890"
CLOSER = 2.5  # how much larger than the box the closer look is


@dataclass(frozen=True, slots=True)
class Near:
    """A remembered crop that spoke for or against the label."""

    label: str
    similarity: float
    supports: bool
    href: str | None  # of its picture; None where that is not at hand


def progress(share: float, facts: Sequence[str]) -> str:
    """How far the review is."""
    return f'<div class="fv-progress"><span class="fv-meter" style="--share:{share:.1%}"></span>{status(facts)}</div>'


def missing(problem: str) -> str:
    """A picture that cannot be shown, and the way on."""
    return f'{problem}<p class="fv-buttons">{_button("back", "Back", "p")}{_button("next", "Next", "n")}</p>'


def undo() -> str:
    """The way back from the end."""
    return f'<p class="fv-buttons">{_button("undo", "Undo the last decision", "u")}</p>'


def panel(
    number: int,
    image: str,
    href: str,
    size: tuple[int, int],
    box: Sequence[float],
    label: str,
    record: Mapping[str, Any],
    decided: str | None,
    classes: Sequence[str],
    others: Detections,
    near: Sequence[Near],
) -> str:
    """The picture with its box to be moved, and what is known and to be decided.

    Args:
        box: xyxy pixels of a picture of `size` (width, height).
        record: what the job says of the box.
        decided: what a person said before.
        others: the picture's boxes besides.
    """
    case = text(json.dumps({"case": number, "box": [round(edge, 2) for edge in box], "label": label, "size": size}))
    chips = "".join(
        f'<button type="button" data-label="{text(name)}" aria-pressed="{str(name == label).lower()}">'
        f'<i style="background:{box_colour(place)}"></i>{text(name)}'
        f"{f'<kbd>{DIGITS[place]}</kbd>' if place < len(DIGITS) else ''}</button>"
        for place, name in enumerate(classes)
    )
    was = f'<p class="fv-was">This box was {text(decided)} before; deciding again replaces that.</p>' if decided else ""
    sides = "".join(_side(title, [one for one in near if one.supports is side]) for title, side in _SIDES)
    return (
        f'<div class="fv-review" data-case="{case}" data-start="{case}">'
        f'<div class="fv-stage">{_stage(href, size, others)}'
        f'<p class="fv-hint">Drag the box or its corners; arrow keys move it, with Shift they size it.</p></div>'
        f'<div class="fv-panel"><h2>{text(record["label"])}?<span>{record["probability"]:.0%} sure</span></h2>'
        f'<p class="fv-facts"><span>{text(image)}</span><span>{text(record["model"])}, score {record["score"]:.2f}'
        f"</span></p>{was}"
        f'<p class="fv-buttons">{_button("accept", "Accept", "a", main=True)}{_button("reject", "Reject", "r")}'
        f"{_button('undo', 'Undo', 'u')}{_button('back', 'Back', 'p')}{_button('next', 'Next', 'n')}</p>"
        f'<h3>Label</h3><div class="fv-labels">{chips}</div>'
        f'<h3>A closer look</h3><svg class="fv-closer" data-closer="{CLOSER}" role="img" aria-label="the box, larger">'
        f'<use href="#fv-stage-picture"/><rect data-mine fill="none"/></svg>{sides}</div></div>'
    )


_SIDES = (("Speak for it", True), ("Speak against it", False))


def _stage(href: str, size: tuple[int, int], others: Detections) -> str:
    width, height = size
    unit = max(width, height) / 100
    drawn = "".join(
        f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}" fill="none" stroke="#fff" '
        f'stroke-opacity=".55" stroke-width="{unit * 0.3:.2f}" stroke-dasharray="{unit:.1f}">'
        f"<title>{text(name)}</title></rect>"
        for (x1, y1, x2, y2), name in zip(others.boxes.tolist(), others.label_names, strict=True)
    )
    corners = "".join(
        f'<g data-corner="{corner}"><circle class="fv-touch" r="{unit * 4:.2f}"/><circle r="{unit * 1.3:.2f}"/></g>'
        for corner in ("00", "10", "11", "01")
    )
    return (
        f'<svg class="fv-picture" data-stage viewBox="0 0 {width} {height}" role="img" aria-label="the picture">'
        f'<image id="fv-stage-picture" href="{text(href)}" width="{width}" height="{height}" '
        f'preserveAspectRatio="none"/>{drawn}'
        f'<rect class="fv-edge" data-mine fill="none" stroke="#000a" stroke-width="{unit * 1.1:.2f}"/>'
        f'<rect class="fv-mine" data-mine stroke-width="{unit * 0.6:.2f}"/>{corners}</svg>'
    )


def _side(title: str, near: Sequence[Near]) -> str:
    if not near:
        return ""
    cards = "".join(
        f'<figure>{f"""<img src="{one.href}" alt="">""" if one.href else """<div class="fv-blank">no picture</div>"""}'
        f"<figcaption>{text(one.label)} <small>{one.similarity:.2f}</small></figcaption></figure>"
        for one in near
    )
    return f'<h3>{title}</h3><div class="fv-near">{cards}</div>'


def _button(do: str, said: str, key: str, *, main: bool = False) -> str:
    kind = "fv-button fv-main" if main else "fv-button"
    return f'<button type="button" class="{kind}" data-do="{do}">{said}<kbd>{key}</kbd></button>'
