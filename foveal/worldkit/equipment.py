"""Drawings of site equipment that stands on the ground: cones, tyres, trucks, ladders, cylinders, reels."""

from __future__ import annotations

import math

from foveal.worldkit.canvas import RGB, Canvas, arc, tone
from foveal.worldkit.containers import DARK, STEEL, Look


def traffic_cone(c: Canvas, o: Look) -> None:
    base: RGB = (48, 48, 52) if o.material == "rubber" else tone(o.rgb, 0.8)
    c.poly([(8, 90), (18, 82), (84, 82), (94, 90), (94, 96), (8, 96)], base, o.material, "down")
    low, high = (26, 24, 29)[o.variant], 5
    c.poly(
        [(50 - high, 6), (50 + high, 6), (50 + low, 86), *arc(50, 86, low, 4.5, 0, 180)], o.rgb, o.material, "column"
    )
    for top, bottom in ((34, 48), (62, 73)) if o.variant != 2 else ((40, 60),):
        a, b = (high + (low - high) * (y - 6) / 80 for y in (top, bottom))
        band = [*arc(50, top, a, 3, 180, 0), *arc(50, bottom, b, 4, 0, 180)]
        c.poly(band, (240, 240, 236), "plastic", "column", edge=0.75)
    c.ellipse(50, 6, high, 2, tone(o.rgb, 0.45))


def fire_extinguisher(c: Canvas, o: Look) -> None:
    half = (16, 18, 14)[o.variant]
    left, right = 50 - half, 50 + half
    c.line([(54, 16), (right + 12, 20), (right + 17, 40), (right + 12, 66)], (40, 40, 44), 5)
    c.poly([(right + 8, 62), (right + 16, 62), (right + 19, 82), (right + 5, 82)], (48, 48, 52), "rubber", "column")
    body = [*arc(50, 42, half, 14, 180, 360), *arc(50, 92, half, 4, 0, 180)]
    c.poly(body, o.rgb, "metal", "column")
    c.rect(left - 1, 89, right + 1, 96, (44, 44, 48), "rubber", "column", radius=2)
    c.rect(44, 19, 56, 30, STEEL, "metal", "column")
    c.poly([(26, 6), (58, 11), (60, 16), (26, 12)], (52, 52, 56), "metal")
    c.poly([(22, 22), (56, 16), (60, 20), (26, 27)], (60, 60, 64), "metal")
    c.ellipse(60, 22, 5.5, 5.5, (240, 240, 240), "glass")
    c.line([(60, 22), (63, 19)], (200, 30, 30), 1.6, rim=1)
    c.rect(left + 3, 52, right - 3, 74, (242, 240, 230), "cardboard", "column", edge=0.8)
    for y, ink in ((56, (30, 30, 30)), (62, (200, 40, 30)), (68, (90, 90, 90))):
        c.line([(left + 6, y), (right - 6, y)], ink, 2, rim=1)


def tyre(c: Canvas, o: Look) -> None:
    worn: RGB = tone(o.rgb, 0.9) if sum(o.rgb) > 150 else (58, 58, 62)
    c.ellipse(57, 50, 38, 45, tone(worn, 0.62), "rubber")
    for turn in range(-80, 90, 11):
        x, y = 57 + 38 * math.cos(math.radians(turn)), 50 + 45 * math.sin(math.radians(turn))
        c.line([(x - 13, y), (x - 1, y)], tone(worn, 0.30), 2.6, rim=1)
    c.ellipse(45, 50, 39, 45, worn, "rubber", "ball")
    c.line(arc(45, 50, 33, 38.5, 0, 360), tone(worn, 0.6), 1.6, rim=1)
    c.line(arc(45, 50, 36, 42, 150, 260), tone(worn, 1.3, 0.2), 1.4, rim=1)
    if o.variant == 0:
        c.ellipse(45, 50, 22, 26, DARK, "rubber")
        c.erase(arc(43, 50, 17, 21, 0, 360))
    else:
        c.ellipse(45, 50, 23, 27, (176, 178, 184), "metal", "ball")
        c.ellipse(45, 50, 17, 20, (96, 98, 104), "metal")
        for turn in range(5):
            a = math.radians(turn * 72 + o.variant * 20)
            c.line([(45, 50), (45 + 20 * math.cos(a), 50 + 23.5 * math.sin(a))], (196, 198, 204), 6)
        c.ellipse(45, 50, 6, 7, (70, 70, 76), "metal", "ball")
    if o.state == "torn":
        c.erase([(0, 0), (16, 0), (34, 16), (28, 22), (36, 29), (24, 34), (26, 43), (10, 38), (0, 40)])
        c.poly([(34, 16), (42, 10), (40, 22), (30, 26), (28, 22)], (196, 170, 130), "fabric")
        c.line([(24, 34), (30, 38), (22, 46), (12, 42)], (190, 165, 125), 2.4)


def hand_truck(c: Canvas, o: Look) -> None:
    c.poly([(18, 90), (70, 90), (82, 98), (8, 98)], tone(o.rgb, 0.72), "metal")
    left, right = ((30, 62), (27, 64), (32, 60))[o.variant]
    for y in (30, 48, 66):
        c.line([(left, y), (right, y)], tone(o.rgb, 0.86), 4.6)
    if o.variant != 1:
        c.line([((left + right) / 2, 18), ((left + right) / 2, 84)], tone(o.rgb, 0.8), 3.4)
    c.line([(left, 92), (left, 14), (left + 6, 6), (right - 6, 6), (right, 14), (right, 92)], o.rgb, 6)
    for x in (left, right):
        c.line([(x, 12), (x, 24)], (40, 40, 44), 7.5)
    c.line([(left - 8, 84), (right + 8, 84)], STEEL, 4)
    for x in (left - 9, right + 9):
        c.ellipse(x, 84, 8.5, 12, (40, 40, 44), "rubber", "ball")
        c.ellipse(x, 84, 3.6, 5.2, STEEL, "metal", "ball")


def plant_pot(c: Canvas, o: Look) -> None:
    leaf: RGB = (46, 136, 56)
    count = 0 if o.state == "empty" else (9, 7, 11)[o.variant]
    for i in range(count):
        lean = (i / (count - 1) - 0.5) * 2
        tip_x, tip_y = 50 + lean * 42, 10 + abs(lean) * 34
        mid_x, mid_y = 50 + lean * 26, 34 + abs(lean) * 8
        shape = [(50 + lean * 4, 64), (mid_x - 5.5, mid_y), (tip_x, tip_y), (mid_x + 5.5, mid_y + 5)]
        c.poly(shape, tone(leaf, 0.78 + 0.4 * ((i * 5) % 7) / 7), "rubber", "down", edge=0.5)
        c.line([(50 + lean * 4, 62), (mid_x, mid_y), (tip_x, tip_y)], tone(leaf, 0.62), 1.2, rim=1)
    m = o.material
    c.ellipse(50, 64, 24, 5, (70, 48, 32), "rubber")
    c.poly([(27, 66), (73, 66), (66, 97), (34, 97)], o.rgb, m, "column", upright=m == "wood")
    c.rect(24, 61, 76, 71, tone(o.rgb, 1.1), m, "column", radius=2)
    if not count:
        c.ellipse(50, 61.5, 26, 6, tone(o.rgb, 1.15), m, "column")
        c.ellipse(50, 62, 22, 4.4, (58, 40, 28), "rubber")
    if m == "wood":
        for x in (39, 50, 61):
            c.line([(x, 72), (50 + (x - 50) * 0.75, 96)], tone(o.rgb, 0.45), 1.4, rim=1)


def ladder(c: Canvas, o: Look) -> None:
    m, broken = o.material, o.state == "broken"
    top, spread = 6, (25, 21, 28)[o.variant]
    back = tone(o.rgb, 0.55)
    for side in (-1, 1):
        c.line([(58 + side * 9, top + 2), (66 + side * (spread - 2), 92)], back, 3.4)
    c.line([(50, 62), (84, 62)], back, 2.2)
    for i in range(6):
        y = 20 + i * 13.5
        half = 10 + (spread - 10) * (y - top) / 90
        if broken and i == 2:
            c.line([(46 - half, y), (46 - half * 0.4, y + 8)], tone(o.rgb, 0.95), 5)
            continue
        if broken and i == 3:
            c.line([(46 - half, y + 1), (44 + half * 0.5, y + 15)], tone(o.rgb, 0.95), 5)
            continue
        c.rect(46 - half, y - 2.6, 46 + half, y + 3.2, tone(o.rgb, 1.1), m, "down")
    for side in (-1, 1):
        x0, x1 = 46 + side * 10, 46 + side * spread
        c.poly([(x0 - 3, top), (x0 + 3, top), (x1 + 3.4, 96), (x1 - 3.4, 96)], o.rgb, m, upright=True)
        c.rect(x1 - 4.5, 93, x1 + 4.5, 98, (44, 44, 48), "rubber")
    c.rect(31, 3, 72, 11, tone(o.rgb, 1.0) if m == "wood" else (60, 60, 64), m, "down", radius=2)


def umbrella(c: Canvas, o: Look) -> None:
    if o.state == "folded":
        c.poly(
            [(50, 4), (53, 12), (62, 30), (60, 62), (50, 74), (40, 62), (38, 30), (47, 12)], o.rgb, "fabric", "column"
        )
        for x in (43, 50, 57):
            c.line([(50, 12), (x, 40), (50, 72)], tone(o.rgb, 0.55), 1.6, rim=1)
        c.rect(38, 44, 62, 49, tone(o.rgb, 0.5), "fabric", "column")
        c.line([(50, 72), (50, 90), *arc(43, 90, 7, 7, 0, 170, 12)], (90, 56, 30), 4.6)
        return
    c.line([(50, 10), (50, 86), *arc(43, 86, 7, 8, 0, 175, 12)], (90, 56, 30) if o.variant else STEEL, 3.6)
    ribs = [4, 20, 38, 62, 80, 96]
    drop = 48
    for i in range(5):
        if o.state == "torn" and i == 3:
            c.line([(50, 11), (71, 22), (ribs[4], drop)], STEEL, 1.6, rim=1)
            jag = [(50, 11), (60, 16), (58, 24), (66, 28), (60, 36), (66, 42), (ribs[3], drop - 2)]
            c.poly(jag, tone(o.rgb, 0.9), "fabric")
            continue
        a, b = ribs[i], ribs[i + 1]
        left = [(50 + (a - 50) * f, 11 + (drop - 11) * f**2.1) for f in (0, 0.35, 0.6, 0.82, 1)]
        right = [(50 + (b - 50) * f, 11 + (drop - 11) * f**2.1) for f in (1, 0.82, 0.6, 0.35, 0)]
        scallop = ((a + b) / 2, drop - 6)
        gain = (1.12, 1.2, 1.0, 0.84, 0.66)[i]
        c.poly([*left, scallop, *right], tone(o.rgb, gain, 0.04), "fabric", edge=0.5)
    c.line([(50, 3), (50, 12)], STEEL, 3)


def gas_cylinder(c: Canvas, o: Look) -> None:
    half = (15, 17, 13)[o.variant]
    left, right = 50 - half, 50 + half
    band: RGB = (236, 236, 230) if sum(o.rgb) < 560 else (60, 130, 70)
    c.rect(46, 8, 54, 20, (190, 160, 80), "metal", "column")
    c.line([(43, 8), (60, 8)], (190, 160, 80), 4.4)
    c.line([(60, 12), (66, 12)], (190, 160, 80), 4)
    c.line([(40, 18), (40, 4), (62, 4), (62, 18)], tone(o.rgb, 0.6), 2.6)
    c.poly([*arc(50, 32, half, 15, 180, 360), (right, 95), (left, 95)], o.rgb, "metal", "column")
    c.poly([*arc(50, 32, half, 15, 180, 360), *arc(50, 35, half, 4, 0, 180)], band, "metal", "column", edge=0.7)
    c.rect(left - 1, 92, right + 1, 98, tone(o.rgb, 0.6), "metal", "column")
    c.poly([(50, 52), (59, 61), (50, 70), (41, 61)], (244, 214, 60), edge=0.4)
    c.line([(50, 57), (50, 65)], (30, 30, 30), 2.4, rim=1)
    c.line([(left + 5, 78), (right - 5, 78)], tone(o.rgb, 0.5), 2, rim=1)


def cable_reel(c: Canvas, o: Look) -> None:
    m = o.material
    cable: RGB = ((36, 36, 40), (230, 110, 30), (40, 40, 44))[o.variant]
    if max(abs(a - b) for a, b in zip(cable, o.rgb, strict=True)) < 50:
        cable = (200, 60, 40)
    c.ellipse(68, 50, 26, 45, tone(o.rgb, 0.62), m)
    if o.state == "empty":
        c.poly([(38, 38), (78, 38), (78, 62), (38, 62)], tone(o.rgb, 1.1, 0.15), m, "log")
    else:
        c.poly([*arc(66, 50, 20, 35, -90, 90), *arc(36, 50, 20, 35, 90, 270)], cable, "rubber", "log")
        for x in range(38, 72, 5):
            c.line(arc(x, 50, 20, 35, -80, 80), tone(cable, 0.5), 1.3, rim=1)
        c.line([(80, 66), (90, 84), (97, 94)], cable, 3.4)
    c.ellipse(34, 50, 30, 46, o.rgb, m)
    if m == "wood":
        for y in (22, 38, 62, 78):
            half = 30 * math.sqrt(max(0.0, 1 - ((y - 50) / 46) ** 2))
            c.line([(34 - half, y), (34 + half, y)], tone(o.rgb, 0.5), 1.3, rim=1)
    else:
        for turn in range(6):
            a = math.radians(turn * 60 + 30)
            c.ellipse(34 + 19 * math.cos(a), 50 + 29 * math.sin(a), 5.5, 8.5, tone(o.rgb, 0.32))
    c.line(arc(34, 50, 28.5, 44, 0, 360), tone(o.rgb, 1.16), 2.4)
    c.ellipse(34, 50, 11, 17, tone(o.rgb, 0.8), m)
    c.ellipse(34, 50, 5, 8, DARK)
    for turn in range(4):
        a = math.radians(turn * 90 + 45)
        c.ellipse(34 + 8.5 * math.cos(a), 50 + 13 * math.sin(a), 1.7, 2.2, STEEL, "metal")
