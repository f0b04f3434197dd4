"""One search of an archive: candidates by vector and by words, arranged into a page of hits that explain themselves.

Shape letters: N candidates, D embedding dimensions, P parts of the query.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from foveal.detections import BoolArray, FloatArray, IntArray
from foveal.errors import BadInput
from retrieval.candidates import Candidates, best, located
from retrieval.cursors import Cursor
from retrieval.index import Subset
from retrieval.query import MAX_POOL, Collapse, EncodedQuery
from retrieval.ranking import diverse, fuse, groups
from retrieval.relevance import Relevance, Verdict
from retrieval.results import Contribution, Hit, Results
from retrieval.snapshot import Snapshot
from retrieval.words import CATCH_UP, WAIT, Words


@dataclass(slots=True)
class Page:
    """Candidates chosen for a page."""

    hits: Candidates
    collapsed: IntArray  # (N,) near-duplicates each stands for
    cursor: Cursor | None


@dataclass(slots=True)
class Searcher:
    """Searches one generation of an archive; keeps what it has opened."""

    folder: Path  # of the generation
    words: Words = field(init=False)
    relevance: Relevance = field(init=False)

    def __post_init__(self) -> None:
        self.words = Words(self.folder / "words.sqlite")
        self.relevance = Relevance(self.folder / "relevance.json")

    def run(self, view: Snapshot, asked: EncodedQuery, allowed: Sequence[Subset] | None) -> Results:
        """A page of hits among the `allowed` rows of `view`, a subset for each part; all of them when None.

        Raises:
            BadInput: the cursor is not this query's, an item is not in the archive, or the parts cancel each other out.
        """
        query = asked.query
        kept = len(view.rows) if allowed is None else sum(len(subset) for subset in allowed)
        digest = hashlib.sha256(f"{asked.digest} {self.folder}".encode()).hexdigest()[:16]
        last = int(view.seqs[-1]) if len(view.seqs) else -1
        cursor = Cursor(digest, last) if query.cursor is None else Cursor.read(query.cursor, digest)
        vector, shares = asked.composed(lambda ids: _stored(view, ids))
        notes: list[str] = []
        matches = None if query.words is None else self._matching(view, query.words, allowed, cursor.bound, notes)
        if query.rearranged:
            page, top = self._arranged(view, asked, vector, allowed, cursor, matches)
        else:
            page, top = _ordered(view, query.k, query.collapse, vector, allowed, cursor)
        verdict = self.relevance.judge(view, asked, page.hits.vectors, top.vectors, kept)
        searched = None if notes else matches  # what was not searched does not prove that nothing is there
        reason = _reason(asked, kept, len(view.rows), searched, verdict) if query.cursor is None else None
        if asked.query.all_parts and self.relevance.damage is not None:
            notes.append(f"searched without probabilities: {self.relevance.damage}")
        if reason is not None and not query.anyway:
            page = Page(page.hits.take(np.zeros(0, np.int64)), page.collapsed[:0], None)
        return Results(
            tuple(self._explained(view, asked, page, shares, verdict, notes)),
            kept=kept,
            filter=query.filter,
            cursor=None if page.cursor is None else page.cursor.text(),
            reason=reason,
            collapsed=int(page.collapsed.sum()),
            notes=tuple(dict.fromkeys(notes)),
        )

    def _arranged(
        self,
        view: Snapshot,
        asked: EncodedQuery,
        vector: FloatArray,
        allowed: Sequence[Subset] | None,
        cursor: Cursor,
        matches: list[int] | None,
    ) -> tuple[Page, Candidates]:
        """A page in an order other than that of similarity, and the most similar candidates."""
        query = asked.query
        by_vector = matches is None or any(part.weight > 0 for part in query.all_parts)
        pool = best(view, vector, allowed, cursor.bound, MAX_POOL if by_vector else query.k, lambda _: True)
        pool = top = pool.take(np.arange(min(len(pool), MAX_POOL)))
        worth = pool.similarity.astype(np.float64)
        if matches is not None:
            rankings = [pool.seqs.tolist(), matches] if by_vector else [matches]
            score = fuse(rankings)
            pool = located(view, vector, np.array(list(score), np.int64), allowed, cursor.bound)
            worth = np.array([score[seq] for seq in pool.seqs.tolist()], np.float64)
            order = np.argsort(-worth, kind="stable")
            pool, worth = pool.take(order), worth[order]
        mine = _grouped(view, pool, query.collapse)
        heads = np.flatnonzero(mine == np.arange(len(pool)))
        shown = np.isin(pool.seqs[heads], cursor.shown)
        if query.diversity > 0:
            taken = np.flatnonzero(shown).tolist()
            chosen = diverse(worth[heads], pool.vectors[heads], taken, query.diversity, query.k + 1)
        else:
            chosen = np.flatnonzero(~shown)[: query.k + 1].tolist()
        picked = heads[np.array(chosen[: query.k], np.int64)]
        following = None
        if len(chosen) > query.k:
            seen = sorted({*cursor.shown, *pool.seqs[picked].tolist()})
            following = Cursor(cursor.digest, cursor.bound, shown=tuple(seen))
        sizes = np.bincount(mine, minlength=len(pool))
        return Page(pool.take(picked), sizes[picked] - 1, following), top

    def _matching(
        self, view: Snapshot, words: str, allowed: Sequence[Subset] | None, bound: int, notes: list[str]
    ) -> list[int]:
        """seqs of the allowed rows whose texts match best; what could not be searched goes into `notes`."""
        if lacking := self.words.update(view, CATCH_UP, WAIT):
            notes.append(lacking)
        among = view.seqs if allowed is None else _seqs(view, allowed)
        try:
            return list(islice(self.words.find(words, among[among <= bound]), MAX_POOL))
        except sqlite3.Error as error:
            notes.append(f"searched without keywords: {error}")
            return []

    def _explained(
        self,
        view: Snapshot,
        asked: EncodedQuery,
        page: Page,
        shares: FloatArray,
        verdict: Verdict | None,
        notes: list[str],
    ) -> list[Hit]:
        hits, query = page.hits, asked.query
        amounts = (hits.vectors @ shares.T).tolist()
        keywords: dict[int, tuple[str, ...]] = {}
        if query.words is not None and len(hits):
            try:
                keywords = self.words.matched(hits.seqs.tolist(), query.words)
            except sqlite3.Error as error:
                notes.append(f"searched without keywords: {error}")
        parts = [(part.name, part.weight) for part in asked.parts]
        chances = [None] * len(hits) if verdict is None else verdict.probabilities[: len(hits)].tolist()
        return [
            Hit(
                id,
                uri,
                similarity,
                metadata,
                chance,
                tuple([Contribution(*part, a) for part, a in zip(parts, amount, strict=True)]),
                keywords.get(seq, ()),
                collapsed,
            )
            for (id, uri, metadata), similarity, chance, amount, seq, collapsed in zip(
                view.told(hits.found()) if len(hits) else (),
                hits.similarity.tolist(),
                chances,
                amounts,
                hits.seqs.tolist(),
                page.collapsed.tolist(),
                strict=True,
            )
        ]


def _ordered(
    view: Snapshot,
    k: int,
    collapse: Collapse | None,
    vector: FloatArray,
    allowed: Sequence[Subset] | None,
    cursor: Cursor,
) -> tuple[Page, Candidates]:
    """The page after `cursor` by falling similarity, equals by seq, and every candidate from the best on."""

    def after(rows: Candidates) -> BoolArray:
        equal = rows.similarity == np.float32(cursor.similarity)
        return (rows.similarity < np.float32(cursor.similarity)) | (equal & (rows.seqs > cursor.seq))

    def heads(rows: Candidates) -> tuple[IntArray, IntArray]:
        mine = _grouped(view, rows, collapse)
        return mine, np.flatnonzero((mine == np.arange(len(rows))) & after(rows))

    rows = best(view, vector, allowed, cursor.bound, cursor.seen + k + 1, lambda rows: len(heads(rows)[1]) > k)
    mine, firsts = heads(rows)
    more = len(firsts) > k
    picked = firsts[:k]
    end = int(firsts[k]) if more else len(rows)  # what lies behind the next head is another page's
    sizes = np.bincount(mine[:end], minlength=len(rows))[picked] - 1
    following = None
    if more:
        last = int(picked[-1])
        following = Cursor(cursor.digest, cursor.bound, float(rows.similarity[last]), int(rows.seqs[last]), last + 1)
    return Page(rows.take(picked), sizes, following), rows


def _grouped(view: Snapshot, rows: Candidates, collapse: Collapse | None) -> IntArray:
    """The place (N,) of the candidate that stands for each; itself where nothing is collapsed."""
    if collapse is None:
        return np.arange(len(rows))
    hashes: list[int | None] = [None] * len(rows)
    if collapse.bits is not None and len(rows):
        lance_rows = view.rows[np.searchsorted(view.seqs, rows.seqs)]
        hashes = view.table.take(lance_rows, ["phash"])["phash"].to_pylist()
    return groups(rows.vectors, hashes, collapse.cosine, collapse.bits)


def _stored(view: Snapshot, ids: Sequence[str]) -> list[FloatArray]:
    """The unit vectors (D,) of archived images by id; BadInput when one is not there."""
    found: dict[str, dict[str, Any]] = view.table.find(list(dict.fromkeys(ids)), ["vector"]) if ids else {}
    missing = [id for id in ids if id not in found]
    if missing:
        raise BadInput(
            f"the archive has no item {missing[0][:80]!r}",
            remedy="Take the `id` of a hit; images may have been deleted.",
        )
    vectors = [np.asarray(found[id]["vector"], dtype=np.float32) for id in ids]
    return [(vector / np.linalg.norm(vector)).astype(np.float32) for vector in vectors]


def _seqs(view: Snapshot, allowed: Sequence[Subset]) -> IntArray:
    """seqs, ascending, of the rows that a filter keeps."""
    none = np.zeros(0, np.int64)
    kept = [part.seqs[among.positions] for part, among in zip(view.parts, allowed, strict=True)]
    return np.concatenate([none, *kept])


def _reason(
    asked: EncodedQuery, kept: int, images: int, matches: Sequence[int] | None, verdict: Verdict | None
) -> str | None:
    """Why the query matches nothing; None when it does, or when that cannot be told."""
    query = asked.query
    if not images:
        return "the archive is empty"
    if not kept:
        return f"no image fits the filter {query.filter}"
    if matches:
        return None
    if not any(part.weight > 0 for part in query.all_parts):  # words alone
        return (
            None
            if matches is None
            else f"no name or text contains {' or '.join(map(repr, Words.terms(query.words or '')))}"
        )
    return None if verdict is None else verdict.reason
