"""What is looked for: parts to be like or unlike, words to match, a filter, and how hits are arranged.

Shape letters: P parts of a query, D embedding dimensions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.zero_shot import class_embeddings
from foveal.detections import FloatArray
from foveal.errors import BadInput
from foveal.images import decode
from foveal.models import Encoder, PreparingEncoder

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_K = 10_000
MAX_POOL = 1_000  # candidates that are arranged anew where the order is not that of similarity alone
MAX_TEXT = 10_000  # characters
MAX_PARTS = 64
MAX_WEIGHT = 100.0
MIN_SIDE = 1024  # twice what the largest usual encoder sees
MIN_CROP = 4  # pixels

# Rocchio's weights as in Manning, Raghavan and Schuetze, Introduction to Information Retrieval (2008), section 9.1.1.
LIKED, DISLIKED = 0.75, 0.15


@dataclass(frozen=True, slots=True)
class Part:
    """One thing to be like, or with a negative weight unlike: exactly one of a text, an image and an archived item.

    Raises:
        BadInput: on construction, when it is none or several of these, or a number lies outside its range.
    """

    text: str | None = None
    image: Image | Path | str | None = None  # pixels, or a file
    id: str | None = None  # of an image in the archive, by its stored vector
    box: tuple[float, float, float, float] | None = None  # the crop of `image` that is meant, xyxy pixels
    weight: float = 1.0

    def __post_init__(self) -> None:
        given = [name for name in ("text", "image", "id") if getattr(self, name) is not None]
        if len(given) != 1:
            raise BadInput(
                "a part of a query is one thing", expected="text, image or id", received=" and ".join(given) or "none"
            )
        if self.text is not None and not (self.text.strip() and len(self.text) <= MAX_TEXT):
            raise BadInput(
                "a text of the query is empty or too long",
                expected=f"1 to {MAX_TEXT} characters",
                received=str(len(self.text)),
            )
        if not (math.isfinite(self.weight) and 0 < abs(self.weight) <= MAX_WEIGHT):
            raise BadInput(
                "the weight of a part lies outside its range",
                expected=f"up to {MAX_WEIGHT:g} either side of 0, not 0",
                received=f"{self.weight:g}",
            )
        if self.box is not None and self.image is None:
            raise BadInput("only an image can be cropped", remedy="Give the item's image instead of its id or text.")

    @property
    def name(self) -> str:
        """How an explanation calls it."""
        if self.text is not None:
            what = f"text {self.text if len(self.text) <= 80 else self.text[:77] + '...'!r}"
        elif self.id is not None:
            what = f"item {self.id}"
        else:
            what = "image" if self.box is None else "crop"
            what += f" {Path(self.image).name}" if isinstance(self.image, (str, Path)) else ""
        return what if self.weight > 0 else f"not {what}"

    def pixels(self, min_side: int) -> Image:
        """The upright image, or the crop of it.

        Raises:
            BadImage: it cannot be decoded.
            BadInput: less than `MIN_CROP` pixels of the crop lie inside it.
        """
        assert self.image is not None
        # A crop is in the file's own pixels: decoding at a lower scale would move it.
        scale = min_side if self.box is None else None
        image = decode(self.image, min_side=scale) if isinstance(self.image, (str, Path)) else self.image
        if self.box is None:
            return image
        inside = (
            max(0, self.box[0]),
            max(0, self.box[1]),
            min(image.width, self.box[2]),
            min(image.height, self.box[3]),
        )
        if not all(map(math.isfinite, self.box)) or min(inside[2] - inside[0], inside[3] - inside[1]) < MIN_CROP:
            raise BadInput(
                "the crop does not lie in its image",
                expected=f"x1, y1, x2, y2 with {MIN_CROP} pixels or more inside {image.width} x {image.height}",
                received=", ".join(f"{edge:g}" for edge in self.box),
            )
        return image.crop((round(inside[0]), round(inside[1]), round(inside[2]), round(inside[3])))


@dataclass(frozen=True, slots=True)
class Collapse:
    """What counts as the same picture twice; of each group only the best is shown."""

    cosine: float | None = 0.98  # of two stored vectors, from which on they are the same; None: never by vector
    bits: int | None = 4  # of 64 by which two perceptual hashes differ at most; None: never by hash

    def __post_init__(self) -> None:
        if not ((self.cosine is None or 0 < self.cosine <= 1) and (self.bits is None or 0 <= self.bits <= 32)):
            raise BadInput(
                "near-duplicates are not defined so",
                expected="a cosine in (0, 1] and 0 to 32 bits",
                received=f"{self.cosine} and {self.bits}",
            )


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """A query by text, image or both, minus a negative text, and by any further `parts`.

    Raises:
        BadInput: on construction, when there is nothing to look for or a number lies outside its range.
    """

    text: str | None = None
    image: Image | Path | str | None = None  # pixels, or a file
    negative: str | None = None
    filter: str | None = None  # over metadata columns, e.g. camera = 'north' AND hour >= 18: see retrieval/filters.py
    k: int = 10
    image_weight: float = 0.5  # of an image beside a text, [0, 1]
    negative_weight: float = 0.5  # of the negative text against the rest, [0, 1]
    parts: tuple[Part, ...] = ()
    words: str | None = None  # to match in names, captions and other texts; ranked together with similarity
    templates: tuple[str, ...] = ()  # each text is the mean over these, e.g. "a photo of a {}"
    collapse: Collapse | None = None
    diversity: float = 0.0  # [0, 1): how much a hit should differ from those before it, against how well it fits
    cursor: str | None = None  # of the page before
    anyway: bool = False  # hits even where nothing matches

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MAX_K:
            raise BadInput("k lies outside its range", expected=f"1 to {MAX_K}", received=str(self.k))
        if self.rearranged and self.k > MAX_POOL:
            raise BadInput(
                "k lies outside the range of a query with words or diversity",
                expected=f"1 to {MAX_POOL}",
                received=str(self.k),
            )
        for name in ("image_weight", "negative_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(f"{name} lies outside its range", expected="[0, 1]", received=f"{getattr(self, name):g}")
        if not 0 <= self.diversity < 1:
            raise BadInput("diversity lies outside its range", expected="[0, 1)", received=f"{self.diversity:g}")
        if self.words is not None and not (self.words.strip() and len(self.words) <= MAX_TEXT):
            raise BadInput(
                "the words are empty or too long",
                expected=f"1 to {MAX_TEXT} characters",
                received=str(len(self.words)),
            )
        for name, text in (("text", self.text), ("negative text", self.negative)):
            if text is not None and not (text.strip() and len(text) <= MAX_TEXT):
                raise BadInput(
                    f"the {name} is empty or too long", expected=f"1 to {MAX_TEXT} characters", received=str(len(text))
                )
        wanted = self.all_parts
        if len(wanted) > MAX_PARTS:
            raise BadInput("the query has too many parts", expected=f"at most {MAX_PARTS}", received=str(len(wanted)))
        if self.words is None and not any(part.weight > 0 for part in wanted):
            raise BadInput(
                "the query has neither text nor image",
                expected="something to be like, or words to match",
                remedy="Pass --text, --image, --id or --words, or several of them.",
            )

    @property
    def rearranged(self) -> bool:
        """Whether hits come in another order than that of their similarity."""
        return self.words is not None or self.diversity > 0

    @property
    def all_parts(self) -> tuple[Part, ...]:
        """Everything to be like or unlike, those of weight 0 left out."""
        both = self.text is not None and self.image is not None
        found: list[Part] = []
        if self.text is not None and (not both or self.image_weight < 1):
            found.append(Part(text=self.text, weight=1 - self.image_weight if both else 1.0))
        if self.image is not None and (not both or self.image_weight > 0):
            found.append(Part(image=self.image, weight=self.image_weight if both else 1.0))
        if self.negative is not None and self.negative_weight > 0:
            found.append(Part(text=self.negative, weight=-self.negative_weight))
        return (*found, *self.parts)

    def refined(self, liked: Iterable[str] = (), disliked: Iterable[str] = ()) -> SearchQuery:
        """The query moved towards the images (ids) that a user liked and away from the others.

        Rocchio's relevance feedback: q + 0.75 mean(liked) - 0.15 mean(disliked), as weighted parts of the query.
        """
        near, far = tuple(dict.fromkeys(liked)), tuple(dict.fromkeys(disliked))
        size = sum(part.weight for part in self.all_parts if part.weight > 0) or 1.0
        added = [Part(id=id, weight=LIKED * size / len(near)) for id in near]
        added += [Part(id=id, weight=-DISLIKED * size / len(far)) for id in far]
        return replace(self, parts=(*self.parts, *added), cursor=None)

    def encoded(self, encoder: Encoder) -> EncodedQuery:
        """The query with its texts and images embedded; its items wait for the archive.

        Raises:
            BadImage: an image cannot be decoded.
            BadInput: a crop lies outside its image, or a template is none.
        """
        return encode_together([self], encoder)[0]

    def vector(self, encoder: Encoder) -> FloatArray:
        """The query as one unit vector (D,); raises as `encoded`, and BadInput when a part is an archived item."""
        return self.encoded(encoder).composed(_no_items)[0]

    @property
    def parts_to_encode(self) -> tuple[Part, ...]:
        """`all_parts`; for words alone also what they mean, which hits are then compared with."""
        parts = self.all_parts
        return parts if any(part.weight > 0 for part in parts) else (Part(text=self.words), *parts)


@dataclass(frozen=True, slots=True)
class EncodedQuery:
    """A query whose texts and images have met the encoder."""

    query: SearchQuery
    parts: tuple[Part, ...]
    vectors: tuple[FloatArray | None, ...]  # (D,) unit length, one a part; None for an item of the archive
    fingerprint: str  # of the encoder
    digest: str  # equal for queries that ask for the same, whatever their k and cursor

    def composed(self, items: Callable[[Sequence[str]], Sequence[FloatArray]]) -> tuple[FloatArray, FloatArray]:
        """The query as one unit vector (D,), and each part's share of it (P, D), which add up to it.

        Args:
            items: the stored unit vectors of archived images by id.

        Raises:
            BadInput: the parts cancel each other out, or an item is not in the archive.
        """
        stored = iter(items([part.id for part in self.parts if part.id is not None]))
        units = np.stack([next(stored) if vector is None else vector for vector in self.vectors])
        shares = units * np.array([part.weight for part in self.parts], np.float32)[:, None]
        total = shares.sum(axis=0)
        length = float(np.linalg.norm(total))
        if not np.isfinite(length) or length < 1e-6 * max(1.0, float(np.abs(shares).sum())):
            raise BadInput("the parts of the query cancel each other out", remedy="Change what it should be unlike.")
        return (total / length).astype(np.float32), (shares / length).astype(np.float32)


def encode_together(queries: Sequence[SearchQuery], encoder: Encoder) -> list[EncodedQuery]:
    """`SearchQuery.encoded` of each, their texts and images embedded in one call; raises as that."""
    parts = [query.parts_to_encode for query in queries]
    vectors: list[list[FloatArray | None]] = [[None] * len(mine) for mine in parts]
    texts: dict[tuple[str, ...], list[tuple[int, int, str]]] = {}  # templates -> (query, part, text)
    images: list[tuple[int, int, Image]] = []
    for q, mine in enumerate(parts):
        for p, part in enumerate(mine):
            if part.text is not None:
                texts.setdefault(queries[q].templates, []).append((q, p, part.text))
            elif part.image is not None:
                images.append((q, p, part.pixels(decode_side(encoder))))
    for templates, asked in texts.items():
        words = [text for _, _, text in asked]
        made = class_embeddings(encoder, words, templates) if templates else encoder.encode_texts(words)
        for (q, p, _), vector in zip(asked, made, strict=True):
            vectors[q][p] = vector
    for (q, p, _), vector in zip(images, encoder.encode_images([i for *_, i in images]) if images else (), strict=True):
        vectors[q][p] = vector
    seen = {(q, p): _pixel_hash(image) for q, p, image in images}
    encoded: list[EncodedQuery] = []
    for q, (query, mine) in enumerate(zip(queries, parts, strict=True)):
        what = [(part.text, part.id, part.weight, seen.get((q, p))) for p, part in enumerate(mine)]
        how = (query.filter, query.words, query.templates, query.collapse, query.diversity, query.anyway)
        digest = hashlib.sha256(repr((what, how, encoder.fingerprint)).encode()).hexdigest()[:16]
        encoded.append(EncodedQuery(query, mine, tuple(vectors[q]), encoder.fingerprint, digest))
    return encoded


def decode_side(encoder: Encoder) -> int:
    """Shorter side below which a large JPEG is not shrunk while it is decoded: twice what the encoder sees of it.

    Scaling in the DCT down to that changes the encoder's input by about 0.2 of 255.
    """
    side = encoder.image_side if isinstance(encoder, PreparingEncoder) else None
    return MIN_SIDE if side is None else 2 * side


def _pixel_hash(image: Any) -> str:
    return hashlib.sha256(repr((image.size, image.mode)).encode() + image.tobytes()).hexdigest()


def _no_items(ids: Sequence[str]) -> Sequence[FloatArray]:
    if ids:
        raise BadInput("the query names items of an archive", remedy="Search an archive with it.")
    return ()
