from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from foveal.progress import SilentProgress
from retrieval.archive import Archive
from retrieval.query import SearchQuery
from retrieval.transfer import export, read
from retrieval.words import Words
from tests.retrieval.pixels import COLOURS, PixelEncoder, write_images

ENCODER = PixelEncoder()
CAPTIONS = ("a rusty valve", "two drones over the loading bay", "the bay of crates", "serial 4711-A", "cafés at night")


def fill(path: Path, captions: tuple[str, ...] = CAPTIONS) -> Archive:
    archive = Archive.create(path, ENCODER)
    vectors = ENCODER.encode_texts(COLOURS[: len(captions)])
    uris = [f"/data/IMG_{number:04d}.jpg" for number in range(len(captions))]
    archive.add_vectors(
        uris, vectors, fingerprint=ENCODER.fingerprint, metadata=[{"caption": text, "n": 1} for text in captions]
    )
    return archive


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return fill(tmp_path / "archive")


def found(archive: Archive, words: str, **options: object) -> list[str]:
    results = archive.search(SearchQuery(words=words, **options), ENCODER)  # type: ignore[arg-type]
    return [hit.uri[-8:-4] for hit in results]


class Colours(PixelEncoder):
    """Takes any text."""

    def encode_texts(self, texts):  # type: ignore[no-untyped-def]
        known = [next((colour for colour in COLOURS if colour in text), "pink") for text in texts]
        return super().encode_texts(known)


ENCODER = Colours()


def test_words_alone_find_names_and_captions(archive: Archive) -> None:
    assert found(archive, "valves") == ["0000"]
    assert found(archive, "img_0003") == ["0003"]
    assert found(archive, "4711") == ["0003"]
    assert found(archive, "CAFES") == ["0004"]
    assert set(found(archive, "bay")) == {"0001", "0002"}
    assert found(archive, '"loading bay"') == ["0001"]
    assert found(archive, "drone bay")[0] == "0001"


def test_no_word_found_is_nothing_and_says_so(archive: Archive) -> None:
    results = archive.search(SearchQuery(words="submarine yacht"), ENCODER)
    assert not results
    assert results.reason == "no name or text contains 'submarine' or 'yacht'"


def test_hits_tell_their_words_and_are_fused_with_similarity(archive: Archive) -> None:
    results = archive.search(SearchQuery(text="red", words="crates night"), ENCODER)
    assert len(results) == 5
    assert {hit.uri[-8:-4] for hit in results[:3]} == {"0000", "0002", "0004"}  # red by vector, two by their words
    assert {hit.uri[-8:-4]: hit.keywords for hit in results if hit.keywords} == {
        "0002": ("crates",),
        "0004": ("night",),
    }


def test_the_filter_holds_for_words(tmp_path: Path) -> None:
    archive = fill(tmp_path / "archive")
    assert found(archive, "bay", filter="caption LIKE '%crates%'") == ["0002"]


@given(st.text(min_size=1, max_size=60))
def test_user_text_is_never_an_expression(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    global _shared
    if _shared is None:
        _shared = fill(tmp_path_factory.mktemp("any") / "archive")
    words = Words(_shared.folder / "words.sqlite")
    assert words.update(_shared.snapshot()) is None
    list(words.find(text, _shared.snapshot().seqs))
    words.matched(_shared.snapshot().seqs.tolist(), text)


_shared: Archive | None = None


@pytest.mark.parametrize(
    "text", ['valve" OR "bay', "body:valve", "val*", "NEAR(valve bay)", "valve AND NOT rusty", '"', "^"]
)
def test_operators_are_plain_words(archive: Archive, text: str) -> None:
    assert set(found(archive, text + " zzz")) <= {"0000", "0001", "0002"}


def test_the_index_follows_the_archive(archive: Archive) -> None:
    assert found(archive, "valve") == ["0000"]
    red = archive.search(SearchQuery(words="valve"), ENCODER)[0].id
    archive.add_vectors(
        ["/data/new.jpg"], ENCODER.encode_texts(["white"]), fingerprint=ENCODER.fingerprint,
        metadata=[{"caption": "another valve"}],
    )  # fmt: skip
    assert len(found(archive, "valve")) == 2
    archive.delete([red])
    assert len(found(archive, "valve")) == 1


def test_deleted_text_leaves_the_file(archive: Archive) -> None:
    found(archive, "valve")
    file = archive.folder / "words.sqlite"
    assert b"rusty" in file.read_bytes()
    archive.delete([archive.search(SearchQuery(words="rusty"), ENCODER)[0].id])
    found(archive, "bay")
    Words(file).purge(archive.snapshot())
    assert b"rusty" not in file.read_bytes()
    assert b"rusti" not in file.read_bytes()  # as it is stemmed
    assert not found(archive, "rusty")
    assert len(found(archive, "bay")) == 2


@pytest.mark.parametrize("damage", [b"", b"no database" * 100, None])
def test_a_damaged_index_is_built_anew(archive: Archive, damage: bytes | None) -> None:
    found(archive, "valve")
    file = archive.folder / "words.sqlite"
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage)
    assert found(archive, "valve") == ["0000"]


def test_pages_torn_in_the_middle_are_survived(archive: Archive) -> None:
    found(archive, "valve")
    file = archive.folder / "words.sqlite"
    data = bytearray(file.read_bytes())
    data[4096:] = np.random.default_rng(0).bytes(len(data) - 4096)
    file.write_bytes(data)
    results = archive.search(SearchQuery(text="red", words="valve"), ENCODER)
    assert len(results) == 5  # by vector at least
    archive.delete([results[-1].id])
    assert len(archive.search(SearchQuery(text="red", words="valve"), ENCODER)) == 4


def test_a_locked_index_costs_the_newest_words_only(archive: Archive) -> None:
    assert found(archive, "valve") == ["0000"]
    archive.delete([archive.search(SearchQuery(words="valve"), ENCODER)[0].id])
    with FileLock(archive.folder / ".words.sqlite-lock"):
        results = archive.search(SearchQuery(words="valve bay"), ENCODER)
    assert len(results) == 2  # never a deleted one
    assert "another process" in results.notes[0]


def test_a_locked_database_costs_the_words_only(archive: Archive) -> None:
    found(archive, "valve")
    writer = sqlite3.connect(archive.folder / "words.sqlite", isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    results = archive.search(SearchQuery(text="red", words="valve"), ENCODER)
    writer.close()
    assert len(results) == 5
    assert any("locked" in note for note in results.notes)


def test_what_could_not_be_searched_is_not_called_nothing(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval.search.CATCH_UP", 2)
    results = archive.search(SearchQuery(words="valve"), ENCODER)
    assert not results
    assert not results.nothing
    assert "5 images are not indexed" in results.notes[0]
    assert Words(archive.folder / "words.sqlite").update(archive.snapshot()) is None
    assert found(archive, "valve") == ["0000"]


def test_add_import_and_check_index_every_word_whatever_the_vectors_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrieval.search.CATCH_UP", 2)  # a search does not catch up with more
    monkeypatch.setattr("retrieval.archive.LEFT", 3)
    first = write_images(tmp_path / "first" / "images", 8)
    archive = Archive.create(tmp_path / "archive", ENCODER)
    archive.add(first[0].parent, ENCODER)
    later = write_images(tmp_path / "later" / "images", 8, seed=1, colour="orange")
    archive.add(later[0].parent, ENCODER)  # too few for another segment
    assert archive.snapshot().tail == 8
    assert len(found(archive, "orange", k=20)) == 9
    (archive.folder / "words.sqlite").unlink()
    results = archive.search(SearchQuery(words="orange"), ENCODER)
    assert "16 images are not indexed" in results.notes[0]
    assert archive.check().ok
    assert len(found(archive, "orange", k=20)) == 9
    export(archive, tmp_path / "out.parquet", SilentProgress())
    other = fill(tmp_path / "other")
    assert read(other, tmp_path / "out.parquet", ENCODER, SilentProgress()) == (16, [])
    assert len(found(other, "orange", k=20)) == 9


def test_add_says_that_it_could_not_index_the_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval.turns.SECONDS", 0.1)
    monkeypatch.setattr("retrieval.archive.LEFT", 1)
    images = write_images(tmp_path / "world" / "images", 3)
    archive = Archive.create(tmp_path / "archive", ENCODER)
    with FileLock(archive.folder / ".words.sqlite-lock"):
        report = archive.add(images[0].parent, ENCODER)
        assert "another process is indexing keywords" in report.notes[0]
        assert not archive.check().ok
    assert report.added == 3
    assert archive.check().ok


def test_an_older_view_brings_nothing_back(archive: Archive) -> None:
    old = archive.snapshot()
    archive.delete([archive.search(SearchQuery(words="rusty"), ENCODER)[0].id])
    words = Words(archive.folder / "words.sqlite")
    words.purge(archive.snapshot())
    assert words.update(old) is None
    assert not list(words.find("rusty", old.seqs))
