from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from evals.reliability import ece
from foveal.detections import FloatArray
from foveal.errors import FingerprintMismatch, IntegrityError
from retrieval.archive import Archive
from retrieval.evidence import telling
from retrieval.feedback import Feedback, Judgement
from retrieval.logistic import Logistic
from retrieval.query import Part, SearchQuery
from retrieval.relevance import Model
from retrieval.relevance_fit import calibrate, phrases, unsaid
from tests.retrieval.pixels import PixelEncoder

THINGS = [f"{size} {thing}" for size in ("small", "large") for thing in ("cup", "bowl", "fork", "plate", "jug", "pan")]


class Words(PixelEncoder):
    """Each word has a direction of its own; a text is the sum of those of its words."""

    logit_scale = 30.0

    def __init__(self) -> None:
        super().__init__(64, seed=1)

    def word(self, word: str) -> FloatArray:
        seed = int.from_bytes(word.encode(), "little") % 2**63
        return np.random.default_rng(seed).standard_normal(self.dimension).astype(np.float32)

    def encode_texts(self, texts):  # type: ignore[no-untyped-def]
        vectors = np.stack([np.sum([self.word(word) for word in telling(text) or ["?"]], axis=0) for text in texts])
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


ENCODER = Words()


def scenes(count: int, things: list[str], seed: int = 0) -> tuple[FloatArray, list[list[str]]]:
    """Images of one or two things each, in noise."""
    rng = np.random.default_rng(seed)
    shown = [[things[n] for n in rng.choice(len(things), rng.integers(1, 3), replace=False)] for _ in range(count)]
    vectors = np.stack([ENCODER.encode_texts(one).sum(axis=0) for one in shown])
    noise = rng.standard_normal(vectors.shape) * 0.12
    return (vectors + noise).astype(np.float32), shown


def kept(path: Path, things: list[str], captioned: bool = True) -> Archive:
    vectors, shown = scenes(600, things)
    captions = [{"caption": " and ".join(f"a {thing}" for thing in one)} for one in shown]
    archive = Archive.create(path, ENCODER)
    archive.add_vectors(
        [f"/{n}.jpg" for n in range(len(vectors))],
        vectors,
        fingerprint=ENCODER.fingerprint,
        metadata=captions if captioned else [{"said": caption["caption"]} for caption in captions],
    )
    return archive


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    made = kept(tmp_path_factory.mktemp("kept") / "archive", THINGS)
    calibrate(made, ENCODER)
    return made


def test_without_a_model_nothing_is_claimed(tmp_path: Path) -> None:
    archive = kept(tmp_path / "archive", THINGS)
    results = archive.search(SearchQuery(text="a zebra"), ENCODER)
    assert len(results) == 10
    assert not results.nothing
    assert {hit.probability for hit in results} == {None}


def test_probabilities_are_true_and_what_is_absent_is_refused(archive: Archive) -> None:
    probability: list[float] = []
    right: list[bool] = []
    for thing in THINGS:
        found = archive.search(SearchQuery(text=f"a {thing}", k=50), ENCODER)
        assert not found.nothing
        probability += [hit.probability or 0.0 for hit in found]
        right += [thing in str(hit.metadata["caption"]) for hit in found]
    p, y = np.array(probability), np.array(right)
    assert y[p > 0.8].mean() > 0.85
    assert ece(p, y) < 0.15  # twelve things to learn from
    refused = [
        archive.search(SearchQuery(text=f"a {word}"), ENCODER) for word in ("zebra", "kettle", "harbour", "moon")
    ]
    assert sum(found.nothing for found in refused) >= 3
    shown = next(found for found in refused if found.nothing)
    assert not shown.hits
    assert "no image shows 'a " in (shown.reason or "")


def test_anyway_shows_the_nearest_of_nothing(archive: Archive) -> None:
    plain = archive.search(SearchQuery(text="a zebra kettle"), ENCODER)
    anyway = archive.search(SearchQuery(text="a zebra kettle", anyway=True), ENCODER)
    assert plain.nothing
    assert anyway.nothing
    assert len(anyway) == 10


def test_a_filter_that_leaves_no_such_image_leaves_nothing(archive: Archive) -> None:
    query = SearchQuery(text="a small cup", filter="NOT caption LIKE '%cup%' AND NOT caption LIKE '%small%'")
    assert archive.search(query, ENCODER).nothing


def test_a_query_by_image_is_never_refused(archive: Archive) -> None:
    first = archive.search(SearchQuery(text="a small cup"), ENCODER)[0]
    by_id = archive.search(SearchQuery(parts=(Part(id=first.id),)), ENCODER)
    assert len(by_id) == 10
    assert {hit.probability for hit in by_id} == {None}
    mixed = archive.search(SearchQuery(text="a zebra kettle", parts=(Part(id=first.id),)), ENCODER)
    assert not mixed.nothing
    assert all(hit.probability is not None for hit in mixed)


def test_a_hit_of_what_it_should_not_show_is_improbable(archive: Archive) -> None:
    plain = {h.id: h.probability for h in archive.search(SearchQuery(text="a small cup", k=100), ENCODER)}
    minus = archive.search(SearchQuery(text="a small cup", negative="a large jug", k=100), ENCODER)
    assert all(hit.probability <= plain.get(hit.id, 1.0) + 1e-9 for hit in minus if hit.probability is not None)


def test_the_prior_stands_without_captions(tmp_path: Path) -> None:
    archive = kept(tmp_path / "archive", THINGS, captioned=False)
    model = calibrate(archive, ENCODER)
    assert model.basis["phrases"] == 0
    assert archive.search(SearchQuery(text="a small cup"), ENCODER)[0].probability is not None
    assert not archive.search(SearchQuery(text="a zebra kettle"), ENCODER).nothing  # it was fitted to other scenes


def test_feedback_moves_probabilities(tmp_path: Path) -> None:
    archive = kept(tmp_path / "archive", THINGS)
    calibrate(archive, ENCODER)
    query = SearchQuery(text="a large pan", k=30)
    before = archive.search(query, ENCODER)
    feedback = Feedback(archive.path / "feedback.sqlite")
    feedback.add([Judgement("a large pan", hit.id, False) for hit in before])
    model = calibrate(archive, ENCODER)
    after = archive.search(SearchQuery(text="a large pan", k=30, anyway=True), ENCODER)
    assert model.basis["judgements"] == 30
    assert [hit.id for hit in after] == [hit.id for hit in before]
    mean = [np.mean([hit.probability for hit in found]) for found in (before, after)]  # type: ignore[misc]
    assert mean[1] < mean[0]


def test_a_model_reads_back_and_a_damaged_one_is_refused(archive: Archive, tmp_path: Path) -> None:
    file = archive.folder / "relevance.json"
    model = Model.read(file)
    assert model is not None
    model.write(tmp_path / "relevance.json")
    again = Model.read(tmp_path / "relevance.json")
    assert again is not None
    assert (again.presence, again.hit, again.threshold) == (model.presence, model.hit, model.threshold)
    record = json.loads(file.read_text())
    for damage in ("", "{}", json.dumps({**record, "format": 99})):
        (tmp_path / "relevance.json").write_text(damage)
        with pytest.raises(IntegrityError, match=r"relevance\.json.*calibrate"):
            Model.read(tmp_path / "relevance.json")
    del record["checksum"]
    (tmp_path / "relevance.json").write_text(json.dumps({**record, "format": 99}))
    assert Model.read(tmp_path / "relevance.json") is None


def test_a_damaged_model_is_told_and_not_used(tmp_path: Path) -> None:
    archive = kept(tmp_path / "archive", THINGS)
    calibrate(archive, ENCODER)
    file = archive.folder / "relevance.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "scale": record["scale"] + 1}))
    opened = Archive.open(archive.path)
    query = SearchQuery(text="a large pan")
    found = opened.search(query, ENCODER)
    assert found[0].probability is None
    assert any(str(file) in note and "calibrate" in note for note in found.notes)
    assert [problem for problem in opened.check().problems if str(file) in problem]
    calibrate(opened, ENCODER)
    assert not [problem for problem in opened.check().problems if str(file) in problem]
    assert not opened.search(query, ENCODER).notes
    file.unlink()
    assert not opened.search(query, ENCODER).notes


def test_the_model_is_bound_to_its_encoder(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(FingerprintMismatch):
        calibrate(archive, PixelEncoder(64, seed=5))
    other = PixelEncoder(64, seed=5)
    made = Archive.create(tmp_path / "archive", other)
    made.add_vectors(["/a.jpg"], np.ones((1, 64), np.float32), fingerprint=other.fingerprint)
    shutil.copy(archive.folder / "relevance.json", made.folder)
    assert made.search(SearchQuery(text="red"), other)[0].probability is None


# Learning.


def test_phrases_are_the_ends_of_noun_phrases() -> None:
    texts = [
        "two red crates and a blue tyre on the floor",
        "a red crate, left of a tyre",
        "a blue tyre",
        "a red crate",
    ] * 3
    found = phrases(texts + ["something else"] * 10)
    assert {"red crate", "blue tyre", "tyre"} <= set(found)
    assert not {"crates", "left", "red", "the floor"} & set(found)
    assert found["red crate"][:4].tolist() == [True, True, False, True]
    assert "blue crate" in unsaid(found)


def test_logistic_regression_finds_what_made_the_data_and_keeps_the_prior_without() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20_000, 2))
    y = (rng.uniform(size=len(x)) < 1 / (1 + np.exp(-(2 * x[:, 0] - 1)))).astype(float)
    flat = Logistic((0.0, 0.0), 0.0, (0.0, 0.0), (1.0, 1.0))
    found = flat.fitted(x, y, np.ones(len(x)))
    np.testing.assert_allclose([*found.weights, found.intercept], [2, 0, -1], atol=0.1)
    few = found.fitted(x[:3], 1 - y[:3], np.ones(3), pull=100.0)
    np.testing.assert_allclose(few.weights, found.weights, atol=0.1)


def test_a_judgement_taken_back_is_gone_and_others_stay(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path / "feedback.sqlite")
    assert feedback.remove("a red crate", ["1"]) == 0
    assert not feedback.file.exists()
    feedback.add([Judgement("a red crate", "1", True), Judgement("a red crate", "2", False), Judgement("x", "1", True)])
    assert feedback.remove("a red crate", ["1", "3"]) == 1
    assert feedback.read() == [Judgement("a red crate", "2", False), Judgement("x", "1", True)]


def test_the_latest_judgement_counts_and_damage_is_named(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path / "feedback.sqlite")
    assert feedback.read() == []
    feedback.add([Judgement("cup", "1", True), Judgement("cup", "2", True)])
    feedback.add([Judgement("cup", "1", False)])
    assert feedback.read() == [Judgement("cup", "1", False), Judgement("cup", "2", True)]
    assert feedback.keep(["1"]) == 1
    assert feedback.read() == [Judgement("cup", "1", False)]
    (tmp_path / "feedback.sqlite").write_bytes(b"nonsense" * 1000)
    with pytest.raises(IntegrityError, match=r"feedback\.sqlite"):
        feedback.read()


@pytest.mark.slow
def test_the_bundled_encoder_on_its_own_world(tmp_path: Path) -> None:
    """The bars of the sample world, on few scenes; `benchmarks/bench_relevance.py` has the real figures."""
    from benchmarks.bench_relevance import Site, measure
    from foveal.models import load_encoder

    encoder = load_encoder("bundled:clip")
    site = Site.render(tmp_path / "world", "base", 600, 5, encoder)
    figures = measure(site, encoder, True, tmp_path)["kinds"]
    assert float(figures["present answered"].split()[0]) >= 0.9
    assert float(figures["absent refused"].split()[0]) >= 0.85
