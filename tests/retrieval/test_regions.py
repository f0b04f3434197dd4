import numpy as np

from evals.drift import SHIFT, psi
from foveal.detections import FloatArray
from retrieval.regions import Regions

RNG = np.random.default_rng(0)
CENTRES = np.linalg.qr(RNG.normal(size=(32, 32)))[0][:6]


def around(centres: FloatArray, count: int, spread: float = 0.05) -> FloatArray:
    drawn = centres[RNG.integers(0, len(centres), count)] + spread * RNG.normal(size=(count, 32))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def test_other_images_of_the_kind_lie_where_the_archives_do() -> None:
    regions = Regions.fit(around(CENTRES[:5], 1200))
    assert regions.usual.sum() == 600
    assert psi(regions.usual, regions.counts(around(CENTRES[:5], 300))) < 0.1


def test_images_of_another_kind_lie_outside() -> None:
    regions = Regions.fit(around(CENTRES[:5], 1200))
    counts = regions.counts(around(CENTRES[5:], 300))
    assert counts[-1] > 280
    assert psi(regions.usual, counts) > SHIFT


def test_another_mix_of_known_kinds_is_a_shift_too() -> None:
    regions = Regions.fit(around(CENTRES[:5], 1200))
    assert psi(regions.usual, regions.counts(around(CENTRES[:1], 300))) > SHIFT


def test_few_images_make_one_region() -> None:
    regions = Regions.fit(around(CENTRES[:1], 60))
    assert len(regions.centres) == 1
    assert regions.counts(np.zeros((0, 32), np.float32)).tolist() == [0, 0]
