from __future__ import annotations

import io
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image, ImageFilter

from retrieval.facts import as_jpeg, camera_facts, hash_distance, perceptual_hash, thumbnail


def scene(seed: int, width: int = 640, height: int = 480) -> Image.Image:
    """A smooth picture with a few soft shapes, different for each seed."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def photo(format: str = "JPEG", **tags: object) -> bytes:
    """An encoded picture with EXIF: `t306` is tag 306, `e36867` one of the exposure, `g1` one of the place."""
    exif = Image.Exif()
    parts: dict[str, dict[int, object]] = {"t": {}, "e": {}, "g": {}}
    for name, value in tags.items():
        parts[name[0]][int(name[1:])] = value
    exif.update(parts["t"])
    for tag, part in ((0x8769, parts["e"]), (0x8825, parts["g"])):
        if part:
            exif.get_ifd(tag).update(part)  # where JPEG takes it from
            exif[tag] = part  # where TIFF does
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), "teal").save(buffer, format, exif=exif)
    return buffer.getvalue()


def place(lat: tuple, lat_ref: str, lon: tuple, lon_ref: str) -> dict[str, object]:
    def rational(parts: tuple) -> tuple:
        return tuple(Fraction(part).limit_denominator(10_000) for part in parts)

    return {"g1": lat_ref, "g2": rational(lat), "g3": lon_ref, "g4": rational(lon)}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_time_place_and_camera_are_read_from_every_format_that_has_them(format: str) -> None:
    data = photo(
        format,
        t271="Nikon Corporation\0",
        t272=" D850 ",
        e36867="2026:11:02 10:30:00",
        e36881="+01:00",
        **place((52, 30, 36), "N", (13, 24, 18), "E"),
    )
    assert camera_facts(data) == {
        "taken_at": "2026-11-02T09:30:00Z",
        "gps_lat": 52.51,
        "gps_lon": 13.405,
        "camera_make": "Nikon Corporation",
        "camera_model": "D850",
    }


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"e36867": "2026:11:02 10:30:00"}, "2026-11-02T10:30:00Z"),  # no offset: taken as UTC
        ({"e36867": "2026:11:02 10:30:00", "e36881": "-08:00"}, "2026-11-02T18:30:00Z"),
        ({"e36867": "2026:11:02 10:30:00", "e36881": "?"}, "2026-11-02T10:30:00Z"),
        ({"e36868": "2025:01:01 00:00:00"}, "2025-01-01T00:00:00Z"),
        ({"t306": "2024:02:29 23:59:59"}, "2024-02-29T23:59:59Z"),
        ({"e36867": "0000:00:00 00:00:00", "t306": "2024:02:29 23:59:59"}, "2024-02-29T23:59:59Z"),
        ({"e36867": "2026:13:45 99:00:00"}, None),
        ({"e36867": "0001:01:01 00:00:00", "e36881": "+05:00"}, None),
        ({"e36867": "yesterday"}, None),
    ],
)
def test_times(tags: dict[str, object], expected: str | None) -> None:
    assert camera_facts(photo(**tags)).get("taken_at") == expected


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (((33, 51, 35.9), "S", (151, 12, 40), "E"), (-33.8599722, 151.2111111)),
        (((40, 42.767, 0), "N", (74, 0.36, 0), "W"), (40.7127833, -74.006)),
        (((0, 0, 0), "N", (0, 0, 0), "E"), None),  # no fix
        (((0, 0, 0), "N", (9, 0, 0), "E"), (0, 9)),
        (((91, 0, 0), "N", (9, 0, 0), "E"), None),
        (((9, 0, 0), "N", (181, 0, 0), "E"), None),
    ],
)
def test_hemispheres_and_limits(where: tuple, expected: tuple[float, float] | None) -> None:
    found = camera_facts(photo(**place(*where)))
    if expected is None:
        assert found == {}
    else:
        assert (found["gps_lat"], found["gps_lon"]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about what it skips
def test_damaged_exif_costs_only_itself() -> None:
    whole = photo(t271="Maker", e36867="2026:11:02 10:30:00", **place((1, 2, 3), "N", (4, 5, 6), "E"))
    start = whole.index(b"Exif\0\0")
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(whole)
        for position in rng.integers(start + 6, start + 200, 8):
            damaged[position] = rng.integers(256)
        camera_facts(bytes(damaged))
    assert camera_facts(b"no image") == {}
    assert camera_facts(photo(t271="\x01\x02")) in ({}, {"camera_make": "\x01\x02"})


def test_alike_images_hash_alike_and_others_far_apart() -> None:
    hashes = [perceptual_hash(thumbnail(scene(seed))) for seed in range(12)]
    for seed, known in enumerate(hashes):
        image = scene(seed)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=40)
        variants = [
            image.resize((320, 240), Image.Resampling.LANCZOS),
            image.resize((1024, 700)),
            Image.open(buffer).convert("RGB"),
            image.filter(ImageFilter.GaussianBlur(1)),
            image.point(lambda value: value * 0.9),
        ]
        for variant in variants:
            assert hash_distance(known, perceptual_hash(thumbnail(variant))) <= 4
    pairs = [hash_distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert np.mean(pairs) > 24
    assert min(pairs) > 10
    assert all(-(2**63) <= one < 2**63 for one in hashes)


def test_blank_images_hash_to_the_same() -> None:
    hashes = {perceptual_hash(Image.new("RGB", (64, 64), colour)) for colour in ("white", "grey", "red")}
    assert len(hashes) == 1
    assert hash_distance(-1, 0) == 64


@pytest.mark.parametrize(
    ("size", "expected"), [((1000, 500), (256, 128)), ((30_000, 2), (256, 1)), ((40, 24), (40, 24)), ((1, 1), (1, 1))]
)
def test_thumbnails_shrink_and_never_grow(size: tuple[int, int], expected: tuple[int, int]) -> None:
    small = thumbnail(Image.new("RGB", size, "olive"))
    assert small.size == expected
    assert Image.open(io.BytesIO(as_jpeg(small))).format == "JPEG"
