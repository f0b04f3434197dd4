"""Real files of every odd kind, by every way in which a picture comes to the server."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageCms

from tests.serve.conftest import COLOURS, FLOOR, draw
from tests.serve.everything import LIMITS, WAYS, Way, check, everything, scene

SCENE = draw(("red", (4, 6, 20, 30)), ("blue", (30, 10, 60, 40)))
FOUND = {("red", (4, 6, 20, 30)), ("blue", (30, 10, 60, 40))}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with TestClient(everything(tmp_path_factory.mktemp("odd")), raise_server_exceptions=False) as client:
        yield client


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", scene())
    return file.getvalue()


def transparent_palette() -> Image.Image:
    """Eight-bit, with a palette, the floor of it see-through."""
    image = SCENE.quantize(8)
    image.info["transparency"] = image.getpixel((0, 0))
    return image


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    return saved(SCENE.transpose(back[orientation]), "PNG", exif=exif)


def sixteen_bit() -> bytes:
    return saved(Image.fromarray(np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)), "PNG")


def with_profile() -> bytes:
    return saved(SCENE, "PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())


def with_long_text() -> bytes:
    """A PNG of a few bytes whose comment unpacks to 50 MB."""
    text = b"comment\0\0" + zlib.compress(b" " * 50_000_000, 9)
    return png_of(8, 8, chunk(b"zTXt", text), chunk(b"IDAT", zlib.compress((b"\0" + bytes(24)) * 8)))


others = [Image.new("RGB", (64, 48), COLOURS["green"]) for _ in range(3)]
# Files that show SCENE, pixel for pixel or nearly so; of many frames the first counts.
PLAIN: dict[str, Callable[[], bytes]] = {
    "PNG": scene,
    "PNG with a palette": lambda: saved(SCENE.quantize(8), "PNG"),
    "with alpha": lambda: saved(SCENE.convert("RGBA"), "PNG"),
    "with a colour profile": with_profile,
    "GIF": lambda: saved(SCENE, "GIF"),
    "animated GIF": lambda: saved(SCENE, "GIF", save_all=True, append_images=others, duration=50),
    "animated PNG": lambda: saved(SCENE, "PNG", save_all=True, append_images=others),
    "animated WebP": lambda: saved(SCENE, "WEBP", lossless=True, save_all=True, append_images=others),
    "WebP": lambda: saved(SCENE, "WEBP", lossless=True),
    "BMP": lambda: saved(SCENE, "BMP"),
    "PPM": lambda: saved(SCENE, "PPM"),
    "TIFF": lambda: saved(SCENE, "TIFF"),
    "TIFF of many pages": lambda: saved(SCENE, "TIFF", save_all=True, append_images=others),
    "TIFF packed": lambda: saved(SCENE, "TIFF", compression="tiff_lzw"),
    "JPEG 2000": lambda: saved(SCENE, "JPEG2000"),
    "JPEG": lambda: saved(SCENE, "JPEG", quality=100, subsampling=0),
    "progressive JPEG": lambda: saved(SCENE, "JPEG", quality=100, subsampling=0, progressive=True),
    "CMYK JPEG": lambda: saved(SCENE.convert("CMYK"), "JPEG", quality=100),
    "AVIF": lambda: saved(SCENE, "AVIF", quality=100, subsampling="4:4:4"),
    "upside down": lambda: turned(3),
    "on its side": lambda: turned(6),
    "on its other side": lambda: turned(8),
    "followed by rubbish": lambda: scene() + b"\0rubbish" * 100,
}
# Files that are pictures, of something else.
OTHER: dict[str, Callable[[], bytes]] = {
    "16-bit PNG": sixteen_bit,
    "transparent palette": lambda: saved(transparent_palette(), "PNG", transparency=0),
    "black and white": lambda: saved(SCENE.convert("1"), "PNG"),
    "grey JPEG": lambda: saved(SCENE.convert("L"), "JPEG"),
    "grey with alpha": lambda: saved(SCENE.convert("LA"), "PNG"),
    "floating TIFF": lambda: saved(SCENE.convert("F"), "TIFF"),
    "32-bit TIFF": lambda: saved(SCENE.convert("I"), "TIFF"),
    "TIFF with JPEG inside": lambda: saved(SCENE, "TIFF", compression="jpeg"),
    "LAB TIFF": lambda: saved(SCENE.convert("LAB"), "TIFF"),
    "4 x 4": lambda: saved(Image.new("RGB", (4, 4), FLOOR), "PNG"),
    "4 x 20000": lambda: saved(Image.new("RGB", (4, 20_000), FLOOR), "PNG"),
}
# Files that nobody can read.
BROKEN: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "one byte": lambda: b"\xff",
    "only the start of a PNG": lambda: b"\x89PNG\r\n\x1a\n",
    "cut PNG": lambda: scene()[: len(scene()) // 2],
    "cut JPEG": lambda: saved(SCENE, "JPEG")[:400],
    "cut GIF": lambda: saved(SCENE, "GIF")[:-40],
    "cut TIFF": lambda: saved(SCENE, "TIFF")[:300],
    "cut WebP": lambda: saved(SCENE, "WEBP")[:60],
    "PNG of zero width": lambda: png_of(0, 8, chunk(b"IDAT", zlib.compress(b"\0"))),
    "PNG without pixels": lambda: png_of(8, 8),
    "PNG with a wrong checksum": lambda: scene()[:40] + b"\0\0\0\0" + scene()[44:],
    "PNG with a long text": with_long_text,
    "SVG": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1/a.png"/></svg>',
    "zip": zipped,
    "text": lambda: b"this is no picture\n" * 20,
    "web page": lambda: b"<!doctype html><title>404</title>",
    "PostScript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(a) run\n",
    "PDF": lambda: saved(SCENE, "PDF"),
    "icon": lambda: saved(SCENE, "ICO"),
    "zeros": lambda: bytes(10_000),
}
BOMBS: dict[str, Callable[[], bytes]] = {
    "wide PNG": lambda: png_of(2_000_000_000, 2, chunk(b"IDAT", zlib.compress(bytes(100)))),
    "square PNG": lambda: png_of(60_000, 60_000, chunk(b"IDAT", zlib.compress(bytes(100)))),
    "GIF of a large canvas": lambda: b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + saved(SCENE, "GIF")[10:],
    "real": lambda: saved(Image.new("RGB", (1500, 1500)), "PNG"),
}
ways = pytest.mark.parametrize("way", WAYS, ids=str)


@ways
def test_odd_pictures_are_read(server: TestClient, way: Way) -> None:
    for name, made in (PLAIN | OTHER).items():
        answer = way.send(server, made())
        check(answer)
        assert answer.status_code in (200, 201), f"{name}: {answer.text}"


@ways
def test_what_is_no_picture_is_explained(server: TestClient, way: Way) -> None:
    for name, made in BROKEN.items():
        if name == "empty" and way.body is not None and way.path not in ("/label-studio/predict", "/v1/prelabel"):
            continue  # an empty text is no image at all
        answer = way.send(server, made(), "photo.jpg")
        check(answer)
        assert answer.status_code == 422, f"{name}: {answer.status_code} {answer.text}"


@ways
def test_bombs_are_refused_by_their_headers(server: TestClient, way: Way) -> None:
    for name, made in BOMBS.items():
        answer = way.send(server, made())
        check(answer)
        assert answer.status_code == 413, f"{name}: {answer.status_code} {answer.text}"
        assert f"{LIMITS.pixels:,} pixels" in answer.text


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_read_is_what_was_drawn(server: TestClient, name: str) -> None:
    answer = server.post("/v1/detect", files={"image": ("a", PLAIN[name]())}).json()
    found = {(one["label"], tuple(one["box"])) for one in answer["detections"]}
    assert (answer["width"], answer["height"]) == (64, 48)
    assert found == FOUND


def test_every_kind_of_file_can_be_kept(server: TestClient) -> None:
    for made in PLAIN.values():
        (item,) = server.post("/v1/items", files={"image": ("a", made())}).json()["items"]
        shown = server.get(f"/v1/items/{item['id']}/image")
        assert shown.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(shown.content)).size == (64, 48)
