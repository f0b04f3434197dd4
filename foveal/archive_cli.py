"""`foveal archive ...`: thin calls into the room, which is imported inside the commands."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from foveal.options import DEFAULT_ENCODER, live_progress
from foveal.printing import Json, emit, emit_rows

archive_app = typer.Typer(no_args_is_help=True, help="Embed, keep and search images.")


@archive_app.command("add")
def archive_add(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Folders, files or globs of images.")],
    archive: Annotated[Path, typer.Option("--archive", metavar="DIR", help="The archive; made when new.")],
    encoder: Annotated[str | None, typer.Option(metavar="REF", help="Encoder of a new archive.")] = None,
    json_: Json = False,
) -> None:
    """Embed images into an archive; what is there and unchanged is passed over.

    Example: foveal archive add runs/site/images --archive runs/archive --encoder bundled:clip
    """
    from foveal.models import load_encoder
    from retrieval.archive import Archive
    from retrieval.sources import Sources

    if (archive / "archive.json").is_file():
        opened = Archive.open(archive)
        model = load_encoder(encoder or opened.encoder)
    else:
        Sources.resolve(sources)  # a wrong path leaves no empty archive behind
        reference = encoder or DEFAULT_ENCODER
        model = load_encoder(reference)
        opened = Archive.create(archive, model, reference=reference)
    report = opened.add(sources, model, live_progress())
    emit(
        {
            "archive": str(archive),
            "encoder": opened.encoder,
            "added": report.added,
            "updated": report.updated,
            "unchanged": report.unchanged,
            "quarantined": len(report.quarantined),
            "reasons": [{"path": path, "reason": reason} for path, reason in report.quarantined],
            "notes": report.notes,
            "images": len(opened),
        },
        json_,
    )


@archive_app.command("search")
def archive_search(
    archive: Annotated[Path, typer.Option("--archive", metavar="DIR", help="The archive.")],
    text: Annotated[str | None, typer.Option(help="What to look for, in words.")] = None,
    image: Annotated[Path | None, typer.Option(help="An image to look like.")] = None,
    negative: Annotated[str | None, typer.Option(help="What to keep away from, in words.")] = None,
    filter: Annotated[
        str | None, typer.Option(metavar="EXPR", help="SQL over metadata, e.g. \"camera = 'cam-11'\".")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many.")] = 10,
    json_: Json = False,
) -> None:
    """Find images by text, by image or by both, among those a filter keeps.

    Example: foveal archive search --archive runs/archive --text "a rusty valve" --filter "light = 'dim light'" -k 5
    """
    from foveal.models import load_encoder
    from retrieval.archive import Archive
    from retrieval.query import SearchQuery

    opened = Archive.open(archive)
    query = SearchQuery(text=text, image=image, negative=negative, filter=filter, k=k)
    hits = opened.search(query, load_encoder(opened.encoder))
    rows = [{"similarity": round(h.similarity, 4), "id": h.id, "uri": h.uri, **h.metadata} for h in hits]
    if json_:
        emit({"hits": [asdict(h) for h in hits]}, True)
    else:
        emit_rows(rows)


@archive_app.command("check")
def archive_check(
    archive: Annotated[Path, typer.Option("--archive", metavar="DIR", help="The archive.")],
    repair: Annotated[bool, typer.Option(help="Rebuild what is derived where it is wrong.")] = True,
    json_: Json = False,
) -> None:
    """Verify table, index and files.

    Example: foveal archive check --archive runs/archive
    """
    from retrieval.archive import Archive

    report = Archive.open(archive).check(live_progress(), repair=repair)
    emit(asdict(report), json_)
    if not report.ok:
        raise typer.Exit(1)
