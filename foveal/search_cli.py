"""`foveal archive search`: what `retrieval.query.SearchQuery` can ask, as options; and hits for people to read."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.options import ArchiveUri
from foveal.printing import Json, emit

if TYPE_CHECKING:
    from retrieval.query import Part, SearchQuery
    from retrieval.results import Hit, Results
    from retrieval.stores import AnyArchive

UNLIKE = 0.5  # the weight of what hits should be unlike, where none is given: `SearchQuery.negative_weight`
_WEIGHT = re.compile(r"\*\s*([-+]?[.,]?\d[\d.,]*(?:e[-+]?\d+)?)\s*$", re.IGNORECASE)

Several = list[str] | None


def add_to(app: typer.Typer) -> None:
    """Registers the command of this module."""
    app.command("search")(archive_search)


def archive_search(
    archive: ArchiveUri,
    text: Annotated[
        Several,
        typer.Option(
            metavar="TEXT",
            help='What to look for, in words. This and the next five repeat, and take a weight: "rust*0.5".',
        ),
    ] = None,
    image: Annotated[Several, typer.Option(metavar="FILE", help="An image to look like.")] = None,
    id: Annotated[Several, typer.Option(metavar="ID", help="An image of the archive to look like.")] = None,
    not_text: Annotated[Several, typer.Option(metavar="TEXT", help="What to keep away from, in words.")] = None,
    not_image: Annotated[Several, typer.Option(metavar="FILE", help="An image to keep away from.")] = None,
    not_id: Annotated[Several, typer.Option(metavar="ID", help="An image of the archive to keep away from.")] = None,
    box: Annotated[
        str | None, typer.Option(metavar="X1,Y1,X2,Y2", help="The crop of the one --image that is meant, in pixels.")
    ] = None,
    template: Annotated[
        Several, typer.Option(metavar="TEXT", help='What each text is put into, e.g. "a photo of a {}"; repeatable.')
    ] = None,
    words: Annotated[str | None, typer.Option(help="Words in captions, labels and file names.")] = None,
    filter: Annotated[
        str | None, typer.Option(metavar="EXPR", help="Conditions on metadata, e.g. \"camera = 'cam-11'\".")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many.")] = 10,
    collapse: Annotated[bool, typer.Option("--collapse", help="Of near-duplicates show only the best.")] = False,
    diversity: Annotated[float, typer.Option(min=0, max=1, help="How unlike each other the hits should be.")] = 0.0,
    cursor: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="Go on after this page (`cursor` of --json).")
    ] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Show the nearest even if nothing matches.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show what each part adds to a similarity, and which words matched.")
    ] = False,
    json_: Json = False,
) -> None:
    """Find images by any mixture of texts, images and crops, like and unlike, among those a filter keeps.

    Weights are 1, and 0.5 for what to keep away from. A text that itself ends like one is given one: "a 2*4*1".

    Example: foveal archive search --archive runs/archive --text "a rusty valve" --filter "light = 'dim light'" -k 5
    Example: foveal archive search --archive runs/archive --text "a valve" --text "rust*0.5" --not-text pipe --explain
    Example: foveal archive search --archive runs/archive --image photo.jpg --box 40,30,120,90 --collapse
    """
    from foveal.errors import BadInput
    from foveal.models import load_encoder
    from retrieval.query import Collapse, SearchQuery
    from retrieval.stores import open_archive

    if box is not None and len(image or ()) != 1:
        raise BadInput("--box is the crop of one image", expected="one --image", received=str(len(image or ())))
    like = [*_parts("text", text), *_parts("image", image, box=box), *_parts("id", id)]
    unlike = [*_parts("text", not_text, -UNLIKE), *_parts("image", not_image, -UNLIKE), *_parts("id", not_id, -UNLIKE)]
    if template and not (text or not_text or words):
        raise BadInput("--template has no text to be filled with", remedy="Pass --text too, or leave it out.")
    query = SearchQuery(
        parts=(*like, *unlike), words=words, filter=filter, k=k, templates=tuple(template or ()),
        collapse=Collapse() if collapse else None, diversity=diversity, cursor=cursor, anyway=anyway,
    )  # fmt: skip
    opened = open_archive(archive)
    found = opened.search(query, load_encoder(opened.encoder))
    if json_:
        told = {name: getattr(found, name) for name in ("kept", "filter", "collapsed", "cursor", "reason", "notes")}
        emit({"hits": [asdict(hit) for hit in found], **told}, True)
        return
    _show(found, explain)
    said = [f"nothing matches: {found.reason}"] if found.reason else []
    said += found.notes
    if _uncalibrated(opened, query, found):
        said.append(
            f"{archive} was never calibrated: it gives no probabilities and cannot say that nothing matches; "
            f"run `foveal archive calibrate --archive {shlex.quote(archive)}`"
        )
    for line in said:
        typer.echo(line, err=True)


def _parts(kind: str, given: Several, usual: float = 1.0, box: str | None = None) -> list[Part]:
    """What is to be like, or with a negative usual weight unlike: texts, files or ids that may end in a weight."""
    from foveal.errors import BadInput
    from retrieval.query import MAX_WEIGHT, Part

    parts: list[Part] = []
    for one in given or ():
        ending = _WEIGHT.search(one)
        weight = abs(usual)
        if ending is not None:
            try:
                weight = float(ending[1])
            except ValueError:
                weight = 0.0
            if not 0 < weight <= MAX_WEIGHT:
                raise BadInput(
                    f"a part of the query ends in {ending[0][:40]!r}, which is no weight",
                    expected=f"a number above 0, up to {MAX_WEIGHT:g}, e.g. *0.5",
                    remedy="What hits should be unlike is said by --not-text, --not-image and --not-id.",
                )
            one = one[: ending.start()].rstrip()
        thing: dict[str, Any] = {kind: Path(one) if kind == "image" else one}
        parts.append(Part(**thing, box=None if box is None else _box(box), weight=math.copysign(weight, usual)))
    return parts


def _box(given: str) -> tuple[float, float, float, float]:
    from foveal.errors import BadInput

    try:
        x1, y1, x2, y2 = map(float, given.split(","))
    except ValueError as error:
        raise BadInput("--box is none", expected="X1,Y1,X2,Y2 in pixels", received=given[:80]) from error
    return x1, y1, x2, y2


def _uncalibrated(archive: AnyArchive, query: SearchQuery, found: Results) -> bool:
    """Whether hits of a text lack their probability only because nobody has asked for it yet."""
    from retrieval.archive import Archive

    by_text = any(part.text is not None and part.weight > 0 for part in query.all_parts)
    return by_text and isinstance(archive, Archive) and any(hit.probability is None for hit in found)


def _show(found: Results, explain: bool) -> None:
    """The hits: numbers, then the URI, which stays in one piece to be copied, and below it what is known of the hit."""
    from rich.console import Console
    from rich.text import Text

    if not found:
        print("nothing found")
        return
    console = Console(markup=False, highlight=False, emoji=False)
    likely = any(hit.probability is not None for hit in found)
    head = "similarity  probability  " if likely else "similarity  "
    width = max(console.width - len(head), 20)
    console.print(Text(f"{head}image", "bold"))
    for hit in found:
        chance = "" if hit.probability is None else f"{hit.probability:.2f}"
        console.print(Text(f"{hit.similarity:10.4f}  {f'{chance:>11}  ' if likely else ''}{hit.uri}"), soft_wrap=True)
        facts = [f"id {hit.id}", *(f"{name} {value}" for name, value in hit.metadata.items())]
        for line in (*_packed(facts, width), *_reasons(hit, explain)):
            for piece in Text(line).wrap(console, width):
                console.print(Text(" " * len(head) + piece.plain, "dim"), soft_wrap=True)
    if explain and found.filter is not None:
        console.print(Text(f"{found.kept:,} images fit {found.filter}", "dim"), soft_wrap=True)


def _packed(facts: Sequence[str], width: int) -> Iterator[str]:
    """The facts with commas between them, as many in a line as have room."""
    from rich.cells import cell_len

    line = facts[0]
    for fact in facts[1:]:
        if cell_len(line) + cell_len(fact) + 3 > width:
            yield f"{line},"
            line = fact
        else:
            line = f"{line}, {fact}"
    yield line


def _reasons(hit: Hit, explain: bool) -> Iterator[str]:
    """What made it a hit, when asked for, and what it stands for."""
    if explain:
        for part in hit.parts:
            weight = "" if abs(part.weight) == 1 else f", weight {abs(part.weight):g}"
            yield f"{part.amount:+.4f}  {part.part}{weight}"
        if hit.keywords:
            yield f"words matched: {', '.join(hit.keywords)}"
    if hit.collapsed:
        yield f"stands for {hit.collapsed} near-duplicate{'s' if hit.collapsed > 1 else ''} too"
