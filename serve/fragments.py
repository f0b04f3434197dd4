"""The pieces of HTML that the demo's pages are made of; every text in them is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote

from evals import look
from foveal.detections import Detections
from foveal.errors import FovealError
from serve.items import Item

TEMPLATE = {ord("{"): "&#123;", ord("}"): "&#125;", ord("$"): "&#36;"}
CANVAS = "fv-canvas"
SHOWN_FACTS = 3  # metadata values under a picture


def text(value: object) -> str:
    """Text as HTML; braces and dollars too, because Gradio reads them as a template."""
    return html.escape(str(value)).translate(TEMPLATE)


def address(archive: str, id: str, side: int) -> str:
    """Where the API shows a picture of an archive."""
    return f"/v1/items/{quote(id)}/image?size={side}&archive={quote(archive)}"


def header(here: str, pages: Mapping[str, str], facts: Sequence[str]) -> str:
    """The bar on top: the mark, the pages (path -> title), what is served."""
    links = "".join(
        f'<a href="{text(path)}"{" aria-current=page" if title == here else ""}>{text(title)}</a>'
        for path, title in pages.items()
    )
    said = "".join(f"<span>{text(fact)}</span>" for fact in facts)
    brand = f'<a class="fv-brand" href="/">{look.mark(26)}Foveal</a>'
    return f'<header class="fv-bar">{brand}<nav>{links}</nav><p>{said}</p></header>'


def heading(title: str, lead: str) -> str:
    """A page's title and one sentence."""
    return f'<div class="fv-head"><h1>{text(title)}</h1><p>{text(lead)}</p></div>'


def status(parts: Iterable[str]) -> str:
    """A line of small facts."""
    return f'<p class="fv-status" role="status">{"".join(f"<span>{text(part)}</span>" for part in parts)}</p>'


def problem(error: FovealError) -> str:
    """An error as someone at a screen wants to read it."""
    lines = "".join(
        f"<dt>{name}</dt><dd>{text(value)}</dd>"
        for name, value in (("expected", error.expected), ("received", error.received))
        if value is not None
    )
    facts = f"<dl>{lines}</dl>" if lines else ""
    remedy = f"<p>{text(error.remedy)}</p>" if error.remedy else ""
    sentence = error.message[:1].upper() + error.message[1:]
    return f'<div class="fv-problem" role="alert"><b>{text(sentence)}.</b>{facts}{remedy}</div>'


def note(message: str) -> str:
    """What stands where there is nothing to show yet."""
    return f'<div class="fv-note">{text(message)}</div>'


def samples(archive: str, items: Sequence[Item], what: str) -> str:
    """Pictures of the archive to start from; `what` says what a click does."""
    return grid(card(archive, item.id, item.metadata, "", what) for item in items)


def strip(archive: str, items: Sequence[Item]) -> str:
    """A row of small pictures to try."""
    return (
        '<div class="fv-strip">'
        + "".join(button(archive, item.id, "try this picture", 160) for item in items)
        + "</div>"
    )


def picture(href: str | None, size: tuple[int, int], found: Detections) -> str:
    """A picture with its boxes; None draws that of the page's `canvas`."""
    reuse = None if href is not None else CANVAS
    svg = look.boxes_svg(size, found, href=href, reuse=reuse, alt="detections", weight=0.7)
    return f'<div class="fv-picture">{svg.translate(TEMPLATE)}</div>'


def canvas(href: str, size: tuple[int, int]) -> str:
    """A picture that is not shown itself, for several that are drawn over it."""
    width, height = size
    return (
        f'<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs><image id="{CANVAS}" '
        f'href="{text(href)}" width="{width}" height="{height}" preserveAspectRatio="none"/></defs></svg>'
    )


def column(title: str, model: str, facts: str, picture: str, below: str) -> str:
    """What one model made of a picture."""
    return (
        f'<section class="fv-column"><h2>{text(title)}<span>{text(facts)}</span></h2>'
        f"<p>{text(model)}</p>{picture}{below}</section>"
    )


def columns(made: Sequence[str]) -> str:
    """Several beside each other, as far as the screen is wide."""
    return f'<div class="fv-columns">{"".join(made)}</div>'


def chips(questions: Iterable[str]) -> str:
    """Questions to click on."""
    buttons = (f'<button type="button" data-id="{text(asked)}">{text(asked)}</button>' for asked in questions)
    return f'<div class="fv-chips">{"".join(buttons)}</div>'


def talk(turns: Sequence[tuple[str, str]]) -> str:
    """Questions with their answers, the newest on top."""
    said = "".join(f"<li><p>{text(asked)}</p><b>{text(answered)}</b></li>" for asked, answered in reversed(turns))
    return f'<ol class="fv-talk" role="log">{said}</ol>'


def citation(archive: str, id: str, said: str, *, supports: bool, share: float) -> str:
    """A picture that was looked at, what the model says of it, and its share of the vote; a click asks about it."""
    agrees = "says so" if supports else "says something else" if share > 0 else "has no vote"
    return (
        f'<figure class="fv-card{"" if supports else " fv-against"}">'
        f"{button(archive, id, f'ask about this picture, which {agrees}', 384)}"
        f'<figcaption><div class="fv-score"><b>{text(said or "no answer")}</b></div>'
        f'<div class="fv-facts"><span>{agrees}</span><span>{share:.0%} of the vote</span></div></figcaption></figure>'
    )


def answer(question: str, said: str, because: str, cards: Sequence[str], *, sure: bool) -> str:
    """An answer from the archive with the pictures that were looked at; not `sure`: that it is not held there."""
    below = f'<p class="fv-because">{text(because[:1].upper() + because[1:])}.</p>' if because else ""
    return (
        f'<div class="fv-answer{"" if sure else " fv-none"}" role="status"><p>{text(question)}</p><b>{text(said)}</b>'
        f"{below}{grid(cards) if cards else ''}</div>"
    )


def table(found: Detections) -> str:
    """The detections as a table, best first."""
    if not len(found):
        return note("Nothing above this threshold.")
    calibrated = found.probabilities is not None
    shown = found.probabilities if found.probabilities is not None else found.scores
    routes = [origin.route or "" for origin in found.provenance] if found.provenance else [""] * len(found)
    rows = "".join(
        f'<tr><td><i style="background:{look.box_colour(label)}"></i>{text(name)}'
        f"{f' <small>{text(route)}</small>' if route else ''}</td>"
        f'<td><div><span class="fv-meter" style="--share:{score:.0%}"></span>{score:.2f}</div></td>'
        f"<td>{x2 - x1:.0f} &times; {y2 - y1:.0f}</td></tr>"
        for (x1, y1, x2, y2), label, name, score, route in zip(
            found.boxes.tolist(), found.labels.tolist(), found.label_names, shown.tolist(), routes, strict=True
        )
    )
    score_name = "probability" if calibrated else "score"
    return (
        f'<table class="fv-table"><thead><tr><th>class</th><th>{score_name}</th><th>size, px</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def grid(cards: Iterable[str]) -> str:
    """Cards side by side, as many as fit."""
    return f'<div class="fv-grid">{"".join(cards)}</div>'


def card(
    archive: str, id: str, metadata: Mapping[str, str | int | float], score: str, what: str, under: str = ""
) -> str:
    """A picture of the archive with what is known of it; `what` says what a click does."""
    facts = "".join(
        f"<span title='{text(key)}'>{text(value)}</span>" for key, value in list(metadata.items())[:SHOWN_FACTS]
    )
    everything = text("\n".join(f"{key}: {value}" for key, value in metadata.items()))
    return (
        f'<figure class="fv-card" title="{everything}">{button(archive, id, what, 384)}'
        f'<figcaption><div class="fv-score">{score}</div><div class="fv-facts">{facts}</div>{under}'
        "</figcaption></figure>"
    )


def button(archive: str, id: str, what: str, side: int) -> str:
    """A picture of the archive to click on; `what` says what that does."""
    return (
        f'<button type="button" data-id="{text(id)}" aria-label="{text(what)}">'
        f'<img src="{text(address(archive, id, side))}" alt="" loading="lazy" width="{side}" height="{side}"></button>'
    )
