"""The Ray job against the plain path: the same archive, whatever the sources, and nothing embedded twice."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foveal.errors import BadInput, FingerprintMismatch
from foveal.models import load_encoder
from retrieval.archive import Archive
from retrieval.ray_job import RayJob
from tests.retrieval.pixels import PixelEncoder, write_images

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray: pip install 'foveal[ray]'"),
]
ENCODER = PixelEncoder()
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of four cores as Ray counts them, however many there are."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    kept = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)  # workers import the encoder of these tests
    context = ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="warning")
    yield context
    ray.shutdown()
    os.environ.pop("PYTHONPATH")
    if kept is not None:
        os.environ["PYTHONPATH"] = kept


def contents(archive: Archive) -> dict[str, dict[str, Any]]:
    columns = ["uri", "content_hash", "stamp", "width", "bytes", "phash", "thumbnail", "metadata", "vector"]
    return archive.items(archive.matching("width > 0"), columns)


def assert_equal(one: Archive, other: Archive) -> None:
    ours, theirs = contents(one), contents(other)
    assert ours.keys() == theirs.keys()
    for key, row in ours.items():
        vectors = [np.asarray(each.pop("vector"), np.float32) for each in (row, theirs[key])]
        assert np.abs(vectors[0] - vectors[1]).max() < 1e-3
        assert row == theirs[key]
    assert sorted(one.quarantined()) == sorted(other.quarantined())


def old(paths: list[Path]) -> None:
    """Lets times be trusted, as those of files that were not written just now are."""
    for path in paths:
        os.utime(path, (1_000_000_000, 1_000_000_000))


def test_folders_tars_and_parquet_give_the_same_archive(cluster: Any, tmp_path: Path) -> None:
    images = write_images(tmp_path / "world" / "images", 90)
    (images[0].parent / "page.jpg").write_text("<html>not found</html>")
    inside = write_images(tmp_path / "other" / "images", 70, seed=1)
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for path in inside:
            tar.add(path, path.name)
    rows = {"image": [path.read_bytes() for path in inside[:40]] + [b"no image"], "site": ["quay"] * 41}
    pq.write_table(pa.table(rows), tmp_path / "table.parquet", row_group_size=16)
    old([*images, *inside, tmp_path / "shard.tar", tmp_path / "table.parquet"])
    sources = [images[0].parent, tmp_path / "shard.tar", tmp_path / "table.parquet"]
    plain = Archive.create(tmp_path / "plain", ENCODER)
    expected = plain.add(sources, ENCODER)
    archive = Archive.create(tmp_path / "archive", ENCODER)
    job = RayJob(PixelEncoder, actors=1)
    report = archive.add(sources, ENCODER, through=job)
    assert (report.added, len(report.quarantined)) == (expected.added, len(expected.quarantined)) == (200, 2)
    assert_equal(archive, plain)
    again = archive.add(sources, ENCODER, through=job)
    assert (again.added, again.updated, again.unchanged) == (0, 0, 200)
    assert archive.check().ok


def test_a_real_encoder_gives_the_same_vectors(cluster: Any, tmp_path: Path) -> None:
    images = write_images(tmp_path / "world" / "images", 70)
    old(images)
    encoder = load_encoder("bundled:clip")
    plain = Archive.create(tmp_path / "plain", encoder)
    plain.add(images[0].parent, encoder)
    archive = Archive.create(tmp_path / "archive", encoder)
    archive.add(images[0].parent, encoder, through=RayJob.of("bundled:clip", actors=1))
    assert_equal(archive, plain)


def test_a_killed_job_goes_on_where_it_was(cluster: Any, tmp_path: Path) -> None:
    images = write_images(tmp_path / "world" / "images", 600)
    old(images)
    archive = Archive.create(tmp_path / "archive", ENCODER)
    script = f"""
import ray
ray.init(address={cluster.address_info["gcs_address"]!r}, log_to_driver=False, logging_level="warning")
from retrieval.archive import Archive
from retrieval.ray_job import RayJob
from tests.retrieval.pixels import PixelEncoder
job = RayJob(PixelEncoder, actors=1, waves=64)
Archive.open({str(archive.path)!r}).add({str(images[0].parent)!r}, PixelEncoder(), through=job)
"""
    started = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 120
    while len(archive) < 100 and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    started.send_signal(signal.SIGKILL)
    started.wait()
    before = len(archive)
    assert 100 <= before < 600
    report = Archive.open(archive.path).add(images[0].parent, ENCODER, through=RayJob(PixelEncoder, actors=1))
    assert (report.added, report.updated, report.unchanged) == (600 - before, 0, before)
    assert len({hit.id for hit in archive.nearest(ENCODER.encode_texts(["red"]), k=1000)[0]}) == 600
    assert archive.check().ok


def test_what_cannot_work_is_said_before_or_at_once(cluster: Any, tmp_path: Path) -> None:
    images = write_images(tmp_path / "world" / "images", 3)
    archive = Archive.create(tmp_path / "archive", ENCODER)
    with pytest.raises(BadInput, match="too small for 4 encoding actors; expected 5 CPUs"):
        archive.add(images[0].parent, ENCODER, through=RayJob(PixelEncoder, actors=4))
    other = RayJob(lambda: PixelEncoder(seed=1), actors=1)
    with pytest.raises(FingerprintMismatch, match="another encoder on a node"):
        archive.add(images[0].parent, ENCODER, through=other)
    assert len(archive) == 0
