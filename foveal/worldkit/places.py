"""Places: the empty room a camera looks into, and the surfaces on which things may stand or hang.

Everything here is unlabelled background. Lengths are in pixels of a 224-pixel picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np

from foveal.worldkit.canvas import RGB
from foveal.worldkit.room import Point, Room, Style
from foveal.worldkit.scene import Domain, Image


@dataclass(frozen=True, slots=True)
class Surface:
    """Where objects may be put: their feet (or, on a wall, their middle) between y0 and y1."""

    stand: str  # floor, deck, wall
    name: str  # as captions say it
    y0: float
    y1: float
    x0: float
    x1: float
    near: float  # scale of objects at y1
    far: float  # scale at y0
    headroom: float
    depth: float  # larger is closer to the camera
    middle: float = 112.0  # the column towards which x0..x1 narrows
    narrow: float = 1.0  # width at y0 as a share of the width at y1


@dataclass(slots=True)
class Place:
    """A drawn room. `front` are (depth, polygon, colour) occluders that belong to it."""

    name: str
    image: Image  # (H, W, 3) RGB
    surfaces: list[Surface]
    front: list[tuple[float, list[Point], RGB]] = field(default_factory=list[tuple[float, list[Point], RGB]])


STYLES: dict[Domain, Style] = {
    "base": Style(
        walls=(
            ("plaster", (196, 194, 186)),
            ("plaster", (170, 182, 190)),
            ("sheet", (176, 180, 184)),
            ("panel", (202, 190, 168)),
            ("sheet", (150, 164, 178)),
            ("plaster", (142, 150, 140)),
        ),
        floors=(
            ("concrete", (150, 148, 144)),
            ("tiles", (168, 160, 150)),
            ("concrete", (126, 124, 122)),
            ("tiles", (140, 146, 150)),
        ),
        posts=((214, 104, 32), (36, 78, 150), (120, 124, 130), (90, 96, 104)),
        decks=(("wood", (172, 130, 86)), ("metal", (150, 154, 160)), ("wood", (140, 100, 66))),
        signs=((220, 190, 60), (60, 110, 170), (200, 70, 60), (230, 230, 226)),
        zoom=(0.82, 1.06),
    ),
    "site": Style(
        walls=(
            ("brick", (146, 84, 66)),
            ("brick", (128, 122, 116)),
            ("block", (140, 146, 132)),
            ("block", (98, 114, 122)),
        ),
        floors=(("epoxy", (70, 112, 92)), ("epoxy", (92, 100, 116)), ("plate", (110, 112, 116))),
        posts=((28, 120, 116), (46, 48, 54), (196, 172, 40)),
        decks=(("mesh", (112, 118, 124)), ("metal", (84, 90, 98))),
        signs=((40, 140, 80), (225, 225, 220), (230, 140, 40)),
        zoom=(0.70, 0.94),
    ),
}


def _clutter(room: Room, top: float, bottom: float, amount: int) -> None:
    """Things on a wall that nobody labels: posters, pipes, cables, sockets, stripes."""
    for _ in range(amount):
        x, y = room.at(0, 200), room.at(top, max(top + 4, bottom - 34))
        choice = int(room.rng.integers(6))
        sign = room.off(room.style.signs[int(room.rng.integers(len(room.style.signs)))])
        if choice == 0:
            w, h = room.at(16, 30), room.at(18, 32)
            room.rect(x, y, x + w, y + h, sign)
            room.rect(x + 3, y + 3, x + w - 3, y + h * 0.45, (238, 238, 232))
            for row in range(3):
                room.line(
                    [(x + 3, y + h * (0.6 + 0.12 * row)), (x + w - 4, y + h * (0.6 + 0.12 * row))], (70, 70, 74), 1
                )
        elif choice == 1:
            tint = room.off((130, 134, 138), 26)
            room.line([(0, y), (224, y)], (70, 72, 76), 6)
            room.line([(0, y - 0.6), (224, y - 0.6)], tint, 4)
            for clip in range(int(x) % 50, 224, 62):
                room.rect(clip, y - 4, clip + 4, y + 4, (86, 88, 92))
        elif choice == 2:
            drop = room.at(8, 26)
            far = x + room.at(50, 120)
            room.line(
                [(x + (far - x) * t, y + 4 * drop * t * (1 - t)) for t in np.linspace(0, 1, 16)], (36, 36, 40), 1.6
            )
        elif choice == 3:
            room.rect(x, y, x + 13, y + 17, (188, 190, 192))
            room.rect(x + 2, y + 2, x + 11, y + 15, (150, 152, 156))
            room.rect(x + 4, y + 4, x + 9, y + 7, (60, 160, 80))
        elif choice == 4:
            room.line([(x, top), (x, bottom)], (74, 76, 80), 5)
            room.line([(x - 0.6, top), (x - 0.6, bottom)], room.off((150, 150, 150), 20), 3)
        else:
            room.poly([(x + 10, y), (x + 21, y + 19), (x - 1, y + 19)], (40, 38, 34))
            room.poly([(x + 10, y + 2.6), (x + 18.6, y + 17.6), (x + 1.4, y + 17.6)], sign)


def _stripes(room: Room, x0: float, x1: float, y0: float, y1: float) -> None:
    room.rect(x0, y0, x1, y1, (226, 184, 40))
    step = 9.0
    for i in range(int((x1 - x0) / step) + 1):
        x = x0 + i * step
        room.poly([(x, y1), (x + 4, y1), (x + 8, y0), (x + 4, y0)], (36, 36, 38))


def shelf(room: Room) -> Place:
    """A rack seen from the front, floor before it."""
    floor_y = room.at(176, 190)
    room.wall(0, floor_y)
    _clutter(room, 0, floor_y, int(room.rng.integers(1, 4)))
    shade = room.at(0.58, 0.80)
    rows = round(floor_y * room.unit)
    room.image[:rows] = (room.image[:rows] * shade).astype(np.uint8)
    room.floor(floor_y, (room.at(80, 144), room.at(60, 120)))
    post = room.off(room.style.posts[int(room.rng.integers(len(room.style.posts)))])
    deck = room.pick(room.style.decks)
    boards = [room.at(62, 76), room.at(132, 146)] if room.at(0, 1) < 0.72 else [room.at(100, 124)]
    left, right = room.at(-8, 12), room.at(212, 232)
    surfaces: list[Surface] = []
    if room.at(0, 1) < 0.5:
        for a, b in ((left, right), (right, left)):
            room.line([(a, 0), (b, floor_y)], (92, 94, 98), 2)
    above = 0.0
    for y in boards:
        room.board(left, y - 6, right, y, (deck[0], (deck[1][0] * 0.8, deck[1][1] * 0.8, deck[1][2] * 0.8)))
        room.rect(left, y, right, y + 7, post)
        room.line([(left, y), (right, y)], (240, 240, 236), 1)
        room.line([(left, y + 7.5), (right, y + 7.5)], (30, 30, 32), 1.5)
        for _ in range(int(room.rng.integers(1, 4))):
            x = room.at(left + 10, right - 30)
            room.rect(x, y + 1.5, x + room.at(8, 16), y + 6, (236, 236, 230))
        surfaces.append(Surface("deck", "shelf", y - 4.5, y - 1, left + 8, right - 8, 0.92, 0.88, y - above - 8, 1))
        above = y + 8
    surfaces.append(Surface("floor", "floor", floor_y + 8, 218, 4, 220, 1.05, 0.9, 150, 3))
    front: list[tuple[float, list[Point], RGB]] = []
    posts = [left, right] + ([room.at(95, 130)] if room.at(0, 1) < 0.45 else [])
    for x in posts:
        front.append((2.5, [(x - 4, 0), (x + 4, 0), (x + 4, floor_y + 4), (x - 4, floor_y + 4)], post))
        front.append((2.51, [(x - 4, 0), (x - 2.5, 0), (x - 2.5, floor_y + 4), (x - 4, floor_y + 4)], (40, 40, 44)))
    return Place("shelf", room.image, surfaces, front)


def loading_bay(room: Room) -> Place:
    """A shutter door in a wall, and much floor."""
    floor_y = room.at(92, 116)
    room.wall(0, floor_y)
    _clutter(room, 0, floor_y, int(room.rng.integers(1, 4)))
    x0 = room.at(20, 84)
    x1, top = x0 + room.at(82, 112), room.at(6, 22)
    gate = room.off((150, 156, 162), 30)
    room.rect(x0 - 6, top - 7, x1 + 6, floor_y, (58, 60, 64))
    room.rect(x0, top, x1, floor_y, gate)
    for y in np.arange(top + 5, floor_y, 7):
        room.line([(x0, float(y)), (x1, float(y))], (96, 100, 104), 1.4)
        room.line([(x0, float(y) + 1.6), (x1, float(y) + 1.6)], (200, 204, 208), 1)
    room.floor(floor_y, (room.at(70, 154), room.at(20, 60)))
    _stripes(room, x0 - 10, x0 - 4, floor_y - 46, floor_y)
    _stripes(room, x1 + 4, x1 + 10, floor_y - 46, floor_y)
    mid, paint = (x0 + x1) / 2, room.off((222, 190, 60), 20)
    for side in (-1, 1):
        near = mid + side * room.at(110, 170)
        room.poly([(mid + side * 46, floor_y), (mid + side * 49, floor_y), (near + 6, 224), (near - 6, 224)], paint)
    surfaces = [Surface("floor", "floor", floor_y + 14, 217, 6, 218, 1.08, 0.66, 140, 3)]
    for a, b in ((6.0, x0 - 14), (x1 + 14, 218.0)):
        if b - a > 36:
            surfaces.append(Surface("wall", "wall", 24, floor_y - 32, a + 14, b - 14, 0.8, 0.8, 60, 0))
    return Place("loading bay", room.image, surfaces)


def conveyor(room: Room) -> Place:
    """An inspection line: a belt on rollers, a wall behind, a strip of floor."""
    floor_y = room.at(150, 164)
    room.wall(0, floor_y)
    _clutter(room, 0, floor_y - 70, int(room.rng.integers(2, 5)))
    room.floor(floor_y, (room.at(80, 144), room.at(40, 90)))
    y, thick = room.at(118, 132), room.at(20, 26)
    rail = room.off(room.style.posts[int(room.rng.integers(len(room.style.posts)))])
    for x in (room.at(16, 36), room.at(100, 124), room.at(190, 208)):
        room.rect(x - 4, y + 12, x + 4, floor_y + 26, (74, 78, 84))
        room.rect(x - 2.4, y + 12, x - 0.8, floor_y + 26, (150, 154, 158))
        room.rect(x - 8, floor_y + 24, x + 8, floor_y + 28, (50, 52, 56))
    belt = room.off((52, 54, 58), 10) if room.at(0, 1) < 0.75 else room.off((46, 96, 84), 10)
    room.rect(0, y - thick, 224, y + 3, belt)
    for x in np.arange(room.at(0, 30), 260, 34):
        room.line([(float(x), y - thick), (float(x) - 8, y + 3)], (86, 88, 92), 1.2)
    room.rect(0, y - thick - 3, 224, y - thick + 1, (110, 114, 120))
    room.rect(0, y + 3, 224, y + 17, rail)
    room.line([(0, y + 3.5), (224, y + 3.5)], (236, 236, 232), 1)
    for x in np.arange(room.at(2, 10), 224, 15):
        spot = (round(float(x) * room.unit), round((y + 10) * room.unit))
        cv2.circle(room.image, spot, max(1, round(4.6 * room.unit)), (46, 48, 52), -1, cv2.LINE_AA)
        cv2.circle(room.image, spot, max(1, round(2.6 * room.unit)), (176, 180, 184), -1, cv2.LINE_AA)
    if room.at(0, 1) < 0.6:
        x = room.at(30, 190)
        room.rect(x - 3, 0, x + 3, 26, (70, 74, 80))
        room.poly([(x - 16, 26), (x + 16, 26), (x + 11, 40), (x - 11, 40)], (54, 58, 64))
        room.rect(x - 8, 38, x + 8, 41, (250, 246, 214))
    surfaces = [
        Surface("deck", "conveyor belt", y - thick * 0.7, y - 1, 6, 218, 1.04, 0.92, 104, 1),
        Surface("floor", "floor", max(floor_y + 34, 196), 220, 4, 220, 1.0, 0.9, 110, 3),
        Surface("wall", "wall", 22, 48, 8, 216, 0.76, 0.76, 60, 0),
    ]
    return Place("conveyor", room.image, surfaces)


def aisle(room: Room) -> Place:
    """A corridor between racks that runs to a vanishing point."""
    vx, vy = room.at(88, 136), room.at(52, 76)
    room.wall(0, 224)
    shade = room.at(0.55, 0.75)
    room.image[:] = (room.image * shade).astype(np.uint8)
    end = room.at(0.16, 0.24)
    floor_y = vy + (224 - vy) * end
    room.floor(floor_y, (vx, vy))
    post = room.off(room.style.posts[int(room.rng.integers(len(room.style.posts)))])
    deck = room.pick(room.style.decks)[1]
    room.poly([(0, 0), (224, 0), (vx + 112 * end, vy * (1 - end)), (vx - 112 * end, vy * (1 - end))], (58, 60, 66))
    for t in (0.3, 0.5, 0.85):
        room.rect(vx - 46 * t, vy * (1 - t) - 3 * t, vx + 46 * t, vy * (1 - t) + 3 * t, (248, 246, 226))

    def toward(x: float, y: float, t: float) -> Point:
        return (vx + (x - vx) * t, vy + (y - vy) * t)

    for side in (-1.0, 1.0):
        foot, depth = vx + side * 92, 224 + 8.0
        inner = [toward(foot, depth, t) for t in (end, 1.6)]
        upper = [toward(foot, -70, t) for t in (1.6, end)]
        room.poly([*inner, *upper], room.off((62, 62, 66), 8))
        for row in np.linspace(depth, -70, 5):
            high = float(row)
            a, b = toward(foot, high, end), toward(foot, high, 1.6)
            c, d = toward(foot, high - 12, 1.6), toward(foot, high - 12, end)
            for t0 in np.linspace(end, 1.2, 8)[:-1] if row < depth else ():
                t1 = t0 + (1.2 - end) / 7 * room.at(0.55, 0.9)
                tint = room.off((112, 98, 82), 34)
                tall = room.at(28, 54)
                box = [toward(foot, high - v, float(t)) for v, t in ((0, t0), (0, t1), (tall, t1), (tall, t0))]
                room.poly(box, (tint[0] * 0.62, tint[1] * 0.62, tint[2] * 0.62))
            room.poly([a, b, c, d], deck)
        for t in (0.24, 0.34, 0.5, 0.74, 1.1):
            if t < end:
                continue
            x, low = toward(foot, depth, t)
            wide = 5 * t
            room.rect(x - wide, toward(foot, -70, t)[1], x + wide, low, post)
        paint = [toward(foot - side * 12, 224, end), toward(foot - side * 8, 224, end)]
        room.poly([*paint, toward(foot - side * 8, 224, 1.4), toward(foot - side * 12, 224, 1.4)], (216, 184, 60))
    far_y = floor_y + 26
    half = 72 / (224 - vy) * (218 - vy)
    narrow = (far_y - vy) / (218 - vy)
    surfaces = [Surface("floor", "floor", far_y, 218, vx - half, vx + half, 1.0, 0.55, 150, 3, vx, narrow)]
    return Place("aisle", room.image, surfaces)


def workbench(room: Room) -> Place:
    """A bench under a tool board."""
    floor_y = room.at(184, 196)
    room.wall(0, floor_y)
    x0, x1, top, low = room.at(6, 22), room.at(202, 218), room.at(6, 16), room.at(72, 84)
    board = room.off((176, 150, 112), 24)
    room.rect(x0, top, x1, low, board)
    for x in np.arange(x0 + 6, x1 - 3, 11):
        for y in np.arange(top + 6, low - 3, 11):
            spot = (round(float(x) * room.unit), round(float(y) * room.unit))
            cv2.circle(room.image, spot, max(1, round(room.unit)), (80, 70, 56), -1)
    _clutter(room, low, 120, int(room.rng.integers(0, 3)))
    room.floor(floor_y, (112, room.at(80, 120)))
    y = room.at(132, 142)
    deck = room.pick(room.style.decks)
    frame = room.off(room.style.posts[int(room.rng.integers(len(room.style.posts)))])
    room.rect(8, y, 216, floor_y + 6, (44, 44, 48))
    for x in (6, 206):
        room.rect(x, y, x + 12, floor_y + 12, frame)
    for i in range(3):
        room.rect(24, y + 12 + i * 14, 84, y + 24 + i * 14, room.off(frame, 6))
        room.rect(46, y + 16 + i * 14, 62, y + 18.5 + i * 14, (210, 212, 214))
    room.board(0, y - 14, 224, y, deck)
    room.rect(0, y, 224, y + 9, (deck[1][0] * 0.7, deck[1][1] * 0.7, deck[1][2] * 0.7))
    room.line([(0, y), (224, y)], (236, 232, 220), 1)
    surfaces = [
        Surface("deck", "workbench", y - 12, y - 1, 6, 218, 1.04, 0.94, 110, 1),
        Surface("wall", "wall", top + 20, low - 18, x0 + 10, x1 - 10, 0.8, 0.8, 60, 0),
        Surface("floor", "floor", floor_y + 16, 221, 4, 220, 1.0, 0.92, 90, 3),
    ]
    return Place("workbench", room.image, surfaces)


PLACES: dict[str, Callable[[Room], Place]] = {
    "shelf": shelf,
    "loading bay": loading_bay,
    "conveyor": conveyor,
    "aisle": aisle,
    "workbench": workbench,
}
SHARES: dict[Domain, tuple[float, ...]] = {
    "base": (0.28, 0.22, 0.20, 0.12, 0.18),
    "site": (0.26, 0.26, 0.28, 0.14, 0.06),
}


def furnish(rng: np.random.Generator, domain: Domain, size: int) -> Place:
    """Draw an empty room of the domain."""
    name = str(rng.choice(list(PLACES), p=SHARES[domain]))
    return PLACES[name](Room(rng, STYLES[domain], size))
