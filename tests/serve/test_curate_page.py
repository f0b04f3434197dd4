"""Curating an archive: worked out once until it changes, and nothing leaves it before that is confirmed."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

import serve.curating
from retrieval.archive import Archive
from retrieval.curate.duplicates import Duplicates
from retrieval.curate.links import Likeness
from serve.app import create_app
from serve.demo.curate import CuratePage, Seen
from tests.serve.conftest import ColourEncoder, draw

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # as the server has it


@pytest.fixture
def store(tmp_path: Path) -> Archive:
    """Five pictures; one of them is there three times, one lies apart."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    draw(("red", (4, 4, 20, 40)), ("blue", (30, 8, 50, 30))).save(folder / "first.png")
    for name in ("again", "once-more"):
        shutil.copyfile(folder / "first.png", folder / f"{name}.png")
    draw(("green", (2, 2, 60, 20))).save(folder / "other.png")
    draw(("yellow", (0, 0, 64, 48))).save(folder / "odd.png")
    made = Archive.create(tmp_path / "depot", ColourEncoder())
    made.add(folder, ColourEncoder())
    return made


@pytest.fixture
def page(store: Archive) -> CuratePage:
    return CuratePage(create_app(archive=store, encoder=ColourEncoder()).state.engine)


async def looked(page: CuratePage, what: Any = "duplicates") -> tuple[Seen, str]:
    steps = [step async for step in page.look(what)]
    assert "going through" in steps[0][1]
    return steps[-1][0], steps[-1][3]


async def test_nothing_is_taken_out_before_it_is_confirmed(page: CuratePage, store: Archive) -> None:
    seen, drawn = await looked(page)
    assert isinstance(seen.found, Duplicates)
    assert "3 equal files" in drawn
    extra = ",".join(seen.found.extra)
    asked, _, question, _ = await page.act("ask", extra, seen, True)
    assert "Take these 2 pictures out" in question
    assert "sent to this server, which are deleted" in question
    assert len(store) == 5
    left = (await page.act("no", "", asked, True))[0]
    assert left.asked == ()
    await page.act("yes", "", left, True)  # what was asked is no longer
    assert len(store) == 5
    seen, said, problem, drawn = await page.act("yes", "", asked, True)
    assert (len(store), problem) == (3, "")
    assert "2 pictures taken out" in said
    assert "No picture is there twice" in drawn
    assert all(Path(path).is_file() for path in (store.path.parent / "pictures").iterdir())
    assert "No picture is there twice" in (await looked(page))[1]


async def test_a_key_that_may_not_write_takes_nothing_out(page: CuratePage, store: Archive) -> None:
    seen, _ = await looked(page)
    assert isinstance(seen.found, Duplicates)
    asked, _, question, _ = await page.act("ask", ",".join(seen.found.extra), seen, False)
    assert "may look" in question
    assert "data-do" not in question
    await page.act("yes", "", asked, False)
    assert len(store) == 5


async def test_only_what_is_shown_as_too_much_can_be_asked_about(page: CuratePage, store: Archive) -> None:
    seen, _ = await looked(page)
    assert isinstance(seen.found, Duplicates)
    kept = seen.found.groups[0].keep.id
    for ids in (kept, "ff", "../x", ""):
        assert (await page.act("ask", ids, seen, True))[0].asked == ()


async def test_a_picture_that_went_meanwhile_is_explained(page: CuratePage, store: Archive) -> None:
    seen, _ = await looked(page)
    assert isinstance(seen.found, Duplicates)
    asked = (await page.act("ask", ",".join(seen.found.extra), seen, True))[0]
    store.delete([seen.found.extra[0]])
    assert "no item" in (await page.act("yes", "", asked, True))[2]


async def test_work_is_shared_and_kept_until_the_archive_changes(
    page: CuratePage, store: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0
    find = serve.curating.find_duplicates

    def counted(archive: Archive, like: Likeness) -> Duplicates:
        nonlocal count
        count += 1
        return find(archive, like)

    monkeypatch.setattr(serve.curating, "find_duplicates", counted)
    await asyncio.gather(looked(page), looked(page))
    await looked(page)
    assert count == 1
    draw(("blue", (0, 0, 64, 48))).save(tmp_path / "new.png")
    store.add(tmp_path / "new.png", ColourEncoder())
    await looked(page)
    assert count == 2


async def test_a_visitor_who_leaves_ends_nobodys_work(page: CuratePage) -> None:
    leaving = asyncio.create_task(looked(page))
    staying = asyncio.create_task(looked(page))
    await asyncio.sleep(0.01)
    leaving.cancel()
    assert "3 equal files" in (await staying)[1]


async def test_outliers_and_clusters_are_shown(page: CuratePage) -> None:
    _, drawn = await looked(page, "outliers")
    assert drawn.count("Take it out") == 5
    _, drawn = await looked(page, "clusters")
    assert "fv-group" in drawn
    assert "/?like=" in drawn


async def test_an_empty_archive_is_explained_and_tried_again(tmp_path: Path) -> None:
    empty = Archive.create(tmp_path / "empty", ColourEncoder())
    page = CuratePage(create_app(archive=empty, encoder=ColourEncoder()).state.engine)
    assert "holds no images" in (await looked(page))[1]
    draw(("blue", (0, 0, 64, 48))).save(tmp_path / "new.png")
    empty.add(tmp_path / "new.png", ColourEncoder())
    assert "No picture is there twice" in (await looked(page))[1]
