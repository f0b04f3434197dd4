"""Decoding images from anyone, safely: bounded, upright, RGB, or an error that names the file."""

from __future__ import annotations

import io
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from foveal.artifacts import file_hash
from foveal.errors import BadImage, BadInput

if TYPE_CHECKING:
    from PIL.Image import Image

# Formats with pure decoders only: EPS would start Ghostscript, others are not photographs.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "JPEG2000")
_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".jp2")
SUFFIXES = frozenset(
    (*_JPEG, ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".avif")
)
MAX_PIXELS = 100_000_000
PAPER = (255, 255, 255)  # what transparent pixels are laid over


def decode(source: Path | str | bytes, *, max_pixels: int = MAX_PIXELS, min_side: int | None = None) -> Image:
    """The first frame of an image file or of encoded bytes, as upright 8-bit RGB.

    16-bit and float images are scaled, not clipped; transparency is laid over white. The size is checked in the header
    before any pixel is decoded. With `min_side` a JPEG may come back at 1/2, 1/4 or 1/8 of its size (several times
    faster), its shorter side never below `min_side`.

    Raises:
        BadImage: not an image of a known format, truncated, too large, missing or unreadable; names the file.
    """
    with _opened(source, max_pixels) as image:
        orientation = _orientation(image)
        if min_side is not None and image.format in ("JPEG", "MPO") and 0 < min_side < min(image.size):
            image.draft(None, (min_side, min_side))  # the largest scale that leaves both sides at least this long
        image.load()
        return _upright(_to_rgb(image), orientation)


def size(source: Path | str | bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) of the upright image, read from the header alone; raises as `decode`."""
    with _opened(source, max_pixels) as image:
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height)


def format_of(source: Path | str | bytes, *, max_pixels: int = MAX_PIXELS) -> str:
    """Which of `FORMATS` (or MPO, JPEGs in one file) an image has, by its header; raises as `decode`."""
    with _opened(source, max_pixels) as image:
        return str(image.format)


def find_images(folder: Path) -> list[Path]:
    """Every image below `folder` by file name ending, sorted; hidden files and folders are passed over.

    Raises:
        BadInput: `folder` does not exist.
    """
    folder = Path(folder)
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise BadInput(f"folder {folder} does not exist", expected="a folder of images", remedy="Check the path.")
    found: list[Path] = []
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        found.extend(
            Path(root, name)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
        )
    return sorted(found, key=lambda path: path.as_posix())


def content_hash(path: Path) -> str:
    """sha256 hex of a file's bytes.

    Raises:
        BadImage: the file cannot be read.
    """
    try:
        return file_hash(Path(path))
    except OSError as error:
        raise BadImage(f"{_shown(path)} cannot be read: {error.strerror}") from error


@contextmanager
def _opened(source: Path | str | bytes, max_pixels: int) -> Generator[Image]:
    """The image with only its header read; whatever a decoder raises inside the block becomes BadImage."""
    from PIL import Image as pillow
    from PIL import UnidentifiedImageError

    name = f"image of {len(source)} bytes" if isinstance(source, bytes) else _shown(source)
    if pillow.MAX_IMAGE_PIXELS is not None and max_pixels > pillow.MAX_IMAGE_PIXELS:
        pillow.MAX_IMAGE_PIXELS = max_pixels  # its process-wide guard may not be stricter than the caller's own
    try:
        with (
            io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as stream,
            pillow.open(stream, formats=FORMATS) as image,
        ):
            width, height = image.size
            if width * height > max_pixels:
                raise _too_large(name, f"{width} x {height}", max_pixels)
            yield image
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage(
            f"{name} is not an image", expected=f"one of {', '.join(FORMATS)}", received=_first_bytes(source)
        ) from error
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise _too_large(name, "more", max_pixels) from error
    except MemoryError as error:
        raise BadImage(f"{name} does not fit into memory") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ValueError, zlib.error, ...
        if isinstance(error, OSError) and error.errno is not None:  # the system's; a decoder's own has no number
            raise BadImage(f"{name} cannot be read: {error.strerror}") from error
        detail = " ".join(str(error).split()) or type(error).__name__
        raise BadImage(
            f"{name} is damaged or cut short: {detail}", remedy="Copy it again from its source, or leave it out."
        ) from error


def _shown(path: Path | str) -> str:
    """The path, its middle left out where it is longer than a line or two can hold."""
    name = str(path)
    return name if len(name) <= 400 else f"{name[:200]}...{name[-197:]}"


def _too_large(name: str, received: str, max_pixels: int) -> BadImage:
    return BadImage(
        f"{name} is too large",
        expected=f"at most {max_pixels:,} pixels",
        received=received,
        remedy="Shrink it.",
    )


def _first_bytes(source: Path | str | bytes) -> str:
    if isinstance(source, bytes):
        head = source[:12]
    else:
        with Path(source).open("rb") as stream:
            head = stream.read(12)
    return f"a file that begins with {head!r}" if head else "an empty file"


def _orientation(image: Image) -> int:
    """EXIF orientation 1..8, as far as the header before the pixels tells; damaged EXIF counts as upright."""
    from PIL import ExifTags
    from PIL import Image as pillow

    if image.format == "TIFF":  # Pillow turns TIFF upright itself, and reports the turned size
        return 1
    if image.format == "PNG" and not {"exif", "Raw profile type exif", "XML:com.adobe.xmp"} & image.info.keys():
        return 1
    try:
        # PNG's own getexif would decode every pixel to look for EXIF after them.
        value = pillow.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(image: Image, orientation: int) -> Image:
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def _to_rgb(image: Image) -> Image:
    from PIL import Image as pillow

    if image.mode.startswith(("I", "F")):
        image = _eight_bit(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        if image.mode in ("La", "RGBa"):
            image = image.convert(image.mode.upper())
        colour = image.convert("RGBA")
        paper = pillow.new("RGB", image.size, PAPER)
        paper.paste(colour, mask=colour.getchannel("A"))
        return paper
    plain = image.convert("RGB")
    plain.info.clear()  # an EXIF orientation left here would be applied once more downstream
    return plain


def _eight_bit(image: Image) -> Image:
    """A 16-bit, 32-bit or float image scaled to 8-bit grey over its nominal range, so that no two files differ in it.

    Integers in 0..65535 are taken as 16-bit, floats in 0..1 or 0..255 as such; other ranges are stretched.
    """
    import numpy as np
    from PIL import Image as pillow

    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 65535:
        scaled = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    elif image.mode == "F" and high <= 255:
        scaled = values * 255 if high <= 1 else values
    else:
        scaled = values / 257
    return pillow.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))
