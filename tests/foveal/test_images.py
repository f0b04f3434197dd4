import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from foveal.errors import BadImage, BadInput
from foveal.images import content_hash, decode, find_images, size

RED, BLUE = (255, 0, 0), (0, 0, 255)


def two_halves(width: int = 24, height: int = 16) -> Image.Image:
    """Left half red, right half blue, a white pixel block in the top left corner."""
    image = Image.new("RGB", (width, height), BLUE)
    image.paste(RED, (0, 0, width // 2, height))
    image.paste((255, 255, 255), (0, 0, 4, 4))
    return image


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once_and_known_from_the_header(format: str, orientation: int) -> None:
    lossless = {"lossless": True} if format == "WEBP" else {"quality": 95, "subsampling": 0} if format == "JPEG" else {}
    data = encoded(two_halves(), format, exif=exif(orientation), **lossless)
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(two_halves(), "PNG", exif=exif(orientation)))))
    image = decode(data)
    assert image.size == size(data) == reference.size
    difference = np.abs(np.asarray(image, int) - np.asarray(reference.convert("RGB"), int))
    assert difference.max() <= (25 if format == "JPEG" else 0)
    assert ImageOps.exif_transpose(image).size == image.size, "no orientation may be left to apply again"


@pytest.mark.parametrize(
    ("name", "image", "format", "expected"),
    [
        ("1-bit", Image.new("1", (4, 4), 1), "PNG", (255, 255, 255)),
        ("grey", Image.new("L", (4, 4), 90), "PNG", (90, 90, 90)),
        ("grey with alpha", Image.new("LA", (4, 4), (90, 0)), "PNG", (255, 255, 255)),
        ("half transparent", Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG", (127, 127, 127)),
        ("opaque", Image.new("RGBA", (4, 4), (1, 2, 3, 255)), "PNG", (1, 2, 3)),
        ("palette", Image.new("RGB", (4, 4), (10, 200, 30)).quantize(2), "PNG", (10, 200, 30)),
        ("CMYK", Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF", (255, 0, 0)),
        ("16-bit", Image.fromarray(np.full((4, 4), 65535 // 2, np.uint16)), "PNG", (127, 127, 127)),
        ("16-bit TIFF", Image.fromarray(np.full((4, 4), 257 * 9, np.uint16)), "TIFF", (9, 9, 9)),
        ("float 0..1", Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF", (128, 128, 128)),
        ("not a number", Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF", (0, 0, 0)),
    ],
)
def test_modes_become_rgb(name: str, image: Image.Image, format: str, expected: tuple[int, int, int]) -> None:
    result = decode(encoded(image, format))
    assert result.mode == "RGB"
    assert result.getpixel((1, 1)) == expected


def test_16_bit_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16)[None].repeat(3, 0)
    grey = np.asarray(decode(encoded(Image.fromarray(ramp), "PNG")))[0, :, 0].astype(int)
    assert (np.diff(grey) >= 0).all()
    assert len(set(grey)) == 256


def test_wide_integers_are_stretched() -> None:
    values = np.array([[-100_000, 0, 100_000]], np.int32)
    assert [p[0] for p in decode(encoded(Image.fromarray(values), "TIFF")).get_flattened_data()] == [0, 128, 255]


def test_transparent_palette_and_first_frame() -> None:
    frames = [two_halves(), Image.new("RGB", (24, 16), (0, 255, 0))]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(gif).getpixel((20, 10)) == BLUE
    clear = Image.new("P", (4, 4), 0)
    assert decode(encoded(clear, "PNG", transparency=0)).getpixel((0, 0)) == (255, 255, 255)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header claims more pixels than it has data for."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [11_000, 60_000])
def test_bombs_are_refused_from_the_header_without_a_warning(side: int) -> None:
    with (
        warnings.catch_warnings(record=True) as said,
        pytest.raises(BadImage, match=rf"too large.*100,000,000 pixels; received {side} x {side}\. Shrink it\.$"),
    ):
        decode(bomb(side, side))
    assert said == []


def test_limit_is_the_callers() -> None:
    data = encoded(two_halves(), "PNG")
    with pytest.raises(BadImage, match="at most 100 pixels"):
        decode(data, max_pixels=100)
    with pytest.raises(BadImage, match="at most 100 pixels"):
        size(data, max_pixels=100)
    assert size(bomb(20_000, 10_000), max_pixels=200_000_000) == (20_000, 10_000)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_truncated_files_are_named(tmp_path: Path, format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    path = tmp_path / f"cut.{format.lower()}"
    path.write_bytes(encoded(noise, format)[:-900])
    with pytest.raises(BadImage, match=rf"cut\.{format.lower()}.*damaged or cut short"):
        decode(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"<html>not found</html>", "is not an image.*<html>"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "is not an image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "is not an image|damaged"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "thing.jpg"
    path.write_bytes(content)
    for read in (decode, size):
        with pytest.raises(BadImage, match=rf"(?s)thing\.jpg.*({message})|({message})"):
            read(path)
    with pytest.raises(BadImage, match=f"image of {len(content)} bytes"):
        decode(content)


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match=r"gone\.jpg cannot be read: No such file"):
        decode(tmp_path / "gone.jpg")
    with pytest.raises(BadImage, match="cannot be read"):
        decode(tmp_path)


@pytest.mark.parametrize("min_side", [1, 30, 60, 61, 119, 120, 239, 240, 1000])
def test_min_side_shrinks_jpegs_but_never_below(min_side: int) -> None:
    data = encoded(Image.new("RGB", (321, 240), RED), "JPEG")
    width, height = decode(data, min_side=min_side).size
    assert min(width, height) >= min(min_side, 240)
    assert abs(width / height - 321 / 240) < 0.03
    if min_side <= 120:
        assert height <= 120


def test_min_side_and_orientation_go_together() -> None:
    data = encoded(Image.new("RGB", (320, 160), RED), "JPEG", exif=exif(6))
    assert decode(data, min_side=40).size == (40, 80)


def test_find_images(tmp_path: Path) -> None:
    for name in ["b.JPG", "a/2.png", "a/1.webp", ".hidden.jpg", ".cache/x.jpg", "__MACOSX/y.jpg", "notes.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    os.symlink(tmp_path, tmp_path / "a" / "loop")
    assert [p.relative_to(tmp_path).as_posix() for p in find_images(tmp_path)] == ["a/1.webp", "a/2.png", "b.JPG"]
    assert find_images(tmp_path / "b.JPG") == [tmp_path / "b.JPG"]
    with pytest.raises(BadInput, match="does not exist"):
        find_images(tmp_path / "nowhere")


def test_content_hash(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert content_hash(tmp_path / "a").startswith("ba7816bf")
    with pytest.raises(BadImage, match="b cannot be read"):
        content_hash(tmp_path / "b")
