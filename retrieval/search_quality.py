"""How good an archive's search is: its index against exact search, its hits against judgements, and its refusals.

Shape letters: Q queries, D embedding dimensions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from evals.intervals import wilson
from evals.results import Data, Measured
from evals.search_page import shown
from foveal.dataset import Dataset, Sample
from foveal.detections import FloatArray
from foveal.errors import BadInput
from foveal.models import Encoder
from foveal.progress import Progress, track
from retrieval.archive import Archive
from retrieval.compare import Question
from retrieval.curate.pages import Pictures
from retrieval.feedback import Feedback
from retrieval.query import SearchQuery
from retrieval.relevance import Model
from retrieval.results import Results
from retrieval.snapshot import Snapshot
from retrieval.tuning import recall, without

K = 10
SAMPLE = 200  # stored images that are asked for their neighbours
DEEP = 200  # hits among which judged ones are looked for, where only some were judged
MISSED = 12  # relevant images kept of those that a query did not find
COLUMNS = (
    "id", "text", "expected", "index_recall", "precision", "recall", "ndcg", "first_right", "refused",
    "right_refusal", "false_refusal", "known_refusal", "refused_rightly", "hits", "similarity", "right", "missed",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Query:
    """A text, the ids of the images that answer it, and whether anything does, as far as these are known."""

    text: str
    relevant: frozenset[str] | None = None
    judged: frozenset[str] | None = None  # the only images of which it is known whether they answer; None: all
    something: bool | None = None  # whether anything in the archive answers


def queries(
    archive: Archive, questions: Sequence[Question] = (), present: Sequence[str] = (), absent: Sequence[str] = ()
) -> list[Query]:
    """What is asked: the questions, texts that something or nothing answers, and texts whose hits people judged.

    Relevant images go by URI, by the end of it (`images/a.jpg`) or by id. What people judged (`Feedback`) counts for
    texts of which no question says what is relevant.

    Raises:
        BadInput: relevant images that the archive does not hold, an ending that fits several, or a text that something
            and nothing is said to answer.
    """
    find = _Finder(archive) if any(question.relevant for question in questions) else None
    found: dict[str, Query] = {}
    for question in questions:
        relevant = None if question.relevant is None else frozenset(find(question.relevant) if find else ())
        something = None if relevant is None else bool(relevant)
        found[question.text] = Query(question.text, relevant, None, something)
    for texts, something in ((present, True), (absent, False)):
        for text in texts:
            before = found.get(text, Query(text))
            if before.something is not None and before.something is not something:
                raise BadInput(f"{text!r} is said to be in the archive, and not to be in it")
            found[text] = Query(text, before.relevant, before.judged, something)
    judgements = Feedback(archive.path / "feedback.sqlite").read()
    for text in dict.fromkeys(one.text for one in judgements):
        before = found.get(text, Query(text))
        if before.relevant is None and before.something is not False:
            mine = [one for one in judgements if one.text == text]
            right = frozenset(one.id for one in mine if one.relevant)
            something = True if right else before.something
            found[text] = Query(text, right, frozenset(one.id for one in mine), something)
    return list(found.values())


def refuses(archive: Archive) -> bool:
    """Whether the archive was calibrated on enough to say of a text that nothing matches it."""
    model = Model.read(archive.folder / "relevance.json")
    return model is not None and model.threshold is not None


def measure(
    archive: Archive,
    encoder: Encoder,
    asked: Sequence[Query],
    k: int = K,
    sample: int = SAMPLE,
    progress: Progress | None = None,
) -> Measured:
    """Every query searched for as `Archive.search` does, and stored images asked of the index for their neighbours.

    Figures (means over the queries of which they can be told): `index_recall`, the share of the true best k that the
    index finds; `precision` of the first k hits, `recall` (of the relevant images as many as k can hold), `ndcg` with
    gains of 0 and 1, and `first_right`, all by ranking alone, refused or not, and where only some images were judged
    over those (condensed lists, Sakai 2007); `right_refusals`, of texts that nothing answers, and `false_refusals`, of
    those that something does, with 95% Wilson `intervals` [low, high]; and `refusal_precision`, the share of refusals
    that are right.
    Items, one a query; images of the archive are only asked of the index.

    Raises:
        BadInput: an empty archive.
        FingerprintMismatch: another encoder than the archive's.
    """
    archive.require(encoder)
    view = archive.snapshot()
    if not len(view.rows):
        raise BadInput(f"{archive.path} is empty, so nothing can be found in it", remedy="Add images.")
    items: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    kinds: list[str | None] = []
    vectors = (
        encoder.encode_texts([query.text for query in asked]) if asked else np.zeros((0, archive.settings.dimension))
    )
    exact = _index_recall(view, np.asarray(vectors, np.float32), k).tolist() if asked else []
    for query, of_index in track(progress, list(zip(asked, exact, strict=True)), "search"):
        deep = k if query.judged is None else max(k, min(DEEP, len(view.rows)))
        results = archive.search(SearchQuery(text=query.text, k=deep, anyway=True), encoder)
        _keep(items, {"id": f"text {query.text}", "index_recall": of_index, **_judged(query, results, k)})
        kinds.append("text")
    picked = np.sort(np.random.default_rng(0).permutation(len(view.rows))[:sample])
    stored = view.table.vectors(view.rows[picked]).astype(np.float32)
    names: list[str] = view.table.take(view.rows[picked], ["id"])["id"].to_pylist()
    alone = _index_recall(view, stored, k, view.seqs[picked]).tolist() if len(view.rows) > 1 and sample else []
    for name, of_index in zip(names, alone, strict=False):
        _keep(items, {"id": f"image {name}", "index_recall": of_index})
        kinds.append("image")
    if not items["id"]:
        raise BadInput("nothing was asked", expected="texts, or a sample of the stored images")
    slices = {"query": kinds} if len(set(kinds)) > 1 else {}
    return Measured(_figures(items, k), items, slices)


def data(archive: Archive, asked: Sequence[Query]) -> Data:
    """What was measured on: equal for archives of the same images, whatever their encoders, and the same queries."""
    view = archive.snapshot()
    rows = view.table.take(view.rows, ["id", "content_hash"])
    pairs = sorted(zip(rows["id"].to_pylist(), rows["content_hash"].to_pylist(), strict=True))
    said = [
        (one.text, one.something, *(None if ids is None else sorted(ids) for ids in (one.relevant, one.judged)))
        for one in asked
    ]
    digest = hashlib.sha256(json.dumps([pairs, said]).encode()).hexdigest()
    return Data(source=str(archive.path), fingerprint=digest, images=len(pairs))


@contextmanager
def pictures(archive: Archive, measured: Measured) -> Generator[Dataset]:
    """The small pictures that a page of the result shows, as a dataset that is there for as long as the context.

    Their metadata holds the `name` of the file.
    """
    ids = shown(measured.items)
    names = {id: str(row["uri"]).rpartition("/")[2] for id, row in archive.items(ids, ["uri"]).items()}
    with TemporaryDirectory() as folder:
        small, samples = Pictures(archive, ids), list[Sample]()
        for id in ids:
            image, path = small[id].convert("RGB"), Path(folder) / f"{id}.png"
            image.save(path)
            samples.append(Sample(id, path, *image.size, metadata={"name": names.get(id, id)}))
        yield Dataset.build(samples, ())


def _index_recall(view: Snapshot, vectors: FloatArray, k: int, itself: Any = None) -> FloatArray:
    """The share (Q,) of the true best k that the index finds; `itself`, the query's own seq (Q,), is not one."""
    if itself is None:
        return recall(view.nearest(vectors, k).similarity, view.brute_force(vectors, k)[0])
    near = view.nearest(vectors, k + 1)
    truth = without(view.brute_force(vectors, k + 1), itself)
    return recall(without((near.similarity, view.seqs_of(near)), itself), truth)


def _judged(query: Query, results: Results, k: int) -> dict[str, Any]:
    """The columns of one text."""
    hits = [hit for hit in results if query.judged is None or hit.id in query.judged][:k]
    known: dict[str, Any] = {}
    if query.something is not None:
        refused = int(results.nothing)
        rightly = int(refused and not query.something)
        known = {
            "false_refusal" if query.something else "right_refusal": refused,
            "known_refusal": refused,
            "refused_rightly": rightly,
        }
    if query.relevant is not None and query.something is not False:
        known |= _ranked([hit.id for hit in hits], query.relevant, k)
        known["missed"] = sorted(query.relevant - {hit.id for hit in hits})[:MISSED]
    return {
        "text": query.text,
        "expected": {True: "something", False: "nothing", None: None}[query.something],
        "refused": int(results.nothing),
        "hits": [hit.id for hit in hits],
        "similarity": [hit.similarity for hit in hits],
        "right": None if query.relevant is None else [int(hit.id in query.relevant) for hit in hits],
        **known,
    }


def _ranked(hits: Sequence[str], relevant: frozenset[str], k: int) -> dict[str, float | None]:
    right = np.array([hit in relevant for hit in hits], np.float64)
    most = min(k, len(relevant))
    discount = 1 / np.log2(np.arange(2, k + 2))
    return {
        "precision": float(right.mean()) if len(right) else None,
        "first_right": float(right[0]) if len(right) else None,
        "recall": float(right.sum() / most) if most else None,
        "ndcg": float((right * discount[: len(right)]).sum() / discount[:most].sum()) if most else None,
    }


def _figures(items: Mapping[str, list[Any]], k: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name in ("index_recall", "precision", "recall", "ndcg", "first_right"):
        if values := [value for value in items[name] if value is not None]:
            figures[name] = float(np.mean(values))
    intervals: dict[str, list[float]] = {}
    for column, name in (("right_refusal", "right_refusals"), ("false_refusal", "false_refusals")):
        if values := [value for value in items[column] if value is not None]:
            figures[name] = float(np.mean(values))
            intervals[name] = list(wilson(sum(values), len(values)))
    refused = sum(value or 0 for value in items["known_refusal"])
    if refused:
        figures["refusal_precision"] = sum(value or 0 for value in items["refused_rightly"]) / refused
    judged = sum(value is not None for value in items["precision"])
    counts = {"k": k, "queries": len(items["id"]), "judged": judged}
    return {**figures, **counts, **({"intervals": intervals} if intervals else {})}


def _keep(items: dict[str, list[Any]], row: Mapping[str, Any]) -> None:
    for name, column in items.items():
        column.append(row.get(name))


class _Finder:
    """Ids of images by URI, by the end of it, or by id."""

    def __init__(self, archive: Archive) -> None:
        view = archive.snapshot()
        rows = view.table.take(view.rows, ["id", "uri"])
        self._ids: list[str] = rows["id"].to_pylist()
        self._known = {name: id for name, id in zip(rows["uri"].to_pylist(), self._ids, strict=True)}
        self._by_name: dict[str, list[str]] = {}
        for uri in self._known:
            self._by_name.setdefault(uri.rpartition("/")[2], []).append(uri)
        self._known |= {id: id for id in self._ids}

    def __call__(self, names: frozenset[str]) -> list[str]:
        found = {name: self._one(name) for name in sorted(names)}
        lacking = [name for name, id in found.items() if id is None]
        if lacking:
            raise BadInput(
                f"{len(lacking):,} relevant images are not in the archive, the first {lacking[0]!r}",
                expected="URIs, the ends of them, or ids",
                remedy="Take them from `foveal archive search --json`.",
            )
        return [id for id in found.values() if id is not None]

    def _one(self, name: str) -> str | None:
        if name in self._known:
            return self._known[name]
        fitting = [uri for uri in self._by_name.get(name.rpartition("/")[2], ()) if uri.endswith(f"/{name}")]
        if len(fitting) > 1:
            raise BadInput(f"{name!r} may be {len(fitting)} images", received=", ".join(fitting[:3]))
        return self._known[fitting[0]] if fitting else None
