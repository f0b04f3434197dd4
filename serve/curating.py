"""What an archive holds twice, what lies apart in it, what it is made of: worked out once, until the archive changes.

One piece of work at a time goes on, on a thread; whoever asks for the same thing waits for the same work, and nobody's
leaving ends it.
"""

from __future__ import annotations

import asyncio
from typing import Literal

import anyio

from retrieval.archive import Archive
from retrieval.curate.clusters import Clusters, find_clusters
from retrieval.curate.duplicates import Duplicates, find_duplicates
from retrieval.curate.links import Likeness
from retrieval.curate.outliers import Outliers, find_outliers
from serve.engine import Engine

What = Literal["duplicates", "outliers", "clusters"]
Found = Duplicates | Outliers | Clusters
State = tuple[str, int, int, int]  # of an archive; another one once anything in it changes
LIKE = Likeness(6, 0.98, both=True)  # by hash and by vector: either alone calls pictures of one place copies
OUTLIERS = 60  # that are worked out


class Curated:
    """The latest finding of each kind on each archive of an engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._found: dict[tuple[str, What], tuple[State, asyncio.Task[Found]]] = {}
        self._at_once = anyio.CapacityLimiter(1)

    async def find(self, what: What, archive: str | None = None) -> Found:
        """What there is, from before where the archive is still the same.

        Raises:
            NotFound: there is no such archive.
            BadInput: it holds no images.
        """
        name, _ = self.engine.archives.named(archive)
        state = await self.engine.looked_up(_state, name)
        known = self._found.get((name, what))
        if known is None or known[0] != state or known[1].cancelled():
            known = state, asyncio.create_task(self._work(what, name))
            self._found[name, what] = known
        try:
            return await asyncio.shield(known[1])
        except Exception:
            if self._found.get((name, what)) is known:
                del self._found[name, what]  # to be tried again
            raise

    async def _work(self, what: What, name: str) -> Found:
        async with self._at_once:
            return await self.engine.looked_up(lambda store: _find(what, store), name)


def _find(what: What, store: Archive) -> Found:
    if what == "duplicates":
        return find_duplicates(store, LIKE)
    if what == "outliers":
        return find_outliers(store, OUTLIERS)
    return find_clusters(store)


def _state(store: Archive) -> State:
    view = store.snapshot()
    last = int(view.seqs[-1]) if len(view.seqs) else -1
    return store.fingerprint, int(view.table.version), len(view.seqs), last
