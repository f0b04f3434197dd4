"""What a curation found as one HTML page with pictures, in the project's look."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from evals.report import Report, State
from foveal.errors import BadImage
from retrieval.archive import Archive
from retrieval.curate.clusters import Cluster, Clusters
from retrieval.curate.duplicates import Copy, Duplicates, Group
from retrieval.curate.gaps import Gaps
from retrieval.curate.labelling import Picks
from retrieval.curate.leaks import Leaks
from retrieval.curate.outliers import Outliers

if TYPE_CHECKING:
    from PIL.Image import Image

CASES = 100  # rows of pictures on a page
PICKS = 400  # pictures of a gallery
ACROSS = 12  # pictures in a row
SIDE = 256  # pixels
MISSING = (128, 138, 135)  # colour of a picture that cannot be shown


class Pictures:
    """Small pictures by id: the archive's own, or the file shrunk when it is a local one."""

    def __init__(self, archive: Archive, ids: Iterable[str]) -> None:
        self._rows = archive.items(list(dict.fromkeys(ids)), ["uri", "thumbnail"])

    def __getitem__(self, id: str) -> Image:
        """An even grey picture where there is none to show."""
        from PIL import Image as pillow

        from foveal.images import decode

        row = self._rows.get(id, {"uri": "", "thumbnail": None})
        try:
            if row["thumbnail"] is not None:
                return pillow.open(io.BytesIO(row["thumbnail"]))
            if Path(row["uri"]).is_file():  # never a URL: nothing is fetched for a page
                image = decode(Path(row["uri"]), min_side=SIDE)
                image.thumbnail((SIDE, SIDE))
                return image
        except (BadImage, OSError):
            pass
        return pillow.new("RGB", (SIDE, SIDE), MISSING)


def duplicates_page(found: Duplicates, archive: Archive, facts: Sequence[tuple[str, str]] = ()) -> Report:
    """A row a group, the image to keep first."""
    groups = found.groups[:CASES]
    pictures = Pictures(archive, (copy.id for group in groups for copy in (group.keep, *group.rest)[:ACROSS]))
    page = Report("Duplicates", f"Copies of one picture among {found.images:,} images.", facts=facts)
    exact = sum(group.exact for group in found.groups)
    page.figures(
        [
            ("groups", f"{len(found.groups):,}", f"{exact:,} of them equal byte by byte", None),
            ("images that can go", f"{len(found.extra):,}", f"{len(found.extra) / found.images:.1%} of all", None),
            ("saved", size(found.saves), "in the original files", None),
        ]
    )
    page.section("Groups", _first(len(groups), len(found.groups), "those that save most"))
    for number, group in enumerate(groups, 1):
        page.strip(
            f"{len(group.rest) + 1} copies",
            islice(_copies(group, pictures), ACROSS),
            f"no. {number}, {'equal bytes' if group.exact else 'near copies'}, saves {size(group.saves)}",
        )
    return page


def leaks_page(found: Leaks, archive: Archive, facts: Sequence[tuple[str, str]] = ()) -> Report:
    """A row a pair."""
    pairs = found.pairs[:CASES]
    pictures = Pictures(archive, chain.from_iterable((leak.one.id, leak.other.id) for leak in pairs))
    verdict: State = "bad" if found.pairs else "good"
    page = Report("Leaks between splits", "Copies of one picture that lie in different splits.", facts=facts)
    page.figures(
        [
            ("leaking pairs", f"{len(found.pairs):,}", "across splits", verdict),
            *(
                (name, f"{found.leaking[name]:,}", f"of {count:,} images have a copy elsewhere", None)
                for name, count in found.splits.items()
            ),
        ]
    )
    page.section("Pairs", _first(len(pairs), len(found.pairs), "the surest"))
    for leak in pairs:
        bits = "" if leak.bits is None else f", hashes differ in {leak.bits} of 64 bits"
        page.strip(
            leak.how,
            [
                (pictures[leak.one.id], leak.one_split, _tail(leak.one.uri), "bad"),
                (pictures[leak.other.id], leak.other_split, _tail(leak.other.uri), "bad"),
            ],
            f"cosine {leak.cosine:.3f}{bits}",
        )
    return page


def outliers_page(found: Outliers, archive: Archive, facts: Sequence[tuple[str, str]] = ()) -> Report:
    """The distribution of scores, and each outlier beside its nearest neighbour."""
    from evals import plots

    shown = found.found[:CASES]
    pictures = Pictures(archive, chain.from_iterable((o.image.id, o.nearest.id) for o in shown))
    said = (
        f"against their {found.k} nearest neighbours: about 1 is usual, 2 is twice as far away as its neighbours are."
    )
    page = Report("Outliers", f"{found.images:,} images scored {said}", facts=facts)
    page.section("Scores").plot(
        plots.histogram({"images": found.scores}, x="local outlier factor"), "How far images lie from their neighbours."
    )
    page.section("The farthest", "Each beside the image that is nearest to it.")
    for outlier in shown:
        page.strip(
            f"score {outlier.score:.2f}",
            [
                (pictures[outlier.image.id], "outlier", _tail(outlier.image.uri), "warn"),
                (
                    pictures[outlier.nearest.id],
                    f"nearest, cosine {outlier.cosine:.3f}",
                    _tail(outlier.nearest.uri),
                    None,
                ),
            ],
            f"mean distance {outlier.distance:.3f}",
        )
    return page


def clusters_page(found: Clusters, archive: Archive, facts: Sequence[tuple[str, str]] = ()) -> Report:
    """A row a cluster, with how the number of clusters was chosen."""
    from evals import plots

    page = Report("Clusters", f"{found.images:,} images by what they look like.", facts=facts)
    if found.tried:
        page.section(
            "How many", "The most clusters of which the silhouette is still good: tight, and apart from the next."
        )
        line = {"silhouette": (list(found.tried), list(found.tried.values()))}
        page.plot(plots.curves(line, x="clusters", y="silhouette"), f"{len(found.clusters)} clusters were chosen.")
    page.section("What there is", "The image nearest to the centre first, then others of the core that differ most.")
    _clusters(page, [(cluster, "") for cluster in found.clusters], archive, "of all")
    return page


def gaps_page(found: Gaps, archive: Archive, facts: Sequence[tuple[str, str]] = ()) -> Report:
    """Coverage in all, what is left out, and coverage by metadata."""
    from evals import plots

    page = Report(
        "Coverage gaps", f"What {found.reference:,} reference images leave out of {found.images:,} others.", facts=facts
    )
    page.figures(
        [
            ("covered", f"{found.share:.1%}", f"{found.covered:,} of {found.images:,}", None),
            ("not covered", f"{found.images - found.covered:,}", f"in {len(found.gaps)} clusters", None),
            ("radius", f"{found.radius:.3f}", f"a cosine of {found.radius_cosine:.3f} or more", None),
        ]
    )
    groups = {"to cover": found.apart} | ({"reference images": found.usual} if len(found.usual) else {})
    page.section("Distances").plot(
        plots.histogram(groups, x="distance to the reference set", lines={"radius": found.radius}),
        "How far images lie from the reference set, and its own images from each other.",
    )
    page.section("What is left out", "Images beyond the radius, by what they look like; most images first.")
    if not found.gaps:
        page.prose("Nothing: every image lies within the radius.")
    _clusters(page, [(gap.cluster, f", mean distance {gap.distance:.3f}") for gap in found.gaps], archive, "of these")
    if found.by:
        page.section("By metadata", "Images to cover by value, how many of them are covered, and reference images.")
    for column, values in found.by.items():
        rows = [(v.value, v.images, v.covered, f"{v.share:.1%}", v.reference) for v in values]
        page.table((column, "images", "covered", "share", "reference"), rows)
    return page


def picks_page(found: Picks, archive: Archive, facts: Sequence[tuple[str, str]] = ()) -> Report:
    """The picks in order, and how the distance that they leave shrinks."""
    from evals import plots

    page = Report(
        "What to label next",
        f"{len(found.picks):,} of {found.images:,} images, {found.labelled:,} labelled already.",
        facts=facts,
    )
    steps = [(pick.rank, pick.distance) for pick in found.picks if pick.distance is not None]
    if len(steps) > 1:
        ranks, apart = zip(*steps, strict=True)
        page.section("Distances", "Where the curve turns flat, further labels add little that is new.").plot(
            plots.curves({"distance": (ranks, apart)}, x="pick", y="distance when picked"),
            "How far each pick lay from everything labelled or picked before it.",
        )
    shown = found.picks[:PICKS]
    pictures = Pictures(archive, (pick.image.id for pick in shown))
    page.section("Picks", _first(len(shown), len(found.picks), "those worth most"))
    page.gallery(
        (
            pictures[pick.image.id],
            f"{pick.rank}. {_tail(pick.image.uri, 1)}"
            + ("" if pick.uncertainty is None else f", uncertainty {pick.uncertainty:.3g}"),
        )
        for pick in shown
    )
    return page


def title(cluster: Cluster, number: int) -> str:
    """What a cluster is called: its first name, or its number."""
    return cluster.names[0].text if cluster.names else f"cluster {number}"


def size(count: int) -> str:
    """Bytes for people: `12.3 MB`."""
    amount = float(count)
    for name in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g} {name}"
        amount /= 1000
    return f"{amount:.3g} TB"


def _clusters(page: Report, clusters: Sequence[tuple[Cluster, str]], archive: Archive, of: str) -> None:
    shown = clusters[:CASES]
    pictures = Pictures(archive, (image.id for cluster, _ in shown for image in cluster.images))
    for number, (cluster, more) in enumerate(shown, 1):
        items: list[tuple[Image, str, str, State | None]] = [
            (pictures[image.id], "central" if i == 0 else "", _tail(image.uri, 1), None)
            for i, image in enumerate(cluster.images)
        ]
        named = "".join(f"; {name.text!r} from {name.source} ({name.evidence})" for name in cluster.names)
        count = f"{cluster.size:,} {'image' if cluster.size == 1 else 'images'}, {cluster.share:.1%} {of}"
        page.strip(title(cluster, number), items, f"{count}, cohesion {cluster.cohesion:.3f}{more}{named}")


def _copies(group: Group, pictures: Mapping[str, Image] | Pictures) -> Iterable[tuple[Image, str, str, State | None]]:
    yield pictures[group.keep.id], "keep", _about(group.keep), "good"
    for copy in group.rest:
        yield pictures[copy.id], f"cosine {copy.cosine:.3f}", _about(copy), None


def _about(copy: Copy) -> str:
    return f"{copy.width} x {copy.height}, {size(copy.bytes)}, {_tail(copy.uri)}"


def _tail(uri: str, parts: int = 2) -> str:
    """The end of a URI, which tells images apart."""
    return "/".join(PurePosixPath(uri).parts[-parts:])


def _first(shown: int, total: int, which: str) -> str:
    return "" if shown == total else f"The first {shown} of {total:,}: {which}."
