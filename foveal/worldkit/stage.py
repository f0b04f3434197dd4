"""Putting objects into a place: choosing, scaling, standing them up, shadows, and who hides whom."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from foveal.worldkit.camera import Light
from foveal.worldkit.canvas import RGB
from foveal.worldkit.catalogue import KINDS, SHOWN, WHOLE, can_be, phrase
from foveal.worldkit.places import Place, Surface
from foveal.worldkit.room import Point
from foveal.worldkit.scene import Domain, Floats, Image, Mask, WorldObject
from foveal.worldkit.sprites import VARIANTS, sprite

MOST = 8
_COUNTS = (3, 4, 5, 6, 7, 8)
_COUNT_SHARES = (0.14, 0.22, 0.24, 0.20, 0.12, 0.08)
# How often a colour is seen at the site: the same paints, bought in other amounts.
_SITE_PAINT = {"blue": 2.2, "yellow": 2.0, "grey": 1.8, "green": 0.8, "brown": 0.7, "red": 0.5, "orange": 0.5}
_LEAST_VISIBLE = 0.34


@dataclass(frozen=True, slots=True)
class Placed:
    """An object's pixels in the picture. Its patch may hang over the picture's edge."""

    kind: str
    colour: str
    material: str
    state: str
    surface: Surface
    patch: Image  # (h, w, 4) premultiplied RGBA
    left: int
    top: int
    depth: float


@dataclass(frozen=True, slots=True)
class Post:
    """A piece of the place that stands in front of some of the objects."""

    points: list[Point]
    rgb: RGB
    depth: float

    def outline(self, size: int) -> npt.NDArray[np.int32]:
        """Its corners (N, 2) in sixteenths of a pixel of a picture `size` pixels wide, as cv2 wants them."""
        return np.round(np.asarray(self.points, np.float64) * (size / 224 * 16)).astype(np.int32)


def _window(item: Placed, size: int) -> tuple[slice, slice, slice, slice]:
    """Rows and columns in the picture, then in the patch."""
    high, wide = item.patch.shape[:2]
    y0, y1 = max(0, item.top), min(size, item.top + high)
    x0, x1 = max(0, item.left), min(size, item.left + wide)
    return slice(y0, y1), slice(x0, x1), slice(y0 - item.top, y1 - item.top), slice(x0 - item.left, x1 - item.left)


def label(items: list[Placed | Post], size: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Paint depth-sorted items' numbers: (H, W), 0 for the place, i + 1 for items[i]."""
    owner = np.zeros((size, size), np.uint8)
    for number, item in enumerate(items, 1):
        if isinstance(item, Post):
            fixed = item.outline(size)
            cv2.fillPoly(owner, [fixed], 0, cv2.LINE_8, 4)
        else:
            rows, columns, inner_rows, inner_columns = _window(item, size)
            owner[rows, columns][item.patch[inner_rows, inner_columns, 3] > 127] = number
    return owner


def _shape(rng: np.random.Generator, pixels: Image, longer: float) -> Image:
    """Scale a sprite to `longer` pixels, perhaps mirrored, slightly squeezed and turned."""
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    scale = longer / max(pixels.shape[:2])
    wide = max(4, round(pixels.shape[1] * scale * float(rng.uniform(0.9, 1.1))))
    high = max(4, round(pixels.shape[0] * scale))
    small = np.asarray(cv2.resize(np.ascontiguousarray(pixels), (wide, high), interpolation=cv2.INTER_AREA), np.uint8)
    turn = float(rng.normal(0, 2.0))
    if abs(turn) < 1.2:
        return small
    edge = 2 + int(max(wide, high) * abs(np.sin(np.radians(turn))) / 2)
    matrix = cv2.getRotationMatrix2D((wide / 2, high / 2), turn, 1.0)
    matrix[:, 2] += edge
    turned = cv2.warpAffine(small, matrix, (wide + 2 * edge, high + 2 * edge), flags=cv2.INTER_LINEAR)
    x, y, w, h = cv2.boundingRect((turned[..., 3] > 127).astype(np.uint8))
    return np.asarray(turned[y : y + h, x : x + w], np.uint8)


def _choose(rng: np.random.Generator, domain: Domain, before: list[Placed]) -> tuple[str, str, str, str]:
    """Kind, colour, material and state; now and then one more of what is already there, so that counts arise."""
    if before and rng.random() < 0.24:
        twin = before[int(rng.integers(len(before)))]
        name = twin.kind
        if rng.random() < 0.6:
            return name, twin.colour, twin.material, twin.state
    else:
        name = str(rng.choice(SHOWN[domain]))
    kind = KINDS[name]
    paint = np.asarray([_SITE_PAINT.get(c, 1.0) if domain == "site" else 1.0 for c in kind.colours])
    colour = str(rng.choice(kind.colours, p=paint / paint.sum()))
    material = str(rng.choice(kind.materials))
    states = [state for state in kind.states if can_be(state, material)]
    state = str(rng.choice(states)) if states and rng.random() < (0.42 if domain == "base" else 0.5) else WHOLE
    return name, colour, material, state


def _place(
    rng: np.random.Generator, domain: Domain, place: Place, before: list[Placed], size: int, zoom: float
) -> Placed | None:
    """Try to put one more object somewhere it fits."""
    name, colour, material, state = _choose(rng, domain, before)
    kind = KINDS[name]
    options = [s for s in place.surfaces if s.stand in kind.stands]
    if not options:
        return None
    weights = np.asarray([1.0 if s.stand == "floor" else 1.5 for s in options])
    surface = options[int(rng.choice(len(options), p=weights / weights.sum()))]
    if surface.stand == "wall" and state == "tipped":
        return None
    along = float(rng.random())
    foot = surface.y0 + (surface.y1 - surface.y0) * along
    longer = kind.size * (surface.far + (surface.near - surface.far) * along) * zoom * float(rng.uniform(0.9, 1.1))
    unit = size / 224
    source = sprite(name, colour, material, state, int(rng.integers(VARIANTS)), 120 if size <= 256 else 240)
    tall = source.shape[0] / max(source.shape[:2])
    longer = min(longer, surface.headroom * 0.97 / tall)
    if longer < 24:
        return None
    patch = _shape(rng, source, longer * unit)
    high, wide = patch.shape[:2]
    share = surface.narrow + (1 - surface.narrow) * along
    low, right = (surface.middle + (x - surface.middle) * share for x in (surface.x0, surface.x1))
    middle = float(rng.uniform(low, right)) * unit
    left = round(middle - wide / 2)
    if min(size, left + wide) - max(0, left) < 0.72 * wide:
        return None
    top = round(foot * unit - (high / 2 if surface.stand == "wall" else high))
    if top < -0.1 * high or top + high > size:
        return None
    return Placed(name, colour, material, state, surface, patch, left, top, surface.depth + along * 0.9)


def populate(
    rng: np.random.Generator, domain: Domain, place: Place, size: int, zoom: float
) -> tuple[list[Placed | Post], list[WorldObject], list[Placed]]:
    """Fill `place` -> everything in it from back to front; the truth; and, beside each truth, its placement."""
    wanted = int(rng.choice(_COUNTS, p=_COUNT_SHARES))
    posts: list[Placed | Post] = [Post(points, rgb, depth) for depth, points, rgb in place.front]
    least = float(rng.uniform(_LEAST_VISIBLE, 0.85))
    chosen: list[Placed] = []
    for _ in range(wanted * 6):
        if len(chosen) == wanted:
            break
        new = _place(rng, domain, place, chosen, size, zoom)
        if new is None:
            continue
        items = sorted([*posts, *chosen, new], key=lambda item: item.depth)
        if _truth(items, size, least) is not None:
            chosen.append(new)
    items = sorted([*posts, *chosen], key=lambda item: item.depth)
    truth = _truth(items, size, least) or []
    return items, [seen for seen, _ in truth], [item for _, item in truth]


def _truth(items: list[Placed | Post], size: int, least: float) -> list[tuple[WorldObject, Placed]] | None:
    """The objects as seen, or None if one of them is hidden too far or becomes too small."""
    owner = label(items, size)
    found: list[tuple[WorldObject, Placed]] = []
    for number, item in enumerate(items, 1):
        if isinstance(item, Post):
            continue
        rows, columns, inner_rows, inner_columns = _window(item, size)
        own = int(np.count_nonzero(item.patch[inner_rows, inner_columns, 3] > 127))
        here = owner[rows, columns] == number
        seen = int(np.count_nonzero(here))
        if own == 0 or seen < least * own or seen < 60 * (size / 224) ** 2:
            return None
        x, y, w, h = cv2.boundingRect(here.view(np.uint8))
        if min(w, h) < 7 * size / 224:
            return None
        x, y = x + columns.start, y + rows.start
        mask: Mask = np.zeros((size, size), np.bool_)
        mask[rows, columns] = here
        words = phrase(item.kind, item.colour, item.state)
        box = (float(x), float(y), float(x + w), float(y + h))
        found.append(
            (WorldObject(item.kind, item.colour, item.material, item.state, box, mask, seen / own, words), item)
        )
    return found


def _shadow(picture: Floats, item: Placed, light: Light, strength: float) -> None:
    """Darken what `item` shades: the wall behind it, or the ground beside it."""
    size = picture.shape[0]
    high, wide = item.patch.shape[:2]
    reach = max(3, round(0.10 * max(high, wide)))
    margin = 3 * reach
    alpha = np.zeros((high + 2 * margin, wide + 2 * margin), np.float32)
    alpha[margin : margin + high, margin : margin + wide] = item.patch[..., 3]
    if item.surface.stand == "wall" or item.surface.name == "shelf":
        shift = np.asarray([[1, 0, -light.side * reach], [0, 1, reach * 0.5]], np.float64)
    else:
        foot, flat, slant = margin + high, 0.30, -light.side * 0.5
        shift = np.asarray([[1, -slant, slant * foot], [0, flat, foot * (1 - flat) - 1]], np.float64)
    cast = cv2.warpAffine(alpha, shift, (alpha.shape[1], alpha.shape[0]))
    if item.surface.stand != "wall":
        contact = (margin + wide // 2, margin + high - 1)
        cv2.ellipse(cast, contact, (round(wide * 0.46), max(2, round(high * 0.035))), 0, 0, 360, 255, -1, cv2.LINE_AA)
    kernel = reach | 1
    cast = cv2.blur(cast, (kernel, max(3, (kernel // 2) | 1)))
    y0, x0 = max(0, item.top - margin), max(0, item.left - margin)
    y1, x1 = min(size, item.top + high + margin), min(size, item.left + wide + margin)
    inner = cast[y0 - item.top + margin : y1 - item.top + margin, x0 - item.left + margin : x1 - item.left + margin]
    picture[y0:y1, x0:x1] *= (1 - inner * (strength / 255))[..., None]


def compose(rng: np.random.Generator, place: Place, items: list[Placed | Post], light: Light) -> Floats:
    """Draw `items` into the place, back to front, each with its shadow -> (H, W, 3) in 0..255."""
    picture = place.image.astype(np.float32)
    size = picture.shape[0]
    strength = float(rng.uniform(0.34, 0.58))
    for item in items:
        if isinstance(item, Post):
            solid = np.zeros((size, size), np.uint8)
            fixed = item.outline(size)
            cv2.fillPoly(solid, [fixed], 255, cv2.LINE_8, 4)
            picture[solid > 0] = item.rgb
            continue
        _shadow(picture, item, light, strength)
        rows, columns, inner_rows, inner_columns = _window(item, size)
        patch = item.patch[inner_rows, inner_columns].astype(np.float32)
        slope = np.linspace(-1, 1, patch.shape[1], dtype=np.float32)[None, :, None]
        gain = float(rng.uniform(0.93, 1.05)) + 0.13 * light.side * slope
        here = picture[rows, columns]
        here *= 1 - patch[..., 3:] * np.float32(1 / 255)
        here += patch[..., :3] * gain
    return picture
