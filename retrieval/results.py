"""What is found: hits that explain themselves, and what became of the query as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload


@dataclass(slots=True)  # not frozen: that would make making one three times as slow, and a search makes many
class Contribution:
    """What one part of the query adds to the similarity of a hit; those of all parts add up to it."""

    part: str  # e.g. `text 'a red crate'` or `not image dull.jpg`
    weight: float
    amount: float


@dataclass(slots=True)  # not frozen, as above
class Hit:
    """One image found."""

    id: str
    uri: str
    similarity: float  # cosine to the query, [-1, 1]
    metadata: Mapping[str, str | int | float]
    probability: float | None = None  # that it shows what is asked for; None where that cannot be told
    parts: tuple[Contribution, ...] = ()
    keywords: tuple[str, ...] = ()  # the query's words that its texts contain
    collapsed: int = 0  # near-duplicates that it stands for


@dataclass(frozen=True, slots=True)
class Results(Sequence[Hit]):
    """The hits of one page, best first."""

    hits: tuple[Hit, ...]
    kept: int  # images that the filter left; all of them without one
    filter: str | None = None  # that applied
    cursor: str | None = None  # for the next page; None on the last
    reason: str | None = None  # why nothing matches
    collapsed: int = 0  # near-duplicates not shown on this page
    notes: tuple[str, ...] = ()  # what could not be done as asked

    @property
    def nothing(self) -> bool:
        """Whether the archive holds nothing that matches."""
        return self.reason is not None

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    @overload
    def __getitem__(self, index: int) -> Hit: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Hit]: ...

    def __getitem__(self, index: int | slice) -> Hit | Sequence[Hit]:
        return self.hits[index]
