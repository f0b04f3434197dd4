"""Search measured: against exact search, against judgements worked out by hand, and by what it refuses."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evals.measures import measures_of
from evals.results import read
from foveal.detections import FloatArray
from foveal.errors import BadInput, FingerprintMismatch
from retrieval import search_quality
from retrieval.archive import Archive
from retrieval.compare import Question
from retrieval.feedback import Feedback, Judgement
from retrieval.ingest import identity
from retrieval.relevance_fit import calibrate
from retrieval.search_quality import Query, data, measure, queries
from retrieval.snapshot import Found, Snapshot
from tests.command import foveal
from tests.retrieval.pixels import COLOURS, PixelEncoder, write_images
from tests.retrieval.test_relevance import ENCODER, THINGS, kept

PIXELS = PixelEncoder()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Five pictures of each colour."""
    folder = tmp_path_factory.mktemp("pixels")
    write_images(folder / "images", 40)
    made = Archive.create(folder / "archive", PIXELS, reference="bundled:clip")
    made.add(folder / "images", PIXELS)
    return made


def uris(archive: Archive) -> list[str]:
    return sorted(item["uri"] for item in archive.items(archive.matching("width > 0"), ["uri"]).values())


def coloured(archive: Archive, colour: str) -> list[str]:
    return uris(archive)[COLOURS.index(colour) :: len(COLOURS)]


def test_ranking_worked_out_by_hand(archive: Archive) -> None:
    found = [hit.id for hit in archive.nearest(PIXELS.encode_texts(["red"]), 4)[0]]
    relevant = frozenset([found[0], found[3], *"abcd"])  # more than four hits can hold
    measured = measure(archive, PIXELS, [Query("red", relevant, None, True)], k=4, sample=0)
    hits = [int(id in relevant) for id in found]
    dcg = sum(hit / math.log2(place + 2) for place, hit in enumerate(hits))
    best = sum(1 / math.log2(place + 2) for place in range(4))
    assert measured.figures["precision"] == 2 / 4
    assert measured.figures["recall"] == 2 / 4
    assert measured.figures["ndcg"] == pytest.approx(dcg / best)
    assert measured.figures["first_right"] == 1
    assert measured.items["hits"] == [found]
    assert measured.items["right"] == [hits]
    assert measured.items["missed"] == [sorted(relevant - set(found))]
    assert measured.figures["false_refusals"] == 0  # it was never calibrated


def test_images_go_by_uri_its_end_or_id(archive: Archive) -> None:
    uri = uris(archive)[0]
    for name in (uri, Path(uri).name, f"images/{Path(uri).name}", identity(uri)):
        assert queries(archive, [Question("red", frozenset({name}))])[0].relevant == {identity(uri)}
    with pytest.raises(BadInput, match=r"1 relevant images are not in the archive, the first 'x\.png'"):
        queries(archive, [Question("red", frozenset({uri, "x.png"}))])


def test_what_is_said_of_a_text_comes_together(archive: Archive) -> None:
    asked = queries(archive, [Question("red", frozenset()), Question("blue")], ["blue", "green"], ["red", "black"])
    assert [(one.text, one.something) for one in asked] == [
        ("red", False), ("blue", True), ("green", True), ("black", False),
    ]  # fmt: skip
    with pytest.raises(BadInput, match="'red' is said to be in the archive, and not to be in it"):
        queries(archive, [Question("red", frozenset())], ["red"])


def test_of_judged_hits_only_those_count(archive: Archive) -> None:
    feedback = Feedback(archive.path / "feedback.sqlite")
    found = [hit.id for hit in archive.nearest(PIXELS.encode_texts(["green"]), 40)[0]]
    try:
        feedback.add([Judgement("green", found[i], right) for i, right in ((1, False), (20, True), (30, True))])
        measured = measure(archive, PIXELS, queries(archive), k=2, sample=0)
        assert measured.items["hits"] == [[found[1], found[20]]]
        assert (measured.figures["precision"], measured.figures["recall"]) == (0.5, 0.5)
        assert measured.items["expected"] == ["something"]
        feedback.add([Judgement("green", found[i], False) for i in (20, 30)])
        wrong = measure(archive, PIXELS, queries(archive), k=2, sample=0)
        assert wrong.figures["precision"] == 0
        assert "recall" not in wrong.figures  # nobody knows what should have been found
        assert wrong.items["expected"] == [None]
        over = queries(archive, [Question("green", frozenset(coloured(archive, "green")))])
        assert over[0].judged is None  # a question knows all of them
    finally:
        feedback.remove("green", found)


def test_the_index_is_held_against_exact_search(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure(archive, PIXELS, [Query("red")], k=5, sample=12)
    assert whole.figures["index_recall"] == 1
    assert whole.slices == {"query": ["text", *["image"] * 12]}
    exact = Snapshot.nearest

    def contrary(view: Snapshot, vectors: FloatArray, k: int) -> Found:
        found = exact(view, -vectors, k)
        return replace(found, similarity=-found.similarity)

    monkeypatch.setattr(Snapshot, "nearest", contrary)
    assert measure(archive, PIXELS, [], k=5, sample=12).figures["index_recall"] < 0.2


def test_refusals_are_counted_both_ways(tmp_path: Path) -> None:
    made = kept(tmp_path / "archive", THINGS)
    present, absent = THINGS[:6], ["a zebra", "an aeroplane", "a cathedral"]
    silent = measure(made, ENCODER, queries(made, (), present, absent), sample=0)
    assert not search_quality.refuses(made)
    assert (silent.figures["right_refusals"], silent.figures["false_refusals"]) == (0, 0)
    low, high = silent.figures["intervals"]["right_refusals"]
    assert low == 0 < high < 0.6
    calibrate(made, ENCODER)
    assert search_quality.refuses(made)
    measured = measure(made, ENCODER, queries(made, (), present, absent), sample=0)
    assert measured.figures["right_refusals"] >= 2 / 3
    assert measured.figures["false_refusals"] <= 1 / 6
    turned = measure(made, ENCODER, queries(made, (), absent, present), sample=0)
    assert turned.figures["false_refusals"] == measured.figures["right_refusals"]
    assert turned.figures["refusal_precision"] == pytest.approx(1 - measured.figures["refusal_precision"])


def test_the_same_images_and_queries_are_the_same_data(archive: Archive, tmp_path: Path) -> None:
    other = Archive.create(tmp_path / "other", PixelEncoder(seed=1))
    other.add(Path(uris(archive)[0]).parent, PixelEncoder(seed=1))
    asked = [Query("red", frozenset({"a", "b"}))]
    assert data(archive, asked).fingerprint == data(other, asked).fingerprint
    assert data(archive, asked).fingerprint != data(archive, [Query("red", frozenset({"a"}))]).fingerprint
    other.delete([identity(uris(archive)[0])])
    assert data(archive, asked).fingerprint != data(other, asked).fingerprint
    with pytest.raises(FingerprintMismatch):
        measure(archive, PixelEncoder(seed=1), asked)
    with pytest.raises(BadInput, match="is empty"):
        measure(Archive.create(tmp_path / "empty", PIXELS), PIXELS, asked)


def test_what_is_kept_gives_the_figures_again(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveal.models.load_encoder", lambda _: PIXELS)
    lines = [{"text": "red", "relevant": coloured(archive, "blue")}, {"text": "blue", "relevant": []}]
    asked, out = tmp_path / "queries.jsonl", tmp_path / "search.json"
    asked.write_text("\n".join(map(json.dumps, lines)) + "\ngreen\n")
    line = ["eval", "search", str(archive.path), "--queries", str(asked), "-k", "3", "--sample", "4", "--json"]
    shown = foveal(*line, "--present", "white, black", "--out", str(out))
    assert shown.code == 0, shown.err
    assert "it never says that nothing matches" in shown.err
    result = read(out)
    assert [item.split()[0] for item in result.items["id"]] == ["text"] * 5 + ["image"] * 4
    assert (result.data.images, shown.json["judged"]) == (40, 1)  # where nothing is relevant, no hit is judged
    for name, figure in measures_of(result).items():
        assert figure.of(result.items, np.ones((1, 9)))[0] == pytest.approx(shown.json[name]), name
    assert {"index_recall", "precision", "recall", "ndcg", "right_refusals", "false_refusals"} <= set(
        measures_of(result)
    )
    page = out.with_suffix(".html").read_text()
    for section in ("What a search gives", "Failed searches", "Nothing matches"):
        assert f"<h2>{section}</h2>" in page
    assert "Answered, though nothing is there" in page
    assert page.count("<b>not found</b>") == 2
