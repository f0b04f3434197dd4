"""The pieces of HTML of the search page; every text in them is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from retrieval.results import Hit
from serve.fragments import card, grid, note, text


def hits(
    archive: str,
    found: Sequence[Hit],
    reason: str | None = None,
    *,
    marks: Mapping[str, bool] | None = None,
    more: bool = False,
) -> str:
    """Search results as a grid, or why there are none; each picture is a button that looks for more like it.

    Args:
        marks: by id, whether a visitor finds the hit right; None: it cannot be marked.
        more: whether there are further ones to ask for.
    """
    if not found:
        return note(f"Nothing found: {reason}." if reason else "Nothing found.")
    top = max(found[0].similarity, 1e-6)
    cards = grid(_hit(archive, hit, top, marks) for hit in found)
    button = '<button type="button" class="fv-button" data-do="more">Show more</button>'
    return f'{cards}<p class="fv-more">{button}</p>' if more else cards


def nothing(reason: str | None) -> str:
    """That nothing matches, and the way to see the nearest all the same."""
    said = f"Nothing here matches: {reason}." if reason else "Nothing found."
    button = '<button type="button" class="fv-button" data-do="anyway">Show the nearest anyway</button>'
    return f'<div class="fv-note">{text(said)}{f"<p>{button}</p>" if reason else ""}</div>'


def marks(right: int, wrong: int, *, changed: bool, note: str = "") -> str:
    """How many hits are marked, and what can be done with the marks; empty where none are and none were."""
    if not (right or wrong or changed):
        return ""
    again = '<button type="button" class="fv-button fv-main" data-do="refine">Search again</button>'
    said = f"{right} right, {wrong} wrong"
    return (
        f'<div class="fv-marks" role="status"><span>{said}{f" <small>{text(note)}</small>" if note else ""}</span>'
        f'{again if changed else ""}<button type="button" class="fv-button" data-do="forget">Clear</button></div>'
    )


def query_picture(href: str, region: Sequence[float] | None, *, uploaded: bool) -> str:
    """The picture that hits should be like, to draw a region on."""
    place = "hidden"
    if region is not None:
        x1, y1, x2, y2 = (100 * edge for edge in region)
        place = f'style="left:{x1:.2f}%;top:{y1:.2f}%;width:{x2 - x1:.2f}%;height:{y2 - y1:.2f}%"'
    said = "Like the marked part of this picture." if region is not None else "Like this picture."
    hint = "Drag over a part of it to look for that alone."
    hint += " An uploaded picture is not part of the link to this page." if uploaded else ""
    whole = '<button type="button" class="fv-button" data-do="whole">The whole picture</button>' if region else ""
    return (
        f'<div class="fv-query"><div class="fv-region" data-region><img src="{text(href)}" alt="what to look for" '
        f'draggable="false"><div class="fv-drawn" {place}></div></div><div><p><b>{text(said)}</b></p>'
        f'<p>{text(hint)}</p><p class="fv-buttons">{whole}'
        '<button type="button" class="fv-button" data-do="remove">Without the picture</button></p></div></div>'
    )


def link(href: str, *, still: bool = False) -> str:
    """The address of what is on the page, to share; with `still` the browser is at that address already."""
    at = f'<a href="{text(href)}"{" data-still" if still else ""}>'
    return f"{at}</a>" if href == "?" else f'<p class="fv-link">{at}Link to this search</a></p>'


def _hit(archive: str, hit: Hit, top: float, marks: Mapping[str, bool] | None) -> str:
    """A hit: how sure, what a visitor thinks of it, and why it is here."""
    sure, share = (
        (f"{hit.similarity:.3f}", hit.similarity / top)
        if hit.probability is None
        else (f"{hit.probability:.0%}", hit.probability)
    )
    what = f"similarity {hit.similarity:.3f}" if hit.probability is None else f"probability {hit.probability:.0%}"
    score = (
        f'<span class="fv-meter" style="--share:{max(0.0, min(1.0, share)):.0%}"></span><b title="{what}">{sure}</b>'
    )
    mark = marks.get(hit.id) if marks is not None else None
    votes = "" if marks is None else _vote(hit.id, True, mark is True) + _vote(hit.id, False, mark is False)
    return card(
        archive, hit.id, hit.metadata, score, f"more like this one, {what}",
        f'<div class="fv-under"><div class="fv-votes">{votes}</div>{_why(hit)}</div>',
    )  # fmt: skip


def _vote(id: str, right: bool, on: bool) -> str:
    said, drawn = ("right", "M4 12.5l5 5L20 6.5") if right else ("wrong", "M6 6l12 12M18 6L6 18")
    return (
        f'<button type="button" data-do="{said}" data-id="{text(id)}" aria-pressed="{str(on).lower()}" '
        f'aria-label="this one is {said}" title="{said}"><svg viewBox="0 0 24 24" aria-hidden="true">'
        f'<path d="{drawn}"/></svg></button>'
    )


def _why(hit: Hit) -> str:
    """Why a hit is here: what each part of the query adds, the words that match, what it stands for."""
    rows = [f"<dt>{text(one.part)}</dt><dd>{one.amount:+.3f}</dd>" for one in hit.parts]
    rows += [f"<dt>similarity</dt><dd>{hit.similarity:.3f}</dd>"]
    rows += [f"<dt>probability</dt><dd>{hit.probability:.1%}</dd>"] if hit.probability is not None else []
    rows += [f"<dt>words</dt><dd>{text(', '.join(hit.keywords))}</dd>"] if hit.keywords else []
    rows += [f"<dt>near-duplicates</dt><dd>{hit.collapsed}</dd>"] if hit.collapsed else []
    more = f"+{hit.collapsed} alike" if hit.collapsed else "why"
    return f'<details class="fv-why"><summary>{more}</summary><dl>{"".join(rows)}</dl></details>'
