"""Any sequence of add, change, delete and reopen leaves an archive equal to a plain dictionary."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from foveal.progress import SilentProgress
from retrieval.archive import Archive
from retrieval.ingest import identity
from retrieval.query import SearchQuery
from retrieval.reembed import reembed
from tests.retrieval.pixels import PixelEncoder

SLOTS = 5
steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["add", "crash"]), st.integers(0, SLOTS - 1), st.integers(0, 255)),
        st.tuples(st.just("delete"), st.integers(0, SLOTS - 1), st.just(0)),
        st.tuples(st.sampled_from(["reopen", "rebuild", "compact", "reembed"]), st.just(0), st.just(0)),
    ),
    min_size=1,
    max_size=8,
)
ENCODERS = (PixelEncoder(), PixelEncoder(dimension=16, seed=1))


class Crashed(Exception):
    """Stands for a kill right after a commit, before anything that follows it."""


class Crashing(SilentProgress):
    def advance(self, n: int = 1) -> None:
        raise Crashed


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=steps)
def test_the_archive_equals_a_dictionary(steps: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder, other = ENCODERS
        archive = Archive.create(folder / "archive", encoder)
        model: dict[str, Path] = {}
        for step, slot, shade in steps:
            path = folder / f"{slot}.png"
            if step in ("add", "crash"):
                Image.new("RGB", (9, 9), (shade, 255 - shade, slot * 50)).save(path)
                with suppress(Crashed):
                    archive.add(path, encoder, Crashing() if step == "crash" else None)
                model[identity(str(path))] = path
                if step == "crash":
                    archive = Archive.open(archive.path)
            elif step == "delete":
                assert archive.delete([identity(str(path))]) == (model.pop(identity(str(path)), None) is not None)
            elif step == "reopen":
                archive = Archive.open(archive.path)
            elif step == "rebuild":
                archive.rebuild()
            elif step == "compact":
                archive.compact()
            else:
                reembed(archive, other, other.name, SilentProgress())
                encoder, other = other, encoder
                archive = Archive.open(archive.path)
            found = {hit.id: hit for hit in archive.search(SearchQuery(text="red", k=50), encoder)}
            assert set(found) == set(model)
            assert len(archive) == len(model)
            for key, file in model.items():
                query = SearchQuery(image=file, k=50)
                mine = next(hit for hit in archive.search(query, encoder) if hit.id == key)
                assert mine.similarity > 0.999
        report = archive.check()
        assert report.ok, report.problems
