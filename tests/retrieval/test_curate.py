"""Curation finds what was planted: copies, leaks, outliers, clusters, gaps, and what to label next."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from foveal.errors import BadInput, FingerprintMismatch
from retrieval.archive import Archive
from retrieval.curate import neighbours
from retrieval.curate.clusters import Naming, find_clusters
from retrieval.curate.duplicates import find_duplicates
from retrieval.curate.gaps import find_gaps
from retrieval.curate.hamming import near_pairs
from retrieval.curate.kcenter import farthest_first
from retrieval.curate.kmeans import choose_k
from retrieval.curate.labelling import read_uncertainty, select
from retrieval.curate.leaks import find_leaks
from retrieval.curate.links import Likeness
from retrieval.curate.outliers import find_outliers, local_outlier_factor
from retrieval.curate.selection import Selection, unit
from retrieval.index import Vectors
from retrieval.table import Value
from tests.retrieval.pixels import PixelEncoder

ENCODER = PixelEncoder()
VECTORS = Likeness(bits=None, cosine=0.99)


def picture(seed: int, side: int = 96) -> Image.Image:
    """A smooth picture of its own."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC)


def around(centres: Sequence[int], each: int, spread: float = 0.15, seed: int = 0) -> np.ndarray:
    """`each` unit vectors (32 dimensions) about each of the named axes, one group after the other."""
    rng = np.random.default_rng(seed)
    vectors = np.repeat(np.eye(32, dtype=np.float32)[list(centres)], each, axis=0)
    return unit(vectors + spread / 32**0.5 * rng.standard_normal(vectors.shape).astype(np.float32))


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Archive]:
    """An archive of the given vectors and metadata, the URI of each being /NUMBER.jpg."""

    def make(vectors: np.ndarray, metadata: Sequence[Mapping[str, Value]] | None = None) -> Archive:
        archive = Archive.create(tmp_path / "archive", ENCODER)
        if len(vectors):
            uris = [f"/{i}.jpg" for i in range(len(vectors))]
            archive.add_vectors(uris, vectors, fingerprint=ENCODER.fingerprint, metadata=metadata)
        return archive

    return make


def number(uri: str) -> int:
    return int(Path(uri).stem)


# Copies.


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve pictures, of which 0 has a byte copy, and 1 a small and a recompressed one."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(12):
        picture(i).save(folder / f"{i}.png")
    (folder / "0-again.png").write_bytes((folder / "0.png").read_bytes())
    picture(1).resize((48, 48), Image.Resampling.LANCZOS).save(folder / "1-small.png")
    picture(1).save(folder / "1-poor.jpg", quality=60)
    Image.new("RGB", (96, 96), "white").save(folder / "white.png")
    Image.new("RGB", (96, 96), "black").save(folder / "black.png")
    split = {"0": "train", "0-again": "test", "1": "train", "1-small": "train", "1-poor": "val"}
    lines = [f"{p.name},{split.get(p.stem, 'train')}" for p in sorted(folder.iterdir())]
    (folder / "metadata.csv").write_text("\n".join(["file_name,split", *lines]))
    return folder


@pytest.fixture
def archive(tmp_path: Path, pictures: Path) -> Archive:
    archive = Archive.create(tmp_path / "archive", ENCODER)
    archive.add(pictures, ENCODER)
    return archive


@pytest.mark.parametrize("like", [Likeness(), VECTORS, Likeness(6, 0.99, both=True)])
def test_resized_and_recompressed_copies_are_found_and_others_are_not(archive: Archive, like: Likeness) -> None:
    found = find_duplicates(archive, like)
    groups = {frozenset(Path(copy.uri).stem for copy in (g.keep, *g.rest)): g for g in found.groups}
    assert set(groups) == {frozenset({"0", "0-again"}), frozenset({"1", "1-small", "1-poor"})}
    near, exact = groups[frozenset({"1", "1-small", "1-poor"})], groups[frozenset({"0", "0-again"})]
    assert exact.exact
    assert not near.exact
    assert Path(near.keep.uri).name == "1.png"  # of equally many pixels, the one with more bytes
    assert {copy.id for group in found.groups for copy in group.rest} == set(found.extra)
    assert found.saves == sum(Path(copy.uri).stat().st_size for group in found.groups for copy in group.rest)
    assert found.blank == 2


def test_without_a_likeness_only_equal_bytes_count(archive: Archive) -> None:
    found = find_duplicates(archive, Likeness(None, None))
    assert [group.exact for group in found.groups] == [True]
    assert found.groups[0].rest[0].cosine == pytest.approx(1, abs=1e-3)


def test_groups_are_transitive(made: Callable[..., Archive]) -> None:
    angles = np.deg2rad([0, 5, 10, 15, 90])  # neighbours within cosine 0.996, the ends are not
    vectors = np.zeros((5, 32), np.float32)
    vectors[:, 0], vectors[:, 1] = np.cos(angles), np.sin(angles)
    (group,) = find_duplicates(made(vectors), VECTORS).groups
    assert [number(copy.uri) for copy in (group.keep, *group.rest)] == [0, 1, 2, 3]  # all equal: the first added


def test_a_heap_of_copies_larger_than_the_neighbourhood_is_one_group(made: Callable[..., Archive]) -> None:
    vectors = np.concatenate([around([0], 60, spread=0.01), around([1, 2, 3], 1)])
    (group,) = find_duplicates(made(vectors), VECTORS).groups
    assert len(group.rest) == 59


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=40, unique=True), st.integers(0, 11), st.integers(0, 99)
)
def test_near_hashes_are_those_of_comparing_all(values: list[int], bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    near = [value ^ sum(1 << int(bit) for bit in rng.permutation(64)[: seed % 14]) for value in values]
    hashes = np.unique(np.array(values + near, dtype=np.uint64))
    first, second, apart = near_pairs(hashes, bits)
    every = np.bitwise_count(hashes[:, None] ^ hashes[None])
    expected = np.argwhere(np.triu(every <= bits, 1))
    assert np.array_equal(np.stack([first, second], axis=1), expected)
    assert np.array_equal(apart, every[first, second])


# Leaks.


def test_leaks_are_copies_in_different_splits(archive: Archive) -> None:
    found = find_leaks(archive, "split")
    pairs = {frozenset(Path(image.uri).stem for image in (leak.one, leak.other)) for leak in found.pairs}
    assert pairs == {frozenset({"0", "0-again"}), frozenset({"1", "1-poor"}), frozenset({"1-small", "1-poor"})}
    assert found.pairs[0].how == "equal bytes"
    assert found.leaking == {"test": 1, "train": 3, "val": 1}
    assert found.splits == {"test": 1, "train": 15, "val": 1}
    assert found.between == {"train - val": 2, "test - train": 1}


def test_every_leaking_image_occurs_however_many_copies_there_are(made: Callable[..., Archive]) -> None:
    split = [{"split": "train" if i % 3 else "test"} for i in range(30)]
    found = find_leaks(made(around([0], 30, spread=0.01), split), "split", VECTORS)
    assert found.leaking == {"test": 10, "train": 20}


def test_two_filters_are_a_split_too(archive: Archive) -> None:
    found = find_leaks(archive, ("uri LIKE '%0.png'", "uri LIKE '%again.png'"))
    assert len(found.pairs) == 1
    assert found.unassigned == 14
    with pytest.raises(BadInput, match="on both sides"):
        find_leaks(archive, ("width > 90", "width > 10"))


@pytest.mark.parametrize(("column", "message"), [("splt", "Did you mean split"), ("width", "does not split")])
def test_a_column_that_is_no_split_is_refused(archive: Archive, column: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        find_leaks(archive, column, filter="split = 'train' AND width > 90")


# Outliers.


def test_the_planted_outlier_scores_highest_in_loose_and_in_dense_company(made: Callable[..., Archive]) -> None:
    loose, dense = around([0], 40, spread=0.5), around([1], 40, spread=0.05, seed=1)
    stray = unit(np.eye(32, dtype=np.float32)[1:2] + 0.35 * np.eye(32, dtype=np.float32)[5:6])  # near the dense ones
    found = find_outliers(made(np.concatenate([loose, dense, stray])), top=3, k=10)
    assert number(found.found[0].image.uri) == 80
    assert number(found.found[0].nearest.uri) in range(40, 80)
    assert found.found[0].score > 2 > found.found[1].score
    assert np.median(found.scores) == pytest.approx(1, abs=0.1)


def test_copies_do_not_make_outliers_of_what_lies_beside_them(made: Callable[..., Archive]) -> None:
    vectors = np.concatenate([np.repeat(around([0], 1), 30, axis=0), around([0], 40, seed=1)])
    assert find_outliers(made(vectors), k=10).found[0].score < 15


def test_the_factor_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(0)
    points = rng.standard_normal((40, 3)).astype(np.float32)
    every = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(every, np.inf)
    place = np.argsort(every, axis=1)[:, :5]
    near = np.take_along_axis(every, place, axis=1)
    density = [1 / np.mean([max(near[j, -1], every[i, j]) for j in place[i]]) for i in range(40)]
    expected = [np.mean([density[j] for j in place[i]]) / density[i] for i in range(40)]
    assert local_outlier_factor(near, place) == pytest.approx(expected, rel=1e-4)


# Clusters.

SAID = {0: "a boat in the harbour", 1: "a train at the station", 2: "snow on a mountain", 3: "a cat asleep"}


def test_planted_clusters_are_recovered_and_named_from_captions(made: Callable[..., Archive]) -> None:
    captions = [{"caption": SAID[i // 20], "camera": f"cam{i % 3}"} for i in range(80)]
    found = find_clusters(made(around(range(4), 20), captions))
    assert [cluster.size for cluster in found.clusters] == [20] * 4
    assert max(found.tried, key=lambda k: found.tried[k]) == 4
    for cluster in found.clusters:
        (group,) = {number(image.uri) // 20 for image in cluster.images}
        (name,) = cluster.names
        assert set(re.findall(r"\w+", name.text)) == set(SAID[group].split()) - {"a", "at", "in", "on", "the"}
        assert group != 3 or name.text == "cat asleep"  # a pair that always occurs together
        assert name.source == "metadata"
        assert "100% against 0%" in name.evidence
        assert cluster.cohesion > 0.95
    assert len({tuple(found.label[i : i + 20]) for i in range(0, 80, 20)}) == 4


def test_the_same_clusters_come_out_again(made: Callable[..., Archive]) -> None:
    archive = made(around(range(6), 15, spread=1.0))
    assert np.array_equal(find_clusters(archive, 5).label, find_clusters(archive, 5).label)


def test_without_telling_words_there_is_no_name(made: Callable[..., Archive]) -> None:
    found = find_clusters(made(around(range(3), 20), [{"caption": "an image"}] * 60), 3)
    assert [cluster.names for cluster in found.clusters] == [()] * 3


def test_a_vocabulary_names_clusters_and_a_generic_word_does_not_win(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "archive", ENCODER)
    rng = np.random.default_rng(0)
    colours = ("red", "blue")
    pixels = [Image.new("RGB", (8, 8), colours[i % 2]) for i in range(40)]
    vectors = ENCODER.encode_images(pixels) + 0.05 * rng.standard_normal((40, 32)).astype(np.float32)
    archive.add_vectors([f"/{i}.jpg" for i in range(40)], vectors, fingerprint=ENCODER.fingerprint)
    naming = Naming(vocabulary=("purple", "blue", "red"), encoder=ENCODER)
    found = find_clusters(archive, 2, naming=naming)
    for cluster in found.clusters:
        (name,) = cluster.names
        assert name.text == colours[number(cluster.images[0].uri) % 2]
        assert name.source == "vocabulary"
    with pytest.raises(FingerprintMismatch):
        find_clusters(archive, 2, naming=Naming(vocabulary=("red",), encoder=PixelEncoder(seed=1)))


def test_representatives_are_different_images_of_the_core(made: Callable[..., Archive]) -> None:
    vectors = around([0], 50, spread=0.3)
    (cluster,) = find_clusters(made(vectors), 1).clusters
    shown = [number(image.uri) for image in cluster.images]
    assert len(set(shown)) == 6
    cosine = vectors @ unit(vectors.mean(axis=0, keepdims=True))[0]
    assert shown[0] == cosine.argmax()
    assert min(cosine[shown]) >= np.quantile(cosine, 0.18)


# Gaps.


def test_the_uncovered_cluster_is_the_gap(made: Callable[..., Archive]) -> None:
    metadata = [
        {
            "labelled": int(i // 30 != 2 and i % 2),
            "place": "yard" if i // 30 == 2 else "gate",
            "caption": f"place {i // 30}",
        }
        for i in range(120)
    ]
    found = find_gaps(made(around(range(4), 30), metadata), "labelled = 1", by=["place"])
    assert (found.images, found.reference) == (75, 45)
    assert found.covered == pytest.approx(45, abs=6)  # the radius leaves a twentieth of its own out
    assert {number(image.uri) // 30 for gap in found.gaps if gap.cluster.size > 5 for image in gap.cluster.images} == {
        2
    }
    yard, gate = found.by["place"]
    assert (yard.value, yard.images, yard.covered, yard.reference) == ("yard", 30, 0, 0)
    assert (gate.value, gate.images, gate.reference) == ("gate", 45, 45)
    assert 0 < found.radius < 0.5 < min(found.apart[found.apart > found.radius].max(), 2)


def test_coverage_by_hour_and_by_quarters(made: Callable[..., Archive]) -> None:
    metadata = [
        {"taken_at": f"2026-11-02T{i % 3 + 8:02}:30:00Z", "depth": i * 1.5, "known": int(i < 20)} for i in range(80)
    ]
    archive = made(around([0], 80), metadata)
    by = find_gaps(archive, "known = 1").by
    assert {value.value for value in by["taken_at"]} == {"08:00 UTC", "09:00 UTC", "10:00 UTC"}
    assert "depth" not in by
    quarters = find_gaps(archive, "known = 1", by=["depth"]).by["depth"]
    assert [value.images for value in quarters] == [15] * 4


# What to label next.


def greedy(vectors: np.ndarray, n: int, first: int, weight: np.ndarray | None = None) -> tuple[list[int], list[float]]:
    """The plain algorithm, comparing all with all."""
    apart = np.sqrt(np.maximum(2 - 2 * (vectors @ vectors.T).astype(np.float64), 0))
    weight = np.ones(len(vectors)) if weight is None else weight
    chosen, radius = [first], []
    while len(chosen) < n:
        near = apart[chosen].min(axis=0)
        near[chosen] = 0
        chosen.append(int((near * weight).argmax()))
        radius.append(float(near[chosen[-1]]))
    return chosen, radius


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(2, 20), st.booleans(), st.sampled_from([3, 8, 4096]), st.integers(0, 10**6))
def test_the_lazy_choice_is_that_of_brute_force(count: int, n: int, weighted: bool, block: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = unit(rng.standard_normal((count, 6)).astype(np.float32))
    weight = rng.uniform(0.1, 1, count).astype(np.float32) if weighted else None
    n = min(n, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retrieval.curate.kcenter.BLOCK", block)
        patch.setattr("retrieval.curate.kcenter.PIECE", 2)
        cover = farthest_first(Vectors.of(vectors), n, weight=weight)
    chosen, radius = greedy(vectors, n, int(cover.places[0]), weight)
    assert cover.places.tolist() == chosen
    assert cover.distance[1:].tolist() == pytest.approx(radius, abs=1e-3)
    if weight is None:
        assert all(np.diff(cover.distance[1:]) <= 1e-6)
        left = np.sqrt(np.maximum(2 - 2 * vectors @ vectors[chosen].T, 0)).min(axis=1).max()
        assert cover.radius == pytest.approx(left, abs=3e-3)


def test_each_planted_cluster_comes_once_before_any_comes_twice(made: Callable[..., Archive]) -> None:
    found = select(made(around(range(7), 20)), 10)
    groups = [number(pick.image.uri) // 20 for pick in found.picks]
    assert sorted(groups[:7]) == list(range(7))
    distances = [pick.distance for pick in found.picks]
    assert distances[0] is None
    assert distances[6] > 1 > 0.5 > distances[7] >= found.radius


def test_what_is_labelled_is_not_asked_again_and_counts_as_covered(made: Callable[..., Archive]) -> None:
    metadata = [{"labelled": int(i < 40)} for i in range(100)]  # two of five clusters
    found = select(made(around(range(5), 20), metadata), 3, labelled="labelled = 1")
    assert {number(pick.image.uri) // 20 for pick in found.picks} == {2, 3, 4}
    assert (found.images, found.labelled) == (60, 40)


def test_more_picks_continue_the_same_list(made: Callable[..., Archive]) -> None:
    archive = made(around(range(8), 12, spread=1.0))
    ten, twenty = select(archive, 10), select(archive, 20)
    assert twenty.picks[:10] == ten.picks
    known = ", ".join(f"'{pick.image.id}'" for pick in ten.picks)
    rest = select(archive, 10, labelled=f"id IN ({known})")
    assert [pick.image for pick in rest.picks] == [pick.image for pick in twenty.picks[10:]]


def test_uncertainty_weighs_distance(made: Callable[..., Archive]) -> None:
    metadata = [{"entropy": 2.0 if i % 20 == 7 else 0.2} for i in range(100)]
    archive = made(around(range(5), 20), metadata)
    found = select(archive, 5, uncertainty="entropy")
    assert sorted(number(pick.image.uri) for pick in found.picks) == [7, 27, 47, 67, 87]
    assert {pick.uncertainty for pick in found.picks} == {2.0}
    by_uri = {f"/{i}.jpg": 1.0 if i == 33 else 0.0 for i in range(90)}
    assert [number(pick.image.uri) for pick in select(archive, 5, uncertainty=by_uri).picks] == [
        33
    ]  # the rest are sure
    with pytest.raises(BadInput, match="negative"):
        select(archive, 1, uncertainty={"/0.jpg": -1.0})
    with pytest.raises(BadInput, match="has an uncertainty"):
        select(archive, 1, uncertainty={"elsewhere": 1.0})


def test_uncertainties_are_read_from_csv_and_jsonl(tmp_path: Path) -> None:
    (tmp_path / "u.csv").write_text("uri,uncertainty\n/0.jpg,0.5\n")
    (tmp_path / "u.jsonl").write_text('{"id": "a", "uncertainty": 2}\n')
    assert read_uncertainty(tmp_path / "u.csv") == {"/0.jpg": 0.5}
    assert read_uncertainty(tmp_path / "u.jsonl") == {"a": 2.0}
    (tmp_path / "bad.csv").write_text("uri\n/0.jpg\n")
    with pytest.raises(BadInput, match="fields id"):
        read_uncertainty(tmp_path / "bad.csv")


def test_copies_of_what_is_chosen_are_not_asked_for(made: Callable[..., Archive]) -> None:
    found = select(made(np.repeat(around(range(3), 1), 4, axis=0)), 12)
    assert len(found.picks) == 3
    assert found.radius == 0


def test_picks_are_written_for_other_tools(made: Callable[..., Archive], tmp_path: Path) -> None:
    found = select(made(around(range(3), 4)), 2)
    for name in ("picks.json", "picks.csv", "picks.txt"):
        found.write(tmp_path / name)
    assert [row["uri"] for row in json.loads((tmp_path / "picks.json").read_text())] == [
        pick.image.uri for pick in found.picks
    ]
    assert (tmp_path / "picks.csv").read_text().splitlines()[0] == "rank,id,uri,distance,uncertainty"
    assert (tmp_path / "picks.txt").read_text().splitlines() == [pick.image.uri for pick in found.picks]
    with pytest.raises(BadInput, match=r"\.csv"):
        found.write(tmp_path / "picks.xlsx")


# All of them.

EVERY: dict[str, Callable[..., object]] = {
    "duplicates": find_duplicates,
    "leaks": lambda archive, **options: find_leaks(archive, "uri", **options),
    "outliers": find_outliers,
    "clusters": find_clusters,
    "gaps": lambda archive, **options: find_gaps(archive, "width >= 0", **options),
    "select": lambda archive, **options: select(archive, 3, **options),
}


@pytest.mark.parametrize("name", EVERY)
def test_an_empty_archive_and_a_filter_that_keeps_nothing_are_said(made: Callable[..., Archive], name: str) -> None:
    archive = made(around([0], 0))
    with pytest.raises(BadInput, match="holds no images"):
        EVERY[name](archive)
    archive.add_vectors(["/0.jpg", "/1.jpg"], around([0, 1], 1), fingerprint=ENCODER.fingerprint)
    with pytest.raises(BadInput, match="keeps none of 2 images"):
        EVERY[name](archive, filter="width > 10")
    with pytest.raises(BadInput, match="Did you mean width"):
        EVERY[name](archive, filter="wdth > 10")


@pytest.mark.parametrize("count", [1, 2])
def test_archives_of_one_and_two_images(made: Callable[..., Archive], count: int) -> None:
    archive = made(around([0, 1][:count], 1))
    assert find_duplicates(archive, VECTORS).groups == ()
    assert len(find_outliers(archive).found) == (count if count > 1 else 0)
    assert sum(cluster.size for cluster in find_clusters(archive).clusters) == count
    assert len(select(archive, 5).picks) == count
    with pytest.raises(BadInput, match="reference set has 1"):
        find_gaps(archive, "uri = '/0.jpg'")
    if count == 2:
        assert find_gaps(archive, "uri = '/0.jpg'", radius=0.5).covered == 0
        assert find_leaks(archive, "uri", VECTORS).pairs == ()


@pytest.mark.parametrize(
    "call",
    [
        lambda archive: find_outliers(archive, k=0),
        lambda archive: find_clusters(archive, 99),
        lambda archive: find_clusters(archive, naming=Naming(columns=["width"])),
        lambda archive: find_gaps(archive, "width = 0"),
        lambda archive: find_gaps(archive, "uri = '/0.jpg'", radius=-1),
        lambda archive: select(archive, 0),
        lambda archive: select(archive, 1, labelled="width = 0"),
        lambda archive: select(archive, 1, uncertainty="uri"),
        lambda archive: find_duplicates(archive, Likeness(bits=12)),
        lambda archive: Likeness(cosine=1.5),
        lambda archive: Likeness(bits=None, cosine=0.9, both=True),
        lambda archive: Naming(vocabulary=["a"]),
    ],
)
def test_senseless_requests_are_refused(made: Callable[..., Archive], call: Callable[[Archive], object]) -> None:
    archive = made(around(range(3), 3))
    with pytest.raises(BadInput):
        call(archive)


def test_neighbours_are_the_same_by_brute_force_and_through_indexes(
    made: Callable[..., Archive], monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = [{"half": i % 2} for i in range(400)]
    archive = made(around(range(8), 50, spread=0.8), metadata)
    exact = [find_outliers(archive, k=5, filter=filter).scores for filter in (None, "half = 1")]
    monkeypatch.setattr(neighbours, "EXACT_PAIRS", 0)
    through = [find_outliers(archive, k=5, filter=filter).scores for filter in (None, "half = 1")]
    for one, other in zip(exact, through, strict=True):
        assert np.isclose(one, other, atol=1e-3).mean() > 0.9  # three in a hundred have other neighbours


def test_the_number_of_clusters_follows_the_silhouette() -> None:
    for count in (2, 5, 8):
        assert choose_k(Vectors.of(around(range(count), 30)))[0] == count


def test_what_is_deleted_is_not_curated(archive: Archive) -> None:
    again = find_duplicates(archive).groups
    archive.delete([copy.id for group in again for copy in group.rest])
    assert find_duplicates(archive).groups == ()
    assert len(Selection.of(archive)) == 14
