"""The curation commands of `foveal archive`: thin calls into `retrieval.curate`, imported inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from foveal.options import ArchiveDir, live_progress, read_lines
from foveal.printing import Json, emit, emit_rows

if TYPE_CHECKING:
    from evals.report import Report
    from retrieval.archive import Archive
    from retrieval.curate.clusters import Naming
    from retrieval.curate.links import Likeness

ROWS = 50  # shown to people; programs get all

Filter = Annotated[str | None, typer.Option("--filter", metavar="EXPR", help="Only the images that this keeps.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write a page with pictures.")]
By = Literal["bytes", "hash", "vectors", "either", "both"]
LikeBy = Annotated[By, typer.Option("--by", help="What makes copies of images, beside equal bytes.")]
Bits = Annotated[int, typer.Option(min=0, max=11, help="Bits of 64 that perceptual hashes may differ in.")]
Cosine = Annotated[float, typer.Option(min=0.01, max=1, help="Cosine that vectors must reach.")]
Words = Annotated[
    list[str] | None, typer.Option("--words", metavar="COLUMN", help="Text to name clusters from; repeatable.")
]
Vocabulary = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Names to choose from, one a line, read by the archive's encoder.")
]


def add_to(app: typer.Typer) -> None:
    """Registers the commands of this module."""
    for command in (duplicates, leaks, outliers, clusters, gaps, select):
        app.command()(command)


def duplicates(
    archive: ArchiveDir,
    by: LikeBy = "hash",
    bits: Bits = 6,
    cosine: Cosine = 0.98,
    filter: Filter = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what can go: .txt (for `delete --from`), .csv or .json.")
    ] = None,
    html: Html = None,
    json_: Json = False,
) -> None:
    """Group images that are copies of each other, exact or near, and say which one to keep; deletes nothing.

    Example: foveal archive duplicates --archive runs/archive --out extra.txt --html duplicates.html
    """
    from retrieval.archive import Archive
    from retrieval.curate.duplicates import find_duplicates
    from retrieval.curate.listing import check_suffix, write_rows
    from retrieval.curate.pages import duplicates_page

    out = check_suffix(out) if out else None
    opened = Archive.open(archive)
    found = find_duplicates(opened, _likeness(by, bits, cosine), filter=filter, progress=live_progress())
    rows = found.rows()
    if out:
        write_rows(out, [row for row in rows if not row["keep"]], line="id")
    _page(html, duplicates_page, found, opened, filter)
    _show(found.summary(), "copies", rows, "group kind keep id width height bytes uri", json_, ids=list(found.extra))


def leaks(
    archive: ArchiveDir,
    split: Annotated[str | None, typer.Option(metavar="COLUMN", help="Metadata column that names the split.")] = None,
    between: Annotated[str | None, typer.Option(metavar="EXPR", help="Instead: a filter for one side, ...")] = None,
    and_: Annotated[str | None, typer.Option("--and", metavar="EXPR", help="... and one for the other.")] = None,
    by: LikeBy = "hash",
    bits: Bits = 6,
    cosine: Cosine = 0.98,
    filter: Filter = None,
    html: Html = None,
    json_: Json = False,
) -> None:
    """Find copies of one picture in different splits; the exit code is 1 when there are any.

    Example: foveal archive leaks --archive runs/archive --split split
    Example: foveal archive leaks --archive runs/archive --between "day < 20" --and "day >= 20" --by either
    """
    from foveal.errors import BadInput
    from retrieval.archive import Archive
    from retrieval.curate.leaks import find_leaks
    from retrieval.curate.pages import leaks_page

    sides = (between, and_) if between and and_ else None
    if (split is None) == (sides is None) or (sides is None and (between or and_)):
        raise BadInput("it is not clear what is split", expected="--split COLUMN, or --between EXPR --and EXPR")
    opened = Archive.open(archive)
    like = _likeness(by, bits, cosine)
    found = find_leaks(opened, split or sides or "", like, filter=filter, progress=live_progress())
    _page(html, leaks_page, found, opened, filter)
    _show(found.summary(), "pairs", found.rows(), "how cosine split uri other_split other_uri", json_)
    if found.pairs:
        raise typer.Exit(1)


def outliers(
    archive: ArchiveDir,
    top: Annotated[int, typer.Option(min=1, help="How many to show.")] = 20,
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours that each image is compared with.")] = 20,
    filter: Filter = None,
    html: Html = None,
    json_: Json = False,
) -> None:
    """Show the images that lie farther from their neighbours than these from theirs: broken, wrong, or rare.

    Example: foveal archive outliers --archive runs/archive --top 50 --html outliers.html
    """
    from retrieval.archive import Archive
    from retrieval.curate.outliers import find_outliers
    from retrieval.curate.pages import outliers_page

    opened = Archive.open(archive)
    found = find_outliers(opened, top, k=k, filter=filter, progress=live_progress())
    _page(html, outliers_page, found, opened, filter)
    _show({"images": found.images, "k": found.k}, "outliers", found.rows(), "score id uri nearest_uri cosine", json_)


def clusters(
    archive: ArchiveDir,
    k: Annotated[int | None, typer.Option("-k", min=1, help="How many; else by the silhouette, 2 to 64.")] = None,
    words: Words = None,
    vocabulary: Vocabulary = None,
    filter: Filter = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the cluster of each image: .csv, .json or .txt.")
    ] = None,
    html: Html = None,
    json_: Json = False,
) -> None:
    """Cluster the images, with those that stand for each cluster and what it may be called.

    Example: foveal archive clusters --archive runs/archive -k 12 --words caption --html clusters.html
    """
    import numpy as np

    from retrieval.archive import Archive
    from retrieval.curate.clusters import find_clusters
    from retrieval.curate.listing import check_suffix, write_rows
    from retrieval.curate.pages import clusters_page

    out = check_suffix(out) if out else None
    opened = Archive.open(archive)
    naming = _naming(opened, words, vocabulary)
    found = find_clusters(opened, k, naming=naming, filter=filter, progress=live_progress())
    if out:
        pictures = found.selection.pictures(np.arange(found.images))
        pairs = zip(pictures, found.label.tolist(), strict=True)
        write_rows(out, [{"id": p.id, "uri": p.uri, "cluster": cluster + 1} for p, cluster in pairs])
    _page(html, clusters_page, found, opened, filter)
    _show(
        {"images": found.images},
        "clusters",
        found.rows(),
        "cluster size cohesion names images",
        json_,
        tried=found.tried,
    )


def gaps(
    archive: ArchiveDir,
    reference: Annotated[str, typer.Option(metavar="EXPR", help="The images that should cover the others.")],
    filter: Filter = None,
    by: Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="Count by this column; repeatable.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Reference images that must lie near.")] = 1,
    radius: Annotated[
        float | None, typer.Option(min=0, max=2, help="How near; else what 95% of the reference keeps itself.")
    ] = None,
    words: Words = None,
    vocabulary: Vocabulary = None,
    html: Html = None,
    json_: Json = False,
) -> None:
    """Show what a reference set, such as the labelled images, does not cover.

    Example: foveal archive gaps --archive runs/archive --reference "label IS NOT NULL" --by camera --html gaps.html
    """
    from retrieval.archive import Archive
    from retrieval.curate.gaps import find_gaps
    from retrieval.curate.pages import gaps_page

    opened = Archive.open(archive)
    naming = _naming(opened, words, vocabulary)
    found = find_gaps(
        opened, reference, filter=filter, by=by, k=k, radius=radius, naming=naming, progress=live_progress()
    )
    _page(html, gaps_page, found, opened, filter)
    coverage = found.coverage()
    if json_:
        emit({**found.summary(), "gaps": found.rows(), "by": coverage}, True)
    else:
        _show(found.summary(), "gaps", found.rows(), "cluster size distance names images", False)
        print()
        emit_rows(coverage)


def select(
    archive: ArchiveDir,
    n: Annotated[int, typer.Option("-n", min=1, help="How many.")],
    labelled: Annotated[str | None, typer.Option(metavar="EXPR", help="The images that have labels already.")] = None,
    uncertainty: Annotated[
        str | None, typer.Option(metavar="COLUMN|FILE", help="A number a row, or CSV or JSONL by id or uri.")
    ] = None,
    filter: Filter = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the picks: .txt (a URI a line), .csv or .json.")
    ] = None,
    html: Html = None,
    json_: Json = False,
) -> None:
    """Choose what to label next: unlike the labelled and each other and, with uncertainties, hard for a model.

    Example: foveal archive select --archive runs/archive -n 200 --labelled "label IS NOT NULL" --out next.csv
    """
    from retrieval.archive import Archive
    from retrieval.curate.labelling import Uncertainty, read_uncertainty
    from retrieval.curate.labelling import select as choose
    from retrieval.curate.listing import check_suffix
    from retrieval.curate.pages import picks_page

    out = check_suffix(out) if out else None
    opened = Archive.open(archive)
    unsure: Uncertainty | None = uncertainty
    if uncertainty is not None and Path(uncertainty).suffix:
        unsure = read_uncertainty(Path(uncertainty))
    found = choose(opened, n, labelled=labelled, uncertainty=unsure, filter=filter, progress=live_progress())
    if out:
        found.write(out)
    _page(html, picks_page, found, opened, filter)
    _show(found.summary(), "picks", found.rows(), "rank distance uncertainty id uri", json_)


def _likeness(by: By, bits: int, cosine: float) -> Likeness:
    from retrieval.curate.links import Likeness

    return Likeness(
        bits if by in ("hash", "either", "both") else None,
        cosine if by in ("vectors", "either", "both") else None,
        both=by == "both",
    )


def _naming(archive: Archive, words: list[str] | None, vocabulary: Path | None) -> Naming:
    from foveal.models import load_encoder
    from retrieval.curate.clusters import Naming

    if vocabulary is None:
        return Naming(words)
    return Naming(words, read_lines(vocabulary), load_encoder(archive.encoder))


def _page(html: Path | None, make: Any, found: Any, archive: Archive, filter: str | None) -> None:
    """Writes the page that `make` makes of what was found, when asked for one."""
    if html is None:
        return
    facts = [("archive", str(archive.path)), ("encoder", archive.encoder)]
    page: Report = make(found, archive, facts + ([("filter", filter)] if filter else []))
    page.write(html)


def _show(
    summary: dict[str, Any], name: str, rows: list[dict[str, Any]], columns: str, json_: bool, **more: Any
) -> None:
    """Everything as JSON; or for people the figures, then the named columns of the first rows."""
    if json_:
        emit({**summary, **more, name: rows}, True)
        return
    emit(summary, False)
    print()
    emit_rows([{column: _short(row[column]) for column in columns.split()} for row in rows[:ROWS]])
    if len(rows) > ROWS:
        print(f"and {len(rows) - ROWS:,} more; --json has all")


def _short(value: Any) -> Any:
    """Names and images of a cluster in a few words."""
    if not isinstance(value, (list, tuple)):
        return value
    if value and "source" in value[0]:
        return "; ".join(f"{name['text']} (from {name['source']})" for name in value)
    return value[0]["uri"] if value else None
