"""Sprites: a drawing, the damage its state shows, and a cache that never changes what is drawn."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np

from foveal.worldkit import containers, devices, equipment
from foveal.worldkit.canvas import Canvas, smooth_noise, tone
from foveal.worldkit.catalogue import body_colour
from foveal.worldkit.containers import Look
from foveal.worldkit.scene import Floats, Image

VARIANTS = 3
_PIXELS = 208  # canvas side; sprites are shown at most about half as large

DRAWINGS: dict[str, Callable[[Canvas, Look], None]] = {
    "cardboard box": containers.cardboard_box,
    "crate": containers.crate,
    "barrel": containers.barrel,
    "pallet": containers.pallet,
    "jerrycan": containers.jerrycan,
    "toolbox": containers.toolbox,
    "bucket": containers.bucket,
    "bottle": containers.bottle,
    "sack": containers.sack,
    "traffic cone": equipment.traffic_cone,
    "fire extinguisher": equipment.fire_extinguisher,
    "tyre": equipment.tyre,
    "hand truck": equipment.hand_truck,
    "plant pot": equipment.plant_pot,
    "ladder": equipment.ladder,
    "umbrella": equipment.umbrella,
    "gas cylinder": equipment.gas_cylinder,
    "cable reel": equipment.cable_reel,
    "lamp": devices.lamp,
    "helmet": devices.helmet,
    "clock": devices.clock,
    "fan": devices.fan,
    "gear": devices.gear,
    "wrench": devices.wrench,
    "valve": devices.valve,
    "drone": devices.drone,
}


def _move(c: Canvas, dx: Floats, dy: Floats) -> None:
    """Pull paint from (x + dx, y + dy), both (S, S) pixels."""
    side = c.alpha.shape[0]
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    c.rgb = np.asarray(cv2.remap(c.rgb, x + dx, y + dy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.float32)
    c.alpha = np.asarray(cv2.remap(c.alpha, x + dx, y + dy, cv2.INTER_LINEAR), np.float32)


def _dent(c: Canvas) -> None:
    side = c.alpha.shape[0]
    y, x = (v / c.unit for v in np.mgrid[0:side, 0:side].astype(np.float32))
    columns = np.flatnonzero((c.alpha > 0.5).any(0)) / c.unit
    left, right = float(columns[0]), float(columns[-1])
    reach = (right - left) * 0.22
    shift = np.zeros_like(x)
    for edge, height, inward in ((right, 46.0, -1), (left, 68.0, 1)):
        near = np.exp(-(((y - height) / 11) ** 2) - (((x - edge) / (reach * 1.7)) ** 2))
        shift -= inward * near * reach
        crease = np.exp(-(((y - height - 5) / 7) ** 2) - (((x - edge - inward * reach * 1.15) / (reach * 0.5)) ** 2))
        glint = np.exp(-(((y - height + 9) / 4) ** 2) - (((x - edge - inward * reach * 1.2) / (reach * 0.6)) ** 2))
        c.rgb = np.clip(c.rgb * (1 - 0.58 * crease)[..., None] + (78 * glint)[..., None], 0, 255)
    _move(c, shift * c.unit, np.zeros_like(x))


def _rust(c: Canvas) -> None:
    side = c.alpha.shape[0]
    patches = smooth_noise(c.rng, side, side, side / 7) + 0.55 * smooth_noise(c.rng, side, side, side / 22)
    amount = np.clip((patches - 0.10) * 4.5, 0, 0.94)
    speck = 1 + 0.28 * smooth_noise(c.rng, side, side, side / 70)
    rust = np.asarray((150, 72, 26), np.float32) * speck[..., None]
    c.rgb += (np.clip(rust, 0, 255) - c.rgb) * amount[..., None]


def _crack(c: Canvas) -> None:
    side = c.alpha.shape[0] / c.unit
    for start, turn in (((30.0, 26.0), 62.0), ((48.0, 52.0), 8.0), ((44.0, 46.0), 150.0)):
        x, y = start
        path = [(x, y)]
        for step in range(6):
            a = math.radians(turn + (32 if step % 2 else -32))
            x, y = min(side, x + 7.5 * math.cos(a)), min(side, y + 7.5 * math.sin(a))
            path.append((x, y))
        solid = c.alpha.copy()
        c.line([(px + 1.4, py + 1.0) for px, py in path], (250, 250, 250), 1.6, rim=1)
        c.line(path, (14, 12, 12), 2.8, rim=1)
        c.alpha = solid


def _bend(c: Canvas) -> None:
    side = c.alpha.shape[0]
    y = np.arange(side, dtype=np.float32)[:, None] / side
    lean = np.maximum(0, 0.58 - y) ** 1.6 * 0.62 * side
    _move(c, np.broadcast_to(-lean, (side, side)).astype(np.float32), np.zeros((side, side), np.float32))
    sag = np.broadcast_to(np.arange(side, dtype=np.float32)[None, :] / side, (side, side))
    _move(c, np.zeros((side, side), np.float32), (-(np.maximum(0, sag - 0.62) ** 1.5) * 0.8 * side).astype(np.float32))


def _tip(c: Canvas) -> None:
    c.rgb = np.ascontiguousarray(np.rot90(c.rgb, -1))
    c.alpha = np.ascontiguousarray(np.rot90(c.alpha, -1))


DAMAGE: dict[str, Callable[[Canvas], None]] = {
    "dented": _dent,
    "rusty": _rust,
    "cracked": _crack,
    "bent": _bend,
    "tipped": _tip,
}


@lru_cache(maxsize=2048)
def sprite(kind: str, colour: str, material: str, state: str, variant: int, longer: int = 120) -> Image:
    """The object alone, its longer side `longer` pixels -> (h, w, 4) premultiplied RGBA; do not write to it."""
    seed = zlib.crc32(f"{kind}/{colour}/{material}/{state}/{variant}".encode())
    canvas = Canvas(_PIXELS if longer <= 120 else 2 * longer, np.random.Generator(np.random.PCG64(seed)))
    rgb = tone(body_colour(colour, material), (1.0, 0.9, 1.06)[variant], (0.0, 0.0, 0.05)[variant])
    DRAWINGS[kind](canvas, Look(rgb, material, state, variant))
    if state in DAMAGE:
        DAMAGE[state](canvas)
    drawn = canvas.sprite(longer)
    drawn.flags.writeable = False
    return drawn
