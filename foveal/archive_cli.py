"""`foveal archive ...`: thin calls into the room, which is imported inside the commands."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.archive_care_cli import Allow
from foveal.archive_care_cli import add_to as add_care
from foveal.curate_cli import add_to as add_curation
from foveal.options import (
    DEFAULT_ENCODER,
    ArchiveDir,
    ArchiveUri,
    BlurPrompts,
    BlurRef,
    BlurThreshold,
    DeviceName,
    EncoderRuntime,
    live_progress,
    read_lines,
)
from foveal.printing import Json, emit, emit_rows
from foveal.registry_cli import DEFAULT_REGISTRY, RegistryDir
from foveal.search_cli import add_to as add_search

if TYPE_CHECKING:
    from foveal.models import Encoder
    from retrieval.adding import AddReport
    from retrieval.archive import Archive
    from retrieval.ingest import Embedding
    from retrieval.stores import AnyArchive

archive_app = typer.Typer(no_args_is_help=True, help="Embed, keep and search images.")


@archive_app.command("add")
def archive_add(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="Folders, files, globs, .tar, .parquet, s3://, https://, hf:NAME."),
    ],
    archive: Annotated[
        str, typer.Option("--archive", metavar="DIR|URI", help="The archive, or milvus://HOST/NAME; made when new.")
    ],
    encoder: Annotated[str | None, typer.Option(metavar="REF", help="Encoder of a new archive.")] = None,
    sync: Annotated[bool, typer.Option("--sync", help="Remove images that the sources no longer have.")] = False,
    watch: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0.1, help="Follow one folder, looking this often.")
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Read and embed on a Ray cluster (RAY_ADDRESS, or this machine).")
    ] = False,
    allow_host: Allow = None,
    recall: Annotated[
        float | None, typer.Option(min=0.5, max=1, help="recall@10 that a new archive's index must keep.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of a new archive's index, e.g. 512MB or 2GB.")
    ] = None,
    device: DeviceName = None,
    runtime: EncoderRuntime = "torch",
    blur: BlurRef = None,
    blur_prompts: BlurPrompts = None,
    blur_threshold: BlurThreshold = 0.2,
    registry: RegistryDir = DEFAULT_REGISTRY,
    json_: Json = False,
) -> None:
    """Embed images into an archive; what is there and unchanged is passed over.

    With --blur it is the vector and the thumbnail that are made of the blurred picture: the files stay as they are.

    Example: foveal archive add runs/site/images --archive runs/archive --encoder bundled:clip
    """
    from functools import partial

    from foveal.errors import BadInput
    from foveal.models import load_encoder
    from retrieval.archive import Archive
    from retrieval.blur import load_blur
    from retrieval.index import IndexSettings
    from retrieval.ingest import embed
    from retrieval.ray_job import RayJob
    from retrieval.sources import Sources
    from retrieval.stores import create_archive, find_archive

    if watch is not None and (len(sources) != 1 or not Path(sources[0]).is_dir() or ray):
        raise BadInput("--watch follows one folder, without --ray", expected="one folder", received=", ".join(sources))
    if ray and (device is not None or runtime != "torch"):
        raise BadInput("--device and --runtime are for this process", remedy="Leave --ray out.")
    if blur is not None and ray:
        raise BadInput("--blur works in this process", remedy="Leave --ray out.")
    hidden = load_blur(blur, blur_prompts, blur_threshold, registry)
    here = embed if hidden is None else partial(embed, blur=hidden)
    opened = find_archive(archive)
    if opened is not None:
        model = load_encoder(encoder or opened.encoder, device, runtime)
        if recall is not None or memory is not None:
            raise BadInput(f"{archive} exists: its index is settled", remedy="Leave --recall and --memory out.")
    else:
        if watch is None:
            Sources.resolve(sources, allow=allow_host or ())  # a wrong path leaves no empty archive behind
        reference = encoder or DEFAULT_ENCODER
        model = load_encoder(reference, device, runtime)
        settings = IndexSettings(memory_mb=None if memory is None else _megabytes(memory))
        settings = settings if recall is None else replace(settings, recall_target=recall)
        chosen = None if recall is None and memory is None else settings
        opened = create_archive(archive, model, reference=reference, index=chosen)
    if watch is not None:
        if not isinstance(opened, Archive):
            raise BadInput("--watch needs an archive in a folder", received=archive)
        _follow(opened, Path(sources[0]), model, watch, here, json_)
        return
    through = RayJob.of(encoder or opened.encoder) if ray else here
    report = opened.add(sources, model, live_progress(), sync=sync, allow=allow_host or (), through=through)
    _told(archive, opened, report, json_)


def _follow(archive: Archive, folder: Path, model: Encoder, seconds: float, through: Embedding, json_: bool) -> None:
    import signal
    import threading

    from retrieval.follow import follow

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # finish what is under way, then go
        signal.signal(number, lambda *_: stop.set())
    for report in follow(archive, folder, model, seconds, stop, live_progress(), through):
        _told(str(archive.path), archive, report, json_)


def _told(name: str, archive: AnyArchive, report: AddReport, json_: bool) -> None:
    from retrieval.sources_local import endings

    if report.passed_over:
        typer.echo(f"passed over by the ending of their name: {endings(report.passed_over)}", err=True)
    emit(
        {
            "archive": name,
            "encoder": archive.encoder,
            "added": report.added,
            "updated": report.updated,
            "unchanged": report.unchanged,
            "removed": report.removed,
            "quarantined": len(report.quarantined),
            "reasons": [{"path": path, "reason": reason} for path, reason in report.quarantined],
            **({"passed_over": report.passed_over} if json_ else {}),
            "notes": report.notes,
            "images": len(archive),
        },
        json_,
    )


def _megabytes(size: str) -> float:
    from foveal.errors import BadInput

    number = size.strip().upper().removesuffix("B")
    units = {"K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0**2}
    try:
        return float(number[:-1]) * units[number[-1]]
    except (ValueError, KeyError, IndexError) as error:
        raise BadInput("--memory is no size", expected="e.g. 512MB or 2GB", received=size) from error


add_search(archive_app)


@archive_app.command("judge")
def archive_judge(
    archive: ArchiveDir,
    text: Annotated[str, typer.Option(help="What was looked for.")],
    right: Annotated[list[str] | None, typer.Option(metavar="ID", help="An image that shows it; repeatable.")] = None,
    wrong: Annotated[list[str] | None, typer.Option(metavar="ID", help="An image that does not; repeatable.")] = None,
    json_: Json = False,
) -> None:
    """Keep what people said of hits, for `calibrate` to learn from.

    Example: foveal archive judge --archive runs/archive --text "a rusty valve" --right 3f6c0e1b6a --wrong 81d2c77e90
    """
    from retrieval.archive import Archive
    from retrieval.feedback import Feedback, Judgement

    opened = Archive.open(archive)
    judged = [Judgement(text, id, True) for id in right or ()] + [Judgement(text, id, False) for id in wrong or ()]
    feedback = Feedback(opened.path / "feedback.sqlite")
    feedback.add(judged)
    emit({"judged": len(judged), "judgements": len(feedback.read())}, json_)


@archive_app.command("calibrate")
def archive_calibrate(archive: ArchiveDir, json_: Json = False) -> None:
    """Learn from captions, labels and judgements how probable a hit is right, and when nothing matches a text.

    From then on searches by text give probabilities, and return nothing where nothing matches.

    Example: foveal archive calibrate --archive runs/archive
    """
    from foveal.models import load_encoder
    from retrieval.archive import Archive
    from retrieval.relevance_fit import calibrate

    opened = Archive.open(archive)
    model = calibrate(opened, load_encoder(opened.encoder))
    emit({"archive": str(archive), **model.basis}, json_)


@archive_app.command("check")
def archive_check(
    archive: ArchiveUri,
    repair: Annotated[bool, typer.Option(help="Rebuild what is derived where it is wrong.")] = True,
    json_: Json = False,
) -> None:
    """Verify table, index and files.

    Example: foveal archive check --archive runs/archive
    """
    from retrieval.stores import open_archive

    report = open_archive(archive).check(live_progress(), repair=repair)
    emit(asdict(report), json_)
    if not report.ok:
        raise typer.Exit(1)


@archive_app.command("info")
def archive_info(archive: ArchiveUri, json_: Json = False) -> None:
    """Say what an archive holds, how it is indexed, and what tuning measured.

    Example: foveal archive info --archive runs/archive
    """
    from retrieval.stores import open_archive

    stats = open_archive(archive).stats()
    curves = {} if json_ else {n: one.pop("curve") for n, one in enumerate(stats.get("segments", ()), 1)}
    emit(stats, json_)
    for number, curve in curves.items():
        if curve:
            typer.echo(f"\nsegment {number}: the fastest that tuning measured for each recall")
            emit_rows(_fastest(curve))


def _fastest(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those points of a curve that no faster one equals in recall, the fastest first."""
    found: list[dict[str, Any]] = []
    for point in sorted(curve, key=lambda one: one["ms"]):
        if not found or point["recall"] > found[-1]["recall"]:
            found.append(point)
    return found


@archive_app.command("delete")
def archive_delete(
    archive: ArchiveUri,
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID...", help="Ids of images.")] = None,
    from_: Annotated[Path | None, typer.Option("--from", metavar="FILE", help="File with an id a line.")] = None,
    filter: Annotated[str | None, typer.Option(metavar="EXPR", help="Every image that this keeps.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    json_: Json = False,
) -> None:
    """Remove images from an archive; their files stay. `compact` then removes the last trace of them.

    Example: foveal archive delete --archive runs/archive --filter "camera = 'cam-11'" --yes
    """
    from foveal.errors import BadInput
    from retrieval.stores import open_archive

    opened = open_archive(archive)
    if sum(given is not None for given in (ids or None, from_, filter)) != 1:
        raise BadInput("what shall be deleted?", expected="ids, --from FILE or --filter EXPR, one of them")
    listed = list(ids or ()) if from_ is None else read_lines(from_)
    chosen = listed if filter is None else opened.matching(filter)
    if not yes and not typer.confirm(f"Delete {len(chosen)} of {len(opened)} images from {archive}?"):
        raise typer.Exit(1)
    emit({"deleted": opened.delete(chosen), "images": len(opened)}, json_)


add_curation(archive_app)
add_care(archive_app)
