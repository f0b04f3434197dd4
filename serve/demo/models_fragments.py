"""The pieces of HTML of the models page; every text in them is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from foveal.schemas import AliasEvent, RolloutCard, VersionCard
from serve.drift import FIRST, LEAST
from serve.fragments import text
from serve.model_figures import Cost, Drifted

SHIFT = 0.25  # population stability index from which a change is called a shift
SCALE = 0.5  # at the end of the drift's bar, so that the mark stands in its middle
SHORT = 12  # characters of a fingerprint
CLASSES = 12  # that are named
LATEST = 6  # events that are shown
NONE = '<small aria-label="nothing yet">&ndash;</small>'


@dataclass(frozen=True, slots=True)
class Command:
    """What can be done to a model from a shell; without a line, `note` says why not."""

    what: str
    line: str = ""
    note: str = ""


def facts(name: str, kind: str, reference: str, fingerprint: str, classes: Sequence[str], dimension: int | None) -> str:
    """What a model is."""
    more = f" and {len(classes) - CLASSES} more" if len(classes) > CLASSES else ""
    named = f"{len(classes)} classes: {', '.join(classes[:CLASSES])}{more}" if classes else ""
    length = f"{dimension:,} dimensions" if dimension else ""
    said = "".join(f"<span>{text(one)}</span>" for one in (named, length) if one)
    return (
        f"<h2>{text(name)}<span>{text(kind.replace('-', ' '))}</span></h2><p><code>{text(reference)}</code>"
        f'<span title="{text(fingerprint)}">fingerprint <code>{text(fingerprint[:SHORT])}</code></span>{said}</p>'
    )


def model(facts: str, *parts: str) -> str:
    """One model with what is told of it."""
    return f'<section class="fv-model">{facts}{"".join(parts)}</section>'


def cost(spent: Cost) -> str:
    """What a model cost since the server started."""
    if spent.each is None or spent.together is None:
        return '<p class="fv-quiet">Nothing was asked of it since the server started.</p>'
    pairs = (
        (f"{spent.requests:,.0f}", "requests since the start"),
        (f"{spent.together:.1f}", "in a batch, on average"),
        (_seconds(spent.each), "of model time for one"),
        (_seconds(1000 * spent.each), "of model time for 1,000"),
    )
    figures = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for value, name in pairs)
    return f'<dl class="fv-figures">{figures}</dl>'


def versions(now: RolloutCard, drifts: Mapping[str, Drifted]) -> str:
    """The versions of a followed model, those that were taken back, and what is held against a new one."""
    heads = ("version", "role", "gate", "requests", "recent errors", "p50 / p95 ms", "disagreement", "drift")
    rows = "".join(_version(now, one, drifts.get(f"{now.name}@{one.version}")) for one in now.versions)
    out = "".join(
        f'<p class="fv-out"><b>Version {number} is out:</b> {text(reason)}.</p>'
        for number, reason in now.refused.items()
    )
    bars = now.bars
    rule = (
        f"A canary answers {now.share:.0%} of the requests. It is withdrawn, and a new version in production rolled "
        f"back, when clearly more than {bars['errors']:.1%} of its requests fail, its p95 is more than "
        f"{bars['latency']:g} times the other's, or it disagrees by more than {bars['disagreement']:g}; the last two "
        f"are judged from {bars['least']:,.0f} requests or pictures on."
    )
    return (
        f'<div class="fv-scroll" role="region" tabindex="0" aria-label="versions of {text(now.model)}">'
        f'<table class="fv-table fv-versions"><thead><tr>{"".join(f"<th>{head}</th>" for head in heads)}</tr></thead>'
        f'<tbody>{rows}</tbody></table></div>{out}<p class="fv-quiet">{text(rule)}</p>'
    )


def _version(now: RolloutCard, one: VersionCard, drifted: Drifted | None) -> str:
    previous = next((each.version for each in now.versions if each.role == "previous"), None)
    other = previous if one is now.versions[0] else now.versions[0].version  # production comes first
    gate = {True: ("good", "passed"), False: ("bad", "not passed"), None: ("quiet", "none")}[one.gate_passed]
    took = NONE if one.p50_ms is None or one.p95_ms is None else f"{one.p50_ms:,.1f} / {one.p95_ms:,.1f}"
    apart = NONE
    if one.disagreement is not None:
        pictures = "1 picture" if one.compared == 1 else f"{one.compared:,} pictures"
        apart = f"{one.disagreement:.2f} <small>from version {other} over {pictures}</small>"
    return (
        f'<tr><td title="{text(one.fingerprint)}"><b>{one.version}</b> '
        f"<small>{text(one.fingerprint[:SHORT])}</small></td>"
        f'<td><span class="fv-role" data-role="{one.role}">{one.role}</span></td>'
        f'<td class="fv-{gate[0]}">{gate[1]}</td>'
        f"<td>{one.asked:,}</td><td{' class=fv-bad' if one.errors else ''}>{one.errors:,}</td><td>{took}</td>"
        f"<td>{apart}</td><td>{_drift(drifted) if drifted else NONE}</td></tr>"
    )


def drift(drifted: Drifted) -> str:
    """The drift of a model that has no versions."""
    return f'<div class="fv-drift"><span>drift</span>{_drift(drifted)}</div>'


def _drift(drifted: Drifted) -> str:
    if not drifted.signals:
        return f"<small>not told yet ({drifted.pictures:,} recent)</small>"
    return "".join(
        f'<div class="fv-psi{" fv-shift" if value >= SHIFT else ""}"><span>{text(name)}</span>'
        f'<i style="--share:{min(1.0, max(0.0, value) / SCALE):.0%}"></i>'
        f"<span>{value:.2f}{', a shift' if value >= SHIFT else ''}</span></div>"
        for name, value in drifted.signals.items()
    )


def events(now: RolloutCard, moment: datetime) -> str:
    """The latest changes in the registry, in words, the newest first."""
    lines = "".join(
        f'<li>{text(_said(one))}, <time datetime="{one.at.isoformat()}">'
        f"{ago((moment - one.at).total_seconds())}</time></li>"
        for one in now.events[:LATEST]
    )
    return f'<h3>Latest in the registry</h3><ul class="fv-events">{lines}</ul>' if lines else ""


def _said(event: AliasEvent) -> str:
    if event.action == "rollback":
        what, why = f"{event.alias} went back to version {event.version}", event.reason
    elif event.action == "withdraw":
        what, why = f"version {event.version} was withdrawn as {event.alias}", event.reason
    else:
        what, why = f"version {event.version} became {event.alias}", event.reason and f"let through by {event.reason}"
    return f"{what}: {why}" if why else what


def ago(seconds: float) -> str:
    """A time in the past, for people."""
    if seconds < 60:
        return "just now"
    count, name = next(
        (int(seconds // size), name)
        for size, name in ((86_400, "day"), (3600, "hour"), (60, "minute"))
        if seconds >= size
    )
    return f"{count:,} {name}{'' if count == 1 else 's'} ago"


def commands(made: Sequence[Command]) -> str:
    """What can be done from a shell, each line with a button that copies it."""
    lines = "".join(
        f'<div class="fv-command"><span>{text(one.what)}'
        f"{f' <small>{text(one.note)}</small>' if one.note else ''}</span>"
        + (
            f'<code tabindex="0">{text(one.line)}</code>'
            f'<button type="button" class="fv-button" data-copy aria-label="copy: {text(one.what)}">Copy</button>'
            if one.line
            else ""
        )
        + "</div>"
        for one in made
    )
    return f'<h3>To change this, in a shell</h3><div class="fv-commands">{lines}</div>'


def legend() -> str:
    """What the figures mean."""
    said = (
        "Model time is what a model spent computing: waiting, reading pictures and answers from the cache are not in "
        "it, comparisons of versions are, and count as requests. 12 s for 1,000 requests means that one such model, "
        "kept busy, answers about 83 requests a second on this machine, each in a batch as large as the mean.",
        "Drift compares recent pictures with those that a model was measured on, by the population stability index. "
        f"The mark stands at {SHIFT}, from where it is a shift. It is told after {LEAST} pictures; of a detector whose "
        f"file brings no profile, the first {FIRST} are what later ones are compared with.",
        "Disagreement is one minus the F1 of a version's boxes against the other's: 0 where all match, 1 where none "
        "does.",
    )
    return f'<div class="fv-legend">{"".join(f"<p>{text(one)}</p>" for one in said)}</div>'


def _seconds(value: float) -> str:
    if value < 1:
        return f"{1000 * value:.3g} ms"
    return f"{value:,.3g} s" if value < 100 else f"{value:,.0f} s"
