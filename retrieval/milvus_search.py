"""One search of an archive in Milvus: a page of hits by similarity, each with what every part of the query adds to it.

Shape letters: Q queries, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from foveal.detections import FloatArray
from foveal.errors import BadInput
from retrieval.cursors import Cursor
from retrieval.milvus_server import Collection
from retrieval.query import MAX_K, EncodedQuery, SearchQuery
from retrieval.results import Contribution, Hit, Results
from retrieval.table import batched

DEEPEST = 16_384  # hits that Milvus gives of one query
AT_ONCE = 64  # queries a call
FIELDS = ["uri", "metadata"]


@dataclass(frozen=True, slots=True)
class Searcher:
    """Searches one collection of D-dimensional vectors."""

    rows: Collection
    dimension: int

    def run(self, asked: EncodedQuery, expression: str) -> Results:
        """A page of hits among the rows that `expression`, in Milvus' language, keeps; all of them when it is empty.

        Later pages repeat no image, and lose none of those that were there at the first and still are, as far as
        Milvus' index finds them. Unlike those of an `Archive` they may show an image that came meanwhile.

        Raises:
            BadInput: the query asks for what Milvus does not do, the cursor is not this query's, an item is not in the
                archive, or the parts cancel each other out.
        """
        query = asked.query
        _possible(query)
        kept = self.rows.count(expression)
        digest = f"{asked.digest}-{self.rows.name}"
        cursor = Cursor(digest, 0) if query.cursor is None else Cursor.read(query.cursor, digest)
        vector, shares = asked.composed(self._stored)
        found, following, notes = self._page(vector, query.k, expression, cursor)
        reason = None
        if not kept and query.cursor is None:
            reason = "the archive is empty" if query.filter is None else f"no image fits the filter {query.filter}"
        hits: list[Hit] = []
        for row in found:
            amounts = (shares @ np.asarray(row["entity"]["vector"], np.float32)).tolist()
            parts = zip(asked.parts, amounts, strict=True)
            hits.append(_hit(row, tuple(Contribution(part.name, part.weight, amount) for part, amount in parts)))
        return Results(
            tuple(hits),
            kept=kept,
            filter=query.filter,
            cursor=None if following is None else following.text(),
            reason=reason,
            notes=notes,
        )

    def nearest(self, queries: FloatArray, k: int, expression: str) -> list[list[Hit]]:
        """The best k rows that `expression` keeps for each unit vector of `queries` (Q, D), best first.

        Raises:
            BadInput: wrong dimensions, or k out of range.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise BadInput(
                "queries have the wrong shape", expected=f"(Q, {self.dimension})", received=str(queries.shape)
            )
        if not 1 <= k <= MAX_K:
            raise BadInput("k lies outside its range", expected=f"1 to {MAX_K}", received=str(k))
        if not np.isfinite(queries).all():
            raise BadInput("a query holds NaN or infinity", expected="finite numbers")
        return [
            [_hit(row) for row in found]
            for part in batched(list(queries.astype(np.float32)), AT_ONCE)
            for found in self._search(part, k, expression, FIELDS)
        ]

    def _page(
        self, vector: FloatArray, k: int, expression: str, cursor: Cursor
    ) -> tuple[list[dict[str, Any]], Cursor | None, tuple[str, ...]]:
        """The rows after `cursor`, and the cursor behind them.

        Milvus does not order equals the same way every time, so the cursor knows those that were shown.
        """
        limit = min(cursor.seen + k + 1, DEEPEST)
        while True:
            rows = self._search([vector], limit, expression, [*FIELDS, "vector"])[0]
            after = [row for row in rows if _is_after(row, cursor)]
            if len(after) > k or len(rows) < limit or limit == DEEPEST:
                break
            limit = min(2 * limit, DEEPEST)
        page = after[:k]
        if len(after) <= k:
            cut = len(rows) == DEEPEST
            return page, None, (f"Milvus gives at most {DEEPEST:,} hits of a query",) if cut else ()
        last = float(page[-1]["distance"])
        equal = {_number(row) for row in page if row["distance"] == last}
        if last == cursor.similarity:
            equal.update(cursor.shown)
        return page, Cursor(cursor.digest, 0, last, seen=cursor.seen + k, shown=tuple(sorted(equal))), ()

    def _search(
        self, queries: Sequence[FloatArray], limit: int, expression: str, fields: Sequence[str]
    ) -> list[list[dict[str, Any]]]:
        found: Any = self.rows.ask(
            "search",
            data=[query.tolist() for query in queries],
            anns_field="vector",
            limit=limit,
            filter=expression,
            output_fields=list(fields),
            search_params={"metric_type": "IP"},
        )
        return [list(rows) for rows in found]

    def _stored(self, ids: Sequence[str]) -> list[FloatArray]:
        """The unit vectors (D,) of archived images by id; BadInput when one is not there."""
        found = self.rows.find(list(dict.fromkeys(ids)), ["vector"]) if ids else {}
        missing = [id for id in ids if id not in found]
        if missing:
            raise BadInput(
                f"the archive has no item {missing[0][:80]!r}",
                remedy="Take the `id` of a hit; images may have been deleted.",
            )
        return [np.asarray(found[id]["vector"], np.float32) for id in ids]


def _possible(query: SearchQuery) -> None:
    wanted = {
        "words": query.words is not None,
        "collapse": query.collapse is not None,
        "diversity": query.diversity > 0,
    }
    if asked := [name for name, is_wanted in wanted.items() if is_wanted]:
        raise BadInput(
            f"an archive in Milvus cannot search with {' and '.join(asked)}",
            expected="texts, images, items, a filter, k and a cursor",
            remedy=f"Leave {' and '.join(asked)} out, or search an archive in a folder.",
        )


def _hit(row: dict[str, Any], parts: tuple[Contribution, ...] = ()) -> Hit:
    told = row["entity"]
    return Hit(str(row["id"]), told["uri"], float(row["distance"]), orjson.loads(told["metadata"]), parts=parts)


def _is_after(row: dict[str, Any], cursor: Cursor) -> bool:
    similarity = row["distance"]
    return similarity < cursor.similarity or (similarity == cursor.similarity and _number(row) not in cursor.shown)


def _number(row: dict[str, Any]) -> int:
    """An id, which is hexadecimal, as the cursor keeps it."""
    return int(row["id"], 16)
