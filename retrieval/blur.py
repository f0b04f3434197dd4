"""Pictures made safe to keep: what a detector finds is made unrecognisable before anything of a picture is stored.

Of each place nine cells remain, fewer of a small one: as large as the place is, without colour, each one of four greys.
These are 18 bits at most, whatever the size of the place, so that no face or number can be told from them. A mosaic of
finer cells that keeps its colours can be matched against guesses (arXiv 1609.00408).
"""

from __future__ import annotations

import io
import json
import logging
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, cast

from foveal.detections import Detections
from foveal.errors import BadImage, BadInput, UnknownName
from foveal.images import decode, format_of
from foveal.models import Detector, OpenDetector, load_detector, load_open_detector
from retrieval.facts import camera_facts

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("foveal.blur")
THRESHOLD = 0.2  # low: a box too many costs little, a face too many does not
LARGER = 1.1  # times a box's sides: detectors cut edges short
CELLS = 3  # a side of what remains of a place
LEAST = 4  # pixels a side of a cell
LEVELS = 4  # greys
# What the metadata of a picture say: how many places, by which model, what was looked for, and where it is blurred.
PLACES, BY, WHAT, WHERE = "blurred", "blurred_by", "blurred_what", "blurred_in"
FILE, COPY = "file", "copy"  # WHERE: in the stored file itself, or only in what the archive made of somebody's file
Value = str | int | float


class NotBlurred(BadImage):
    """A picture in which the detector could not look for what must not be seen, so that it may not be kept."""


class Blur:
    """Makes unrecognisable what a detector finds; may be called from many threads.

    Args:
        classes: of a detector with fixed classes, those that are blurred; None: all.
        prompts: what an open-vocabulary detector looks for.
        threshold: score from which a box is blurred.

    Raises:
        UnknownName: the detector has no such class.
        BadInput: prompts and the kind of detector do not fit, or the threshold lies outside [0, 1].
    """

    def __init__(
        self,
        detector: Detector | OpenDetector,
        *,
        classes: Sequence[str] | None = None,
        prompts: Sequence[str] | None = None,
        threshold: float = THRESHOLD,
    ) -> None:
        known: tuple[str, ...] | None = getattr(detector, "classes", None)
        if (known is None) != (prompts is not None) or (prompts is not None and classes is not None):
            raise BadInput(
                f"{detector.name} cannot be told what to blur like that",
                expected="prompts of a detector that takes classes as text, or classes of any other",
            )
        for name in classes or ():
            if name not in (known or ()):
                raise UnknownName("class to blur", name, known or ())
        if not 0 <= threshold <= 1:
            raise BadInput("the threshold lies outside its range", expected="0 to 1", received=f"{threshold:g}")
        self._detector, self._prompts, self._threshold = detector, prompts, threshold
        self._wanted = frozenset(classes or prompts or known or ())
        what = "; ".join(classes or prompts or known or ())
        self._told: dict[str, Value] = {BY: detector.fingerprint, WHAT: f"{what} from {threshold:g}"}
        self._lock = Lock()

    @property
    def seal(self) -> str:
        """Another one for another model, other classes or another threshold."""
        return json.dumps(self._told, sort_keys=True)

    def made(self, metadata: Mapping[str, Value]) -> bool:
        """Whether metadata say that this very blur, with these settings, was applied."""
        return all(metadata.get(key) == value for key, value in self._told.items())

    def __call__(self, image: Image) -> tuple[Image, dict[str, Value]]:
        """(an upright RGB picture without what was found, what its metadata say of that); the given one stays.

        Raises:
            NotBlurred: the detector failed.
        """
        try:
            found = self._found(image)
            boxes = [box for box, name in zip(found.boxes.tolist(), found.label_names, strict=True) if self._is(name)]
            places = [_enlarged(box, image.width, image.height) for box in boxes]
        except Exception as error:  # a detector may fail in any way, and then nothing is known of the picture
            log.warning("a picture was not blurred: %r", error)
            raise NotBlurred(
                "the picture could not be blurred, and is not taken in",
                received=type(error).__name__,
                remedy="Try it again, or with another --blur.",
            ) from error
        hidden = image.copy()
        for place in places:
            hidden.paste(_mosaic(image.crop(place)), place)
        return hidden, {PLACES: len(places), **self._told, WHERE: COPY}

    def file(self, data: bytes, max_pixels: int) -> tuple[bytes, dict[str, Value]]:
        """(the file of a picture blurred and without EXIF, what its metadata say); raises as `decode`, and NotBlurred.

        A JPEG stays one; all else, and of several frames the first, becomes a PNG. Of EXIF the time is told.
        """
        image, facts = self(decode(data, max_pixels=max_pixels))
        buffer = io.BytesIO()
        if format_of(data, max_pixels=max_pixels) in ("JPEG", "MPO"):
            image.save(buffer, "JPEG", quality=95, subsampling=0)
        else:
            image.save(buffer, "PNG")
        taken = {key: value for key, value in camera_facts(data).items() if key == "taken_at"}
        return buffer.getvalue(), {**taken, **facts, WHERE: FILE}

    def _found(self, image: Image) -> Detections:
        with self._lock:
            if self._prompts is None:
                return cast(Detector, self._detector).detect([image], self._threshold)[0]
            return cast(OpenDetector, self._detector).detect([image], self._prompts, self._threshold)[0]

    def _is(self, name: str) -> bool:
        return name in self._wanted


def load_blur(
    ref: str | None, prompts: str | None = None, threshold: float = THRESHOLD, registry: Path | None = None
) -> Blur | None:
    """The blur that `--blur REF[:class,class]` means, tried once on an empty picture; None without one.

    Args:
        prompts: what an open-vocabulary detector looks for, separated by commas.

    Raises:
        UnknownName, BadInput, IntegrityError: as `load_detector` and `Blur`.
        NotBlurred: the detector does not work.
    """
    from PIL import Image as pillow

    if ref is None:
        if prompts is not None:
            raise BadInput("--blur-prompts says what --blur looks for", remedy="Add --blur REF.")
        return None
    if prompts is not None:
        texts = [text.strip() for text in prompts.split(",") if text.strip()]
        blur = Blur(load_open_detector(ref), prompts=texts, threshold=threshold)
    else:
        head, _, tail = ref.rpartition(":")
        name, classes = (head, [one.strip() for one in tail.split(",")]) if ":" in head else (ref, None)
        if name.startswith(("hf:", "bundled:")):
            raise BadInput(f"{name} takes its classes as text", remedy='Add --blur-prompts "a face,a number plate".')
        blur = Blur(load_detector(name, registry), classes=classes, threshold=threshold)
    blur(pillow.new("RGB", (64, 64)))
    return blur


def kept(metadata: Mapping[str, Value]) -> dict[str, Value]:
    """Those metadata that say how a picture was blurred."""
    return {key: metadata[key] for key in (PLACES, BY, WHAT, WHERE) if key in metadata}


def mark(metadata: Mapping[str, Value]) -> str:
    """Another text for another blur of the same file; empty where there is none."""
    return f"{zlib.crc32(json.dumps(kept(metadata), sort_keys=True).encode()):08x}" if BY in metadata else ""


def secret(metadata: Mapping[str, Value]) -> bool:
    """Whether the file of an item shows what its archive has blurred, so that nobody may be shown the file."""
    return BY in metadata and metadata.get(WHERE) != FILE


def open_file(path: Path | None, metadata: Mapping[str, Value]) -> Path | None:
    """The file of an item where it is one that may be shown."""
    return None if secret(metadata) else path


def _enlarged(box: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
    """A box (xyxy pixels) enlarged, in whole pixels, within the picture; ValueError when it is none."""
    x1, y1, x2, y2 = box
    more_x, more_y = (x2 - x1) * (LARGER - 1) / 2, (y2 - y1) * (LARGER - 1) / 2
    left, top = max(0, math.floor(x1 - more_x)), max(0, math.floor(y1 - more_y))
    right, bottom = min(width, math.ceil(x2 + more_x)), min(height, math.ceil(y2 + more_y))
    if right <= left or bottom <= top:
        raise ValueError(f"a box without area in the picture: {box}")
    return left, top, right, bottom


def _mosaic(part: Image) -> Image:
    from PIL.Image import Resampling

    across, down = (max(1, min(CELLS, side // LEAST)) for side in part.size)
    step = 256 // LEVELS
    cells = part.convert("L").resize((across, down), Resampling.BOX)
    greys = cells.point([grey // step * step + step // 2 for grey in range(256)])
    return greys.resize(part.size, Resampling.NEAREST).convert("RGB")
