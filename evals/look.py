"""The project's look, shared by reports and the demo: colours in light and dark, the mark, pictures as data URIs.

Text colours reach a contrast of 4.5:1 or more on their background in both schemes. Data colours are the Okabe-Ito set
(doi 10.1038/nmeth.1618), darkened for paper and lightened for night, told apart by people with any colour vision.
"""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING

from foveal.detections import Detections

if TYPE_CHECKING:
    from PIL.Image import Image

FONT = '"IBM Plex Sans", "Inter", "Segoe UI", system-ui, -apple-system, "Helvetica Neue", Arial, sans-serif'
MONO = '"IBM Plex Mono", ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, monospace'

# name -> (light, dark); written out as CSS custom properties `--name`.
COLOURS: dict[str, tuple[str, str]] = {
    "paper": ("#fafbfa", "#101416"),
    "card": ("#ffffff", "#181d20"),
    "well": ("#f0f3f2", "#20272a"),
    "ink": ("#14191b", "#e8edec"),
    "soft": ("#56625f", "#9fadaa"),
    "line": ("#dbe2e0", "#2e373a"),
    "accent": ("#0b6b63", "#54cbbb"),
    "on-accent": ("#ffffff", "#04211e"),
    "good": ("#156c39", "#69d092"),
    "warn": ("#8a5300", "#efb45c"),
    "bad": ("#b3261e", "#ff968c"),
    "s1": ("#0068a8", "#62b5ee"),
    "s2": ("#c04f00", "#f2924d"),
    "s3": ("#007a5a", "#43c79f"),
    "s4": ("#a8457c", "#e292bd"),
    "s5": ("#8f6b00", "#e3c14e"),
    "s6": ("#5b52b5", "#aaa2f2"),
}
SERIES = ("s1", "s2", "s3", "s4", "s5", "s6")

Rectangle = tuple[float, float, float, float]  # xyxy

# Boxes lie on pictures, so these do not change with the scheme; neighbours in the list differ in hue and lightness.
BOX_COLOURS = (
    "#00a5ff",
    "#ff8a1f",
    "#2bd48f",
    "#ff5fa8",
    "#ffd43b",
    "#9d8cff",
    "#ff5c4d",
    "#5ee0e6",
    "#b6e34a",
    "#e08cff",
    "#f7b7a3",
    "#7fb2ff",
)


def variables(scheme: int) -> str:
    """The custom properties of one scheme: 0 is light, 1 is dark."""
    return ";".join(f"--{name}:{pair[scheme]}" for name, pair in COLOURS.items())


def mark(size: int = 28) -> str:
    """The project's mark, inline SVG: rings that fade outwards around one sharp point."""
    rings = "".join(
        f'<circle cx="16" cy="16" r="{radius}" fill="none" stroke="currentColor" stroke-width="{width}" '
        f'opacity="{opacity}"/>'
        for radius, width, opacity in ((14.5, 1, 0.28), (11, 1.4, 0.5), (7.4, 1.8, 0.8))
    )
    return (
        f'<svg class="mark" width="{size}" height="{size}" viewBox="0 0 32 32" aria-hidden="true">{rings}'
        f'<circle cx="16" cy="16" r="3.6" fill="var(--accent)"/></svg>'
    )


def box_colour(label: int) -> str:
    """The colour of a class by its index."""
    return BOX_COLOURS[label % len(BOX_COLOURS)]


def data_uri(image: Image, max_side: int = 320, quality: int = 82) -> str:
    """The picture as a WebP data URI, shrunk to at most `max_side` pixels on its longer side."""
    small = image.convert("RGB")
    if max(small.size) > max_side:
        small.thumbnail((max_side, max_side))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=quality, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def boxes_svg(
    size: tuple[int, int],
    detections: Detections,
    *,
    href: str | None = None,
    reuse: str | None = None,
    alt: str = "",
    weight: float = 1.0,
) -> str:
    """A picture with its boxes as vector lines, sharp at any zoom.

    Args:
        size: width and height of the image whose pixels the boxes are in.
        href: the picture to draw underneath; `reuse` instead names the id of one already in the document.
        alt: what a screen reader says; the detections are added to it.
        weight: of strokes and type; less than 1 where the picture is shown large.
    """
    width, height = size
    unit = weight * max(width, height) / 100  # strokes and type scale with the picture's longer side
    shapes: list[str] = []
    tags: list[str] = []
    taken: list[Rectangle] = []
    shown = detections.probabilities if detections.probabilities is not None else detections.scores
    for (x1, y1, x2, y2), label, name, score in zip(
        detections.boxes.tolist(), detections.labels.tolist(), detections.label_names, shown.tolist(), strict=True
    ):
        colour, text = box_colour(label), f"{name} {score:.2f}" if score < 1 else name
        box = f'x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}"'
        shapes.append(
            f'<g><title>{escape(text)}</title><rect {box} fill="{colour}" fill-opacity=".06" stroke="#000a" '
            f'stroke-width="{unit * 1.2:.2f}"/><rect {box} fill="none" stroke="{colour}" '
            f'stroke-width="{unit * 0.65:.2f}"/></g>'
        )
        type_size, pad = unit * 3.6, unit * 0.7
        tag_width, tag_height = len(text) * type_size * 0.54 + 2 * pad, type_size * 1.32
        left, top, right, _ = _place((x1, y1, x2, y2), (tag_width, tag_height), (width, height), taken)
        taken.append((left, top, right, top + tag_height))
        tags.append(
            f'<g class="tag"><rect x="{left:.1f}" y="{top:.1f}" width="{tag_width:.1f}" height="{tag_height:.1f}" '
            f'fill="{colour}" rx="{unit * 0.4:.1f}"/><text x="{left + pad:.1f}" y="{top + tag_height * 0.76:.1f}" '
            f'font-size="{type_size:.1f}" textLength="{tag_width - 2 * pad:.1f}" lengthAdjust="spacingAndGlyphs" '
            f'fill="#0d1113">{escape(text)}</text></g>'
        )
    if reuse is not None:
        picture = f'<use href="#{escape(reuse)}"/>'
    else:
        picture = f'<image href="{escape(href or "")}" width="{width}" height="{height}" preserveAspectRatio="none"/>'
    said = f"{alt}: " if alt else ""
    said += ", ".join(detections.label_names) if len(detections) else "no detections"
    return (
        f'<svg class="boxes" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(said)}">'
        f"{picture}{''.join(shapes)}{''.join(tags)}</svg>"
    )


def _place(box: Rectangle, tag: tuple[float, float], image: tuple[int, int], taken: list[Rectangle]) -> Rectangle:
    """Where a box's tag covers the least of the tags already placed: above, below or within it, left or right."""
    x1, y1, x2, y2 = box
    width, height = tag
    spots: list[Rectangle] = []
    for top in (y1 - height, y2, y1, y2 - height):
        for left in (x1, x2 - width):
            x = max(0.0, min(left, image[0] - width))
            y = max(0.0, min(top, image[1] - height))
            spots.append((x, y, x + width, y + height))

    def covered(spot: Rectangle) -> float:
        return sum(
            max(0.0, min(spot[2], other[2]) - max(spot[0], other[0]))
            * max(0.0, min(spot[3], other[3]) - max(spot[1], other[1]))
            for other in taken
        )

    return min(spots, key=covered)  # the first of equals: above left
