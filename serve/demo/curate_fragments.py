"""The pieces of HTML of the curate page; every text in them is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from serve.fragments import address, note, text

SIDE = 320  # pixels of a picture


def findings(made: Sequence[str], more: bool, none: str, *, grid: bool = False) -> str:
    """Everything that was found, as far as it is shown, or that there is `none`."""
    if not made:
        return note(none)
    button = '<button type="button" class="fv-button" data-do="more">Show more</button>'
    kind = "fv-grid" if grid else "fv-groups"
    return f'<div class="{kind}">{"".join(made)}</div>{f"""<p class="fv-more">{button}</p>""" if more else ""}'


def copies(archive: str, keep: str, rest: Sequence[str], exact: bool) -> str:
    """One picture and its copies."""
    what = "equal files" if exact else "nearly alike"
    cards = _picture(archive, keep, "stays") + "".join(_picture(archive, id, "copy") for id in rest)
    return _group(f"{1 + len(rest)} {what}", cards, _ask(rest, "Take the copies out"))


def odd(archive: str, id: str, nearest: str, score: float) -> str:
    """A picture that lies apart, with the one that is most like it."""
    return (
        f'<figure class="fv-card">{_link(archive, id)}<figcaption><div class="fv-score"><b>{score:.2f}</b></div>'
        f'<div class="fv-nearest"><a href="/?like={quote(nearest)}"><img src="{text(address(archive, nearest, 96))}" '
        'alt="" loading="lazy"><span>the one most like it</span></a></div>'
        f"{_ask([id], 'Take it out')}</figcaption></figure>"
    )


def cluster(archive: str, ids: Sequence[str], names: Sequence[str], size: int, share: float) -> str:
    """What many pictures have in common, by those that stand for them."""
    title = " / ".join(names) or "no name in its texts"
    return _group(title, "".join(_picture(archive, id, "") for id in ids), "", f"{size:,} pictures, {share:.0%}")


def question(archive: str, ids: Sequence[str], may: bool) -> str:
    """Whether pictures shall leave the archive."""
    if not may:
        return note("This key may look, and not take pictures out; a key with the verb write may.")
    shown = "".join(
        f'<img src="{text(address(archive, id, 96))}" alt="" width="64" height="64">' for id in list(ids)[:12]
    )
    count = "this picture" if len(ids) == 1 else f"these {len(ids):,} pictures"
    return (
        '<div class="fv-ask-first" role="alertdialog" aria-label="to confirm">'
        f"<p><b>Take {count} out of the archive?</b> "
        f"No search will find {'it' if len(ids) == 1 else 'them'} again. Files stay where they are, but for those "
        "sent to this server, which are deleted. This cannot be undone here.</p>"
        f'<div class="fv-thumbs">{shown}</div><p class="fv-buttons">'
        '<button type="button" class="fv-button fv-main" data-do="yes">Take out</button>'
        '<button type="button" class="fv-button" data-do="no">Leave in</button></p></div>'
    )


def _group(title: str, cards: str, button: str, facts: str = "") -> str:
    return (
        f'<section class="fv-group"><h2>{text(title)}<span>{text(facts)}</span>{button}</h2>'
        f'<div class="fv-row">{cards}</div></section>'
    )


def _picture(archive: str, id: str, said: str) -> str:
    caption = f"<figcaption>{text(said)}</figcaption>" if said else ""
    return f"<figure>{_link(archive, id)}{caption}</figure>"


def _link(archive: str, id: str) -> str:
    """A picture; a click looks for more like it."""
    return (
        f'<a class="fv-tile" href="/?like={quote(id)}" aria-label="more like this one">'
        f'<img src="{text(address(archive, id, SIDE))}" alt="" loading="lazy"></a>'
    )


def _ask(ids: Sequence[str], said: str) -> str:
    return f'<button type="button" class="fv-button" data-do="ask" data-id="{text(",".join(ids))}">{said}</button>'
