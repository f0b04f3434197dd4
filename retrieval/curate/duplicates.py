"""Groups of images that are copies of each other, the one of each to keep, and what removing the rest saves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from foveal.detections import IntArray
from foveal.progress import Progress
from retrieval.archive import Archive
from retrieval.curate.links import Likeness, Links, cosines
from retrieval.curate.selection import FIELDS, Selection


@dataclass(frozen=True, slots=True)
class Copy:
    """One image of a group."""

    id: str
    uri: str
    width: int
    height: int
    bytes: int  # of the file
    bits: int | None  # in which its perceptual hash differs from that of the image to keep; None without hashes
    cosine: float  # to the image to keep


@dataclass(frozen=True, slots=True)
class Group:
    """Copies of one picture."""

    keep: Copy  # the one with most pixels, then most bytes, then the first added
    rest: tuple[Copy, ...]
    exact: bool  # whether all have the same bytes

    @property
    def saves(self) -> int:
        """Bytes of the files that can go."""
        return sum(copy.bytes for copy in self.rest)


@dataclass(frozen=True, slots=True)
class Duplicates:
    """All groups of two images and more, those that save most first."""

    images: int  # looked at
    groups: tuple[Group, ...]
    unhashed: int  # images without a perceptual hash: added by vector, or before archives had them
    blank: int  # images of one colour, which only equal bytes or vectors can tell to be copies

    @property
    def extra(self) -> tuple[str, ...]:
        """The ids of all images that can go."""
        return tuple(copy.id for group in self.groups for copy in group.rest)

    @property
    def saves(self) -> int:
        """Bytes of the files that can go."""
        return sum(group.saves for group in self.groups)

    def summary(self) -> dict[str, Any]:
        """Figures, as plain values."""
        return {
            "images": self.images,
            "groups": len(self.groups),
            "exact": sum(group.exact for group in self.groups),
            "extra": len(self.extra),
            "saves_bytes": self.saves,
            "unhashed": self.unhashed,
            "blank": self.blank,
        }

    def rows(self) -> list[dict[str, Any]]:
        """A plain record an image, group after group, the one to keep first."""
        return [
            {"group": number, "kind": "exact" if group.exact else "near", "keep": copy is group.keep, **asdict(copy)}
            for number, group in enumerate(self.groups, 1)
            for copy in (group.keep, *group.rest)
        ]


def find_duplicates(
    archive: Archive, like: Likeness | None = None, *, filter: str | None = None, progress: Progress | None = None
) -> Duplicates:
    """Groups of copies among the images that `filter` keeps; deletes nothing.

    Images with equal bytes always belong together; `like` says what else does. Groups are connected components: A and
    C may differ by more than the limit where a B between them does not, as frames of a video do.

    Raises:
        BadInput: the filter is not one or keeps nothing, or a limit lies outside its range.
    """
    images = Selection.of(archive, filter)
    links = Links.find(images, like or Likeness(), progress=progress)
    ones = np.ones(len(links.first), np.int8)
    graph = coo_array((ones, (links.first, links.second)), shape=(len(images), len(images)))
    component = connected_components(graph, directed=False)[1].astype(np.int64)
    members = np.flatnonzero(np.bincount(component)[component] > 1)
    members = members[np.argsort(component[members], kind="stable")]
    ends = np.flatnonzero(np.diff(component[members])) + 1
    groups = _groups(images, members, np.split(np.arange(len(members)), ends) if len(members) else [], links)
    return Duplicates(len(images), groups, links.hashes.missing, links.hashes.blank)


def _groups(images: Selection, members: IntArray, split: list[IntArray], links: Links) -> tuple[Group, ...]:
    """The groups, each given by positions within `members`."""
    rows = images.table(FIELDS, members).to_pylist()
    order = [
        sorted(group.tolist(), key=lambda i: (-rows[i]["width"] * rows[i]["height"], -rows[i]["bytes"], i))
        for group in split
    ]
    places = np.array([members[i] for group in order for i in group], np.int64)
    kept = np.array([members[group[0]] for group in order for _ in group], np.int64)
    bits = iter(links.hashes.apart(kept, places).tolist())
    cosine = iter(cosines(images, kept, places).tolist())
    found: list[Group] = []
    for group in order:
        hashes = {rows[i]["content_hash"] for i in group}
        copies = [
            Copy(
                rows[i]["id"], rows[i]["uri"], rows[i]["width"], rows[i]["height"], rows[i]["bytes"],
                None if (apart := next(bits)) < 0 else apart, next(cosine),
            )
            for i in group
        ]  # fmt: skip
        found.append(Group(copies[0], tuple(copies[1:]), len(hashes) == 1 and "" not in hashes))
    return tuple(sorted(found, key=lambda group: (-group.saves, -len(group.rest))))
