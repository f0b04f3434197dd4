"""What a visitor looks for: everything that a link to the search page carries, and the query that it means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from foveal.errors import BadInput
from retrieval.query import Collapse, Part, SearchQuery
from serve.engine import ITEM_ID, Engine

if TYPE_CHECKING:
    from PIL.Image import Image

K, MOST_K = 24, 60  # hits a page
MOST_MARKS = 30  # of each kind, that a query takes in
SMALLEST = 0.02  # side of a region, as a share of the picture's; less is a click that slipped
Region = tuple[float, float, float, float]  # x1, y1, x2, y2 as shares of the picture's width and height, [0, 1]


@dataclass(frozen=True, slots=True)
class Looking:
    """What is looked for."""

    text: str = ""
    minus: str = ""  # what it should not show
    words: str = ""  # to match in names, captions and labels
    where: str = ""  # a filter over metadata
    like: str = ""  # id of an item of the archive to be like
    image: Image | None = None  # an uploaded picture to be like; no link carries it
    region: Region | None = None  # of that item or picture
    share: float = 0.5  # of the picture beside a text
    k: int = K
    fold: bool = False  # one of each group of near-duplicates
    anyway: bool = False  # the nearest even where nothing matches
    liked: tuple[str, ...] = ()
    disliked: tuple[str, ...] = ()
    archive: str = ""  # where; empty: in the first one

    @property
    def empty(self) -> bool:
        """Whether nothing is asked for at all."""
        return not (self.text or self.minus or self.words or self.where or self.like or self.image)

    @property
    def link(self) -> str:
        """The page's address with all of it, from the `?` on."""
        values = {
            "q": self.text,
            "in": self.archive,
            "not": self.minus,
            "words": self.words,
            "where": self.where,
            "like": self.like,
            "region": "" if self.region is None or not self.like else ",".join(f"{edge:.3f}" for edge in self.region),
            "share": "" if self.share == 0.5 or not (self.text and self.like) else f"{self.share:g}",
            "k": "" if self.k == K else str(self.k),
            "fold": "1" if self.fold else "",
            "anyway": "1" if self.anyway else "",
            "right": ",".join(self.liked),
            "wrong": ",".join(self.disliked),
        }
        return "?" + urlencode({name: value for name, value in values.items() if value})

    @classmethod
    def of_link(cls, values: Mapping[str, str]) -> Looking:
        """What a link's values ask for; what cannot be read in them is left out."""

        def number(name: str, otherwise: float, least: float, most: float) -> float:
            try:
                value = float(values.get(name, ""))
            except ValueError:
                return otherwise
            return min(max(value, least), most) if math.isfinite(value) else otherwise

        def ids(name: str) -> tuple[str, ...]:
            given = dict.fromkeys(values.get(name, "").split(","))
            return tuple(id for id in given if ITEM_ID.fullmatch(id))[:MOST_MARKS]

        like = (*ids("like"), "")[0]
        return cls(
            text=values.get("q", "").strip(),
            archive=values.get("in", ""),
            minus=values.get("not", "").strip(),
            words=values.get("words", "").strip(),
            where=values.get("where", "").strip(),
            like=like,
            region=region_of(values.get("region", "")) if like else None,
            share=number("share", 0.5, 0, 1),
            k=int(number("k", K, 1, MOST_K)),
            fold=values.get("fold") == "1",
            anyway=values.get("anyway") == "1",
            liked=ids("right"),
            disliked=ids("wrong"),
        )

    async def query(self, engine: Engine, cursor: str | None = None) -> SearchQuery:
        """The query, for the page behind `cursor` or the first.

        Raises:
            BadInput: there is nothing to look for, or it cannot be used.
            NotFound: the item to be like is not there.
        """
        pictured = bool(self.like) or self.image is not None
        share = (self.share if self.text else 1.0) if pictured else 0.0
        if not (self.text or self.words or pictured):
            raise BadInput(
                "there is nothing to look for yet",
                expected="a description, words to match, or a picture",
                remedy="What it should not show, and which pictures count, narrow a search; they do not make one.",
            )
        parts = [Part(text=self.text, weight=1 - share)] if self.text and share < 1 else []
        if share > 0:
            parts.append(await self._picture(engine, share))
        query = SearchQuery(
            negative=self.minus or None,
            words=self.words or None,
            filter=self.where or None,
            k=self.k,
            parts=tuple(parts),
            collapse=Collapse() if self.fold else None,
            anyway=self.anyway,
        )
        return replace(query.refined(self.liked, self.disliked), cursor=cursor)

    async def _picture(self, engine: Engine, weight: float) -> Part:
        if self.like and self.region is None:
            return Part(id=self.like, weight=weight)
        image = (
            self.image
            if self.image is not None
            else await engine.picture(await engine.item(self.like, self.archive or None))
        )
        if self.region is None:
            return Part(image=image, weight=weight)
        x1, y1, x2, y2 = self.region
        box = (x1 * image.width, y1 * image.height, x2 * image.width, y2 * image.height)
        return Part(image=image, box=box, weight=weight)


def region_of(text: str) -> Region | None:
    """The region that four numbers with commas between them name; None when they name none of a size worth a look."""
    try:
        x1, y1, x2, y2 = (min(max(float(edge), 0.0), 1.0) for edge in text.split(","))
    except ValueError:
        return None
    return (x1, y1, x2, y2) if min(x2 - x1, y2 - y1) >= SMALLEST else None  # also where one is no number
