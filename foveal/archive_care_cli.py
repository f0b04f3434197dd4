"""The commands of `foveal archive` that move, renew and copy one: thin calls, imported inside the commands."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from foveal.options import DEFAULT_ENCODER, ArchiveDir, ArchiveUri, live_progress
from foveal.printing import Json, emit, emit_rows

Allow = Annotated[
    list[str] | None, typer.Option("--allow-host", metavar="HOST", help="Host that may be fetched from; repeatable.")
]


def add_to(app: typer.Typer) -> None:
    """Registers the commands of this module."""
    app.command("quarantine")(archive_quarantine)
    app.command("compact")(archive_compact)
    app.command("retain")(archive_retain)
    app.command("reembed")(archive_reembed)
    app.command("compare")(archive_compare)
    app.command("export")(archive_export)
    app.command("import")(archive_import)
    app.command("backup")(archive_backup)


def archive_quarantine(archive: ArchiveUri, json_: Json = False) -> None:
    """List the files that could not be added, and why; `add` tries them again, `add --sync` forgets what has gone.

    Example: foveal archive quarantine --archive runs/archive
    """
    from retrieval.stores import open_archive

    rows = [{"uri": uri, "reason": reason} for uri, reason in open_archive(archive).quarantined()]
    if json_:
        emit({"quarantined": rows}, True)
    else:
        emit_rows(rows)


def archive_compact(archive: ArchiveDir, json_: Json = False) -> None:
    """Remove the last trace of deleted images and of earlier encoders from an archive's files.

    Example: foveal archive compact --archive runs/archive
    """
    from retrieval.archive import Archive

    opened = Archive.open(archive)
    emit({"freed_bytes": opened.compact(), "images": len(opened)}, json_)


def archive_retain(
    archive: ArchiveDir,
    days: Annotated[float, typer.Option(help="How long images are kept.")],
    filter: Annotated[
        str | None, typer.Option(metavar="EXPR", help="Only of images that this keeps, e.g. \"camera = 'cam-11'\".")
    ] = None,
    by: Annotated[
        Literal["added", "taken"], typer.Option(help="Since they were added, or taken where they say when.")
    ] = "added",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    json_: Json = False,
) -> None:
    """Remove images that were added longer ago than so many days, for good, with the files that were sent to a server.

    Files in your own folders stay, and come in again with the next `archive add` of them.

    Example: foveal archive retain --archive runs/archive --days 30 --filter "camera = 'cam-11'" --dry-run
    """
    from retrieval.archive import Archive
    from retrieval.retention import Retained, Rule, due, retain

    opened, rule = Archive.open(archive), Rule(days, filter, by)
    waiting = len(due(opened, rule))
    gone = Retained() if dry_run else retain(opened, rule)
    emit({"due": waiting, **asdict(gone), "images": len(opened)}, json_)


def archive_reembed(
    archive: ArchiveDir,
    encoder: Annotated[str, typer.Option(metavar="REF", help="The new encoder.")],
    allow_host: Allow = None,
    json_: Json = False,
) -> None:
    """Embed an archive anew with another encoder, beside the old one until it is done; resumes after a kill.

    Example: foveal archive reembed --archive runs/archive --encoder bundled:clip+runs/adapter
    """
    from foveal.models import load_encoder
    from retrieval.archive import Archive
    from retrieval.reembed import reembed

    report = reembed(Archive.open(archive), load_encoder(encoder), encoder, live_progress(), allow=allow_host or ())
    emit(
        {
            "images": report.images,
            "from_thumbnail": len(report.from_thumbnail),
            "lost": [{"path": path, "reason": reason} for path, reason in report.lost.items()],
            "calibrated": report.calibrated,
            "notes": report.notes,
        },
        json_,
    )


def archive_compare(
    archive: ArchiveDir,
    queries: Annotated[Path, typer.Option(metavar="FILE", help='A query a line, or {"text": ..., "relevant": [URI]}.')],
    k: Annotated[int, typer.Option("-k", min=1, help="How many hits count.")] = 10,
    json_: Json = False,
) -> None:
    """Ask an archive as it was before `reembed`, and as it is, the same questions.

    Example: foveal archive compare --archive runs/archive --queries queries.txt
    """
    from foveal.errors import BadInput
    from foveal.models import load_encoder
    from retrieval.archive import Archive
    from retrieval.compare import compare, read_questions

    now = Archive.open(archive)
    earlier = [one for one in now.generations() if one.generation < now.settings.generation]
    if not earlier:
        raise BadInput(f"{archive} has no earlier generation", remedy="Run `foveal archive reembed` first.")
    then = now.at(earlier[-1])
    pairs = [(one, load_encoder(one.encoder)) for one in (then, now)]
    found = compare(pairs[0], pairs[1], read_questions(queries), k)
    told = {"before": then.encoder, "after": now.encoder, **asdict(found)}
    if not json_:
        told["changed"] = [f"{one.text}: {one.overlap:.0%} the same" for one in found.changed[:10]]
    emit(told, json_)


def archive_export(
    archive: ArchiveDir,
    out: Annotated[Path, typer.Option(metavar="FILE", help="A .parquet, or a .npy with a .parquet beside it.")],
    json_: Json = False,
) -> None:
    """Write every vector and record to files that other tools read.

    Example: foveal archive export --archive runs/archive --out runs/archive.parquet
    """
    from retrieval.archive import Archive
    from retrieval.transfer import export

    emit({"images": export(Archive.open(archive), out, live_progress()), "out": str(out)}, json_)


def archive_import(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A .parquet, or a .npy with a .parquet beside it.")],
    archive: Annotated[Path, typer.Option("--archive", metavar="DIR", help="The archive; made when new.")],
    encoder: Annotated[str | None, typer.Option(metavar="REF", help="Encoder of a new archive.")] = None,
    json_: Json = False,
) -> None:
    """Add vectors that were exported, or made by another tool with the same encoder.

    Example: foveal archive import runs/archive.parquet --archive runs/copy --encoder bundled:clip
    """
    from foveal.models import load_encoder
    from retrieval.archive import Archive
    from retrieval.transfer import read

    if (archive / "archive.json").is_file():
        opened = Archive.open(archive)
        model = load_encoder(encoder or opened.encoder)
    else:
        reference = encoder or DEFAULT_ENCODER
        model = load_encoder(reference)
        opened = Archive.create(archive, model, reference=reference)
    count, notes = read(opened, source, model, live_progress())
    emit({"imported": count, "notes": notes, "images": len(opened)}, json_)


def archive_backup(
    archive: ArchiveDir,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder.")],
    json_: Json = False,
) -> None:
    """Copy an archive while nobody writes to it; the copy opens where it lies.

    Example: foveal archive backup --archive runs/archive --out backups/archive
    """
    from retrieval.archive import Archive
    from retrieval.transfer import backup

    emit({"bytes": backup(Archive.open(archive), out), "out": str(out)}, json_)
