"""The commands that look after an archive."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrieval.archive import Archive
from tests.command import foveal
from tests.retrieval.pixels import PixelEncoder, write_images

ENCODER = PixelEncoder()


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    images = write_images(tmp_path / "world" / "images", 12)
    made = Archive.create(tmp_path / "archive", ENCODER)
    made.add(images[0].parent, ENCODER)
    return made


def test_quarantine_lists_what_could_not_be_added_and_why(archive: Archive, tmp_path: Path) -> None:
    assert foveal("archive", "quarantine", "--archive", str(archive.path), "--json").json == {"quarantined": []}
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    archive.add(bad, ENCODER)
    (row,) = foveal("archive", "quarantine", "--archive", str(archive.path), "--json").json["quarantined"]
    assert row["uri"] == str(bad)
    assert row["reason"] in dict(archive.quarantined()).values()
    assert "reason" in foveal("archive", "quarantine", "--archive", str(archive.path)).out
