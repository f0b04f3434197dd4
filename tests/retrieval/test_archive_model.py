"""Any sequence of add, change, delete and reopen leaves an archive equal to a plain dictionary."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from retrieval.archive import Archive
from retrieval.ingest import identity
from retrieval.query import SearchQuery
from tests.retrieval.pixels import PixelEncoder

SLOTS = 5
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, SLOTS - 1), st.integers(0, 255)),
        st.tuples(st.just("delete"), st.integers(0, SLOTS - 1), st.just(0)),
        st.tuples(st.sampled_from(["reopen", "rebuild"]), st.just(0), st.just(0)),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=steps)
def test_the_archive_equals_a_dictionary(steps: list[tuple[str, int, int]]) -> None:
    encoder = PixelEncoder()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = Archive.create(folder / "archive", encoder)
        model: dict[str, Path] = {}
        for step, slot, shade in steps:
            path = folder / f"{slot}.png"
            if step == "add":
                Image.new("RGB", (9, 9), (shade, 255 - shade, slot * 50)).save(path)
                archive.add(path, encoder)
                model[identity(str(path))] = path
            elif step == "delete":
                assert archive.delete([identity(str(path))]) == (model.pop(identity(str(path)), None) is not None)
            elif step == "reopen":
                archive = Archive.open(archive.path)
            else:
                archive.rebuild()
            found = {hit.id: hit for hit in archive.search(SearchQuery(text="red", k=50), encoder)}
            assert set(found) == set(model)
            assert len(archive) == len(model)
            for key, file in model.items():
                query = SearchQuery(image=file, k=50)
                mine = next(hit for hit in archive.search(query, encoder) if hit.id == key)
                assert mine.similarity > 0.999
        report = archive.check()
        assert report.ok, report.problems
