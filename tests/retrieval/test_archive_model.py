"""Any sequence of add, change, delete, re-embed, crash and reopen leaves an archive equal to a plain dictionary."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from foveal.progress import SilentProgress
from retrieval.archive import Archive
from retrieval.ingest import identity
from retrieval.query import SearchQuery
from retrieval.reembed import reembed
from retrieval.segments import SegmentStore
from retrieval.settings import Settings
from retrieval.table import Table
from tests.retrieval.pixels import PixelEncoder

SLOTS, FIRST, TAGS = 5, 3, ("red", "green", "blue")  # words that the encoder takes
slots, tags = st.integers(0, SLOTS - 1), st.integers(0, len(TAGS) - 1)
crash = st.sampled_from([None, None, "before", "after"])  # the commit; None: nothing happens
Step = tuple[str, int, int, str | None]
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), slots, st.integers(0, 255), crash),
        st.tuples(st.just("tell"), slots, tags, crash),
        st.tuples(st.just("delete"), slots, st.just(0), crash),
        st.tuples(st.just("delete by filter"), st.just(0), tags, crash),
        st.tuples(st.just("compact"), st.just(0), st.sampled_from([0, 1]), crash),
        st.tuples(st.just("reembed"), st.just(0), st.just(0), crash),
        st.tuples(st.sampled_from(["reopen", "rebuild"]), st.just(0), st.just(0), st.none()),
    ),
    min_size=2,
    max_size=9,
)
ENCODERS = (PixelEncoder(), PixelEncoder(dimension=16, seed=1))


class Crashed(Exception):
    """Stands for a kill right before or right after a commit."""


@contextmanager
def crashing(owner: type, name: str, when: str | None, only: Path | None = None) -> Generator[None]:
    """Raises `when` the method commits, or commits to the folder `only`; `Crashed` ends the block."""
    commit = getattr(owner, name)

    def cut(self: Any, *args: Any, **options: Any) -> Any:
        here = when is not None and (only is None or args == (only,))
        if here and when == "before":
            raise Crashed
        done = commit(self, *args, **options)
        if here:
            raise Crashed
        return done

    with mock.patch.object(owner, name, cut):
        try:
            yield
        except Crashed:
            assert when is not None


@dataclass(frozen=True)
class Shown:
    """An image as the archive should know it."""

    shade: int
    tag: int


class Machine:
    """An archive and the dictionary that it should equal; images and what is said of them lie in files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.encoder, self.other = ENCODERS
        self.archive = Archive.create(folder / "archive", self.encoder)
        self.model: dict[int, Shown] = {}

    def file(self, slot: int) -> Path:
        return self.folder / f"{slot}.png"

    def id(self, slot: int) -> str:
        return identity(str(self.file(slot)))

    def paint(self, slot: int, shown: Shown) -> None:
        colour = (shown.shade, 255 - shown.shade, slot * 50)
        Image.new("RGB", (9, 9), colour).save(self.file(slot))
        self.file(slot).with_suffix(".json").write_text(json.dumps({"tag": TAGS[shown.tag]}))

    def put(self, slot: int, shown: Shown, when: str | None) -> None:
        before = self.model.get(slot)
        self.paint(slot, shown)
        with crashing(Table, "write", when):
            self.archive.add(self.file(slot), self.encoder)
        if when != "before" or shown == before:  # nothing new is nothing to commit
            self.model[slot] = shown
        elif before is not None:
            self.paint(slot, before)  # what it shows is for `reembed` to read

    def add(self, slot: int, shade: int, when: str | None) -> None:
        known = self.model.get(slot)
        self.put(slot, Shown(shade, 0 if known is None else known.tag), when)

    def tell(self, slot: int, tag: int, when: str | None) -> None:
        if slot in self.model:
            self.put(slot, Shown(self.model[slot].shade, tag), when)

    def remove(self, gone: list[int], when: str | None) -> None:
        with crashing(Table, "delete", when):
            assert self.archive.delete([self.id(slot) for slot in gone]) == len(self.model.keys() & set(gone))
        if when != "before":
            self.model = {slot: shown for slot, shown in self.model.items() if slot not in gone}

    def delete(self, slot: int, _: int, when: str | None) -> None:
        self.remove([slot], when)

    def delete_by_filter(self, _: int, tag: int, when: str | None) -> None:
        if "tag" in self.archive.columns:
            found = set(self.archive.matching(f"tag = '{TAGS[tag]}'"))
            gone = [slot for slot, shown in self.model.items() if shown.tag == tag]
            assert found == {self.id(slot) for slot in gone}
            self.remove(gone, when)

    def compact(self, _: int, step: int, when: str | None) -> None:
        with crashing(*[(Table, "erase"), (SegmentStore, "_swap")][step], when):
            self.archive.compact()

    def reembed(self, _: int, __: int, when: str | None) -> None:
        with crashing(Settings, "write", when, only=self.archive.path):
            reembed(self.archive, self.other, self.other.name, SilentProgress())
        if when != "before":
            self.encoder, self.other = self.other, self.encoder
            self.archive = Archive.open(self.archive.path)

    def reopen(self, *_: object) -> None:
        self.archive = Archive.open(self.archive.path)

    def rebuild(self, *_: object) -> None:
        self.archive.rebuild()

    def compare(self) -> None:
        assert self.archive.fingerprint == self.encoder.fingerprint
        assert len(self.archive) == len(self.model)
        for slot, shown in self.model.items():
            query = SearchQuery(image=self.file(slot), k=50)
            hits = {hit.id: hit for hit in self.archive.search(query, self.encoder)}
            assert hits.keys() == {self.id(other) for other in self.model}
            assert hits[self.id(slot)].similarity > 0.999
            assert hits[self.id(slot)].metadata == {"tag": TAGS[shown.tag]}
        if not self.model:
            assert not self.archive.search(SearchQuery(text="red", k=50), self.encoder)
        for tag in range(len(TAGS)):
            mine = {self.id(slot) for slot, shown in self.model.items() if shown.tag == tag}
            said = self.archive.search(SearchQuery(words=TAGS[tag], k=50), self.encoder)
            assert {hit.id for hit in said} == mine
            if "tag" in self.archive.columns:
                assert set(self.archive.matching(f"tag = '{TAGS[tag]}'")) == mine


def after_deletion(step: Step) -> list[Step]:
    return [("delete", 1, 0, None), step, ("compact", 0, 0, None)]


@example(after_deletion(("compact", 0, 0, "before")))
@example(after_deletion(("compact", 0, 0, "after")))
@example(after_deletion(("compact", 0, 1, "before")))
@example(after_deletion(("compact", 0, 1, "after")))
@example(
    [  # what an unfinished generation has to catch up with
        ("reembed", 0, 0, "before"),
        ("tell", 0, 1, None),
        ("add", 1, 200, None),
        ("delete", 2, 0, None),
        ("reembed", 0, 0, "after"),
    ]
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=steps)
def test_the_archive_equals_a_dictionary(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as name:
        machine = Machine(Path(name))
        for slot in range(FIRST):
            machine.add(slot, slot * 90, None)
        machine.rebuild()
        for step, slot, value, when in steps:
            getattr(machine, step.replace(" ", "_"))(slot, value, when)
            if when is not None:
                machine.reopen()
            machine.compare()
        report = machine.archive.check()
        assert report.ok, report.problems
