from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from foveal.errors import BadInput
from retrieval.archive import Archive
from retrieval.cursors import Cursor
from retrieval.query import Collapse, Part, SearchQuery
from retrieval.ranking import diverse, fuse, groups
from retrieval.results import Results
from tests.retrieval.pixels import PixelEncoder, write_images

ENCODER = PixelEncoder()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_images(tmp_path_factory.mktemp("world") / "images", 48)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, images: list[Path]) -> Archive:
    made = Archive.create(tmp_path_factory.mktemp("kept") / "archive", ENCODER)
    made.add(images[0].parent, ENCODER)
    return made


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """120 vectors in few places: many exactly equal, many nearly."""
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((12, 32))
    noise = np.where(np.arange(120) % 3 == 0, 0.0, 0.05)[:, None] * rng.standard_normal((120, 32))
    vectors = (centres[np.arange(120) % 12] + noise).astype(np.float32)
    made = Archive.create(tmp_path_factory.mktemp("twins") / "archive", ENCODER)
    metadata = [{"caption": f"picture {i} of place {i % 12}"} for i in range(120)]
    uris = [f"/pictures/{i:03d}.png" for i in range(120)]
    made.add_vectors(uris, vectors, fingerprint=ENCODER.fingerprint, metadata=metadata)
    return made


def pages(archive: Archive, k: int, **options: object) -> Iterator[Results]:
    cursor = None
    while True:
        page = archive.search(SearchQuery(k=k, cursor=cursor, **options), ENCODER)  # type: ignore[arg-type]
        yield page
        if (cursor := page.cursor) is None:
            return


# Queries.


def test_parts_add_up_to_the_similarity_and_say_what_they_are(archive: Archive, images: list[Path]) -> None:
    key = archive.search(SearchQuery(image=images[0], k=1), ENCODER)[0].id
    query = SearchQuery(
        text="red",
        negative="blue",
        parts=(
            Part(image=images[2], box=(0, 0, 20, 24), weight=0.5),
            Part(id=key, weight=2),
            Part(id=key, weight=-0.1),
        ),
    )
    for hit in archive.search(query, ENCODER):
        assert sum(part.amount for part in hit.parts) == pytest.approx(hit.similarity, abs=1e-5)
        assert [part.part for part in hit.parts] == [
            "text 'red'", "not text 'blue'", f"crop {images[2].name}", f"item {key}", f"not item {key}",
        ]  # fmt: skip
        assert [part.weight for part in hit.parts] == [1, -0.5, 0.5, 2, -0.1]


def test_an_item_is_looked_for_by_its_stored_vector(archive: Archive, images: list[Path]) -> None:
    by_image = archive.search(SearchQuery(image=images[5]), ENCODER)
    by_id = archive.search(SearchQuery(parts=(Part(id=by_image[0].id),)), ENCODER)
    assert [hit.id for hit in by_id] == [hit.id for hit in by_image]
    with pytest.raises(BadInput, match="no item 'nobody'"):
        archive.search(SearchQuery(parts=(Part(id="nobody"),)), ENCODER)


def test_a_crop_is_what_its_pixels_are(archive: Archive, tmp_path: Path) -> None:
    whole = Image.new("RGB", (80, 40), "red")
    whole.paste((0, 0, 255), (40, 0, 80, 40))
    whole.save(tmp_path / "both.png")
    blue = Image.new("RGB", (40, 40), "blue")
    for source in (whole, tmp_path / "both.png"):
        query = SearchQuery(parts=(Part(image=source, box=(40, 0, 999, 40)),))
        np.testing.assert_allclose(query.vector(ENCODER), ENCODER.encode_images([blue])[0], atol=1e-6)
    with pytest.raises(BadInput, match="80 x 40"):
        SearchQuery(parts=(Part(image=whole, box=(90, 0, 120, 40)),)).vector(ENCODER)


def test_weights_pull_between_parts(archive: Archive) -> None:
    def colours(red: float, blue: float) -> list[object]:
        query = SearchQuery(parts=(Part(text="red", weight=red), Part(text="blue", weight=blue)), k=6)
        return [hit.metadata["colour"] for hit in archive.search(query, ENCODER)]

    assert set(colours(1, 0.05)) == {"red"}
    assert set(colours(0.05, 1)) == {"blue"}
    assert "red" not in colours(-1, 1)


def test_templates_are_averaged() -> None:
    class Words(PixelEncoder):
        def encode_texts(self, texts):  # type: ignore[no-untyped-def]
            return super().encode_texts([text.split()[-1] for text in texts])

    plain = SearchQuery(text="red").vector(Words())
    np.testing.assert_allclose(SearchQuery(text="red", templates=("{}", "a {}")).vector(Words()), plain, atol=1e-6)
    mixed = SearchQuery(text="red", templates=("{}", "{} and blue")).vector(Words())
    both = SearchQuery(parts=(Part(text="red"), Part(text="blue"))).vector(Words())
    np.testing.assert_allclose(mixed, both, atol=1e-6)
    with pytest.raises(BadInput, match="exactly one"):
        SearchQuery(text="red", templates=("a photo",)).vector(Words())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: Part(), "received none"),
        (lambda: Part(text="red", id="x"), "text and id"),
        (lambda: Part(text="red", weight=0), "not 0"),
        (lambda: Part(text="red", weight=float("nan")), "not 0"),
        (lambda: Part(text="red", box=(0, 0, 1, 1)), "only an image"),
        (lambda: SearchQuery(parts=(Part(text="red", weight=-1),)), "neither text nor image"),
        (lambda: SearchQuery(parts=(Part(text="red"),) * 65), "at most 64"),
        (lambda: SearchQuery(text="red", words=" "), "words"),
        (lambda: SearchQuery(text="red", diversity=1.0), "diversity"),
        (lambda: SearchQuery(text="red", diversity=0.5, k=5000), "1 to 1000"),
        (lambda: Collapse(cosine=1.5), "cosine"),
    ],
)
def test_a_senseless_part_is_refused(bad, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadInput, match=message):
        bad()


def test_parts_that_cancel_out_are_refused(archive: Archive) -> None:
    with pytest.raises(BadInput, match="cancel"):
        archive.search(SearchQuery(text="red", negative="red", negative_weight=1), ENCODER)


def test_results_say_which_filter_applied(archive: Archive) -> None:
    found = archive.search(SearchQuery(text="red", filter="camera = 'cam1'", k=3), ENCODER)
    assert (found.filter, found.kept, len(found)) == ("camera = 'cam1'", 16, 3)
    none = archive.search(SearchQuery(text="red", filter="camera = 'none'"), ENCODER)
    assert none.nothing
    assert none.reason == "no image fits the filter camera = 'none'"
    assert not archive.search(SearchQuery(text="red"), ENCODER).nothing


def test_feedback_moves_the_query(archive: Archive) -> None:
    query = SearchQuery(text="red", k=48)
    found = archive.search(query, ENCODER)
    purple = next(hit.id for hit in found if hit.metadata["colour"] == "purple")
    after = archive.search(query.refined(liked=[purple], disliked=[found[0].id]), ENCODER)
    place = [[hit.id for hit in hits].index(purple) for hits in (found, after)]
    assert place[1] < place[0]


# Pages.


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    k=st.integers(1, 50),
    seed=st.integers(0, 9),
    collapse=st.sampled_from([None, Collapse(0.97, None), Collapse(0.9999, None)]),
    diversity=st.sampled_from([0.0, 0.3, 0.8]),
    words=st.sampled_from([None, "place 3", "picture"]),
)
def test_pages_are_one_large_page(
    twins: Archive, k: int, seed: int, collapse: Collapse | None, diversity: float, words: str | None
) -> None:
    text = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black", "pink", "brown")[seed]
    options = {"text": text, "collapse": collapse, "diversity": diversity, "words": words}
    [whole] = pages(twins, 500, **options)
    assert [h.id for page in pages(twins, k, **options) for h in page] == [h.id for h in whole]
    if not diversity and words is None:
        assert [h.similarity for h in whole] == sorted((h.similarity for h in whole), reverse=True)
    if collapse is None:
        assert len(whole) == 120
    else:
        assert len(whole) + whole.collapsed == 120 == sum(1 + hit.collapsed for hit in whole)


def test_pages_go_on_while_others_add_and_delete(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "archive", ENCODER)
    archive.add(write_images(tmp_path / "a" / "images", 40, colour="red")[0].parent, ENCODER)
    for options in ({}, {"diversity": 0.5}, {"words": "red"}):
        before = {row["id"] for row in archive.table().scan(["id"]) for row in row.to_pylist()}
        run = pages(archive, 7, text="red", **options)
        seen = [hit.id for hit in next(run)]
        extra = write_images(tmp_path / f"b{len(before)}" / "images", 20, seed=len(before), colour="red")
        archive.add(extra[0].parent, ENCODER)
        gone = [seen[0], *sorted(before - set(seen))[:3]]
        archive.delete(gone)
        seen += [hit.id for page in run for hit in page]
        assert len(seen) == len(set(seen))
        assert set(seen) == before - set(gone[1:])


def test_a_cursor_of_another_query_is_refused(archive: Archive, twins: Archive) -> None:
    cursor = archive.search(SearchQuery(text="red", k=3), ENCODER).cursor
    assert cursor is not None
    archive.search(SearchQuery(text="red", k=9, cursor=cursor), ENCODER)
    for other in ({"text": "blue"}, {"text": "red", "filter": "hour > 3"}, {"text": "red", "diversity": 0.1}):
        with pytest.raises(BadInput, match="another query"):
            archive.search(SearchQuery(cursor=cursor, **other), ENCODER)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="another query or archive"):
        twins.search(SearchQuery(text="red", cursor=cursor), ENCODER)
    for broken in ("", "x", cursor[:-5], cursor + "AAAA", "é", "A" * 100_000):
        with pytest.raises(BadInput, match="cursor"):
            archive.search(SearchQuery(text="red", cursor=broken), ENCODER)


@given(st.lists(st.integers(0, 2**60), unique=True, max_size=300), st.floats(-1, 1, width=32))
def test_a_cursor_reads_back(shown: list[int], similarity: float) -> None:
    cursor = Cursor("digest", 2**60, similarity, 2**59, 12, tuple(sorted(shown)))
    assert Cursor.read(cursor.text(), "digest") == cursor


# Orders.


@given(
    st.integers(0, 40).flatmap(
        lambda n: st.tuples(
            st.lists(st.integers(0, 5), min_size=n, max_size=n),
            st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=n, max_size=n),
        )
    ),
    st.integers(0, 8),
)
def test_collapsing_keeps_the_best_of_each_group(drawn: tuple[list[int], list[int | None]], bits: int) -> None:
    kinds, hashes = drawn
    vectors = np.eye(6, dtype=np.float32)[kinds].reshape(-1, 6)
    mine = groups(vectors, hashes, 0.9, bits)
    assert all(mine <= np.arange(len(mine)))  # only ever behind a better one
    assert all(mine[head] == head for head in mine)
    heads = set(mine.tolist())
    assert all(kinds.index(kind) in heads or mine[kinds.index(kind)] != kinds.index(kind) for kind in set(kinds))
    assert len({kinds[head] for head in heads}) == len(heads)  # no two heads are the same


def test_near_duplicates_by_hash_collapse_onto_the_best(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(5):
        cells = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
            (96, 96), Image.Resampling.BICUBIC
        )
        for quality in (95, 60):
            cells.save(tmp_path / "images" / f"{number}-{quality}.jpg", quality=quality)
    archive = Archive.create(tmp_path / "archive", ENCODER)
    archive.add(tmp_path / "images", ENCODER)
    query = SearchQuery(image=tmp_path / "images" / "0-95.jpg", collapse=Collapse(cosine=None, bits=8))
    found = archive.search(query, ENCODER)
    assert (len(found), found.collapsed, [hit.collapsed for hit in found]) == (5, 5, [1] * 5)
    assert found[0].uri.endswith("0-95.jpg")


def test_reciprocal_ranks_are_fused() -> None:
    scores = fuse([[1, 2, 3], [3, 1]])
    assert sorted(scores, key=lambda item: -scores[item]) == [1, 3, 2]
    assert scores[2] == pytest.approx(1 / 62)


def test_diversity_takes_what_is_unlike_first() -> None:
    vectors = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    relevance = np.array([1.0, 0.99, 0.5, 0.1])
    assert diverse(relevance, vectors, [], 0.0, 4) == [0, 1, 2, 3]
    assert diverse(relevance, vectors, [], 0.6, 4)[:2] == [0, 2]
    assert diverse(relevance, vectors, [0], 0.6, 1) == [2]
