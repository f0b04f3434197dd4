"""Drawings of things that hold things: boxes, crates, barrels, pallets, cans, buckets, bottles, sacks."""

from __future__ import annotations

from dataclasses import dataclass

from foveal.worldkit.canvas import RGB, Canvas, arc, tone

DARK: RGB = (30, 26, 24)
STEEL: RGB = (168, 172, 178)


@dataclass(frozen=True, slots=True)
class Look:
    """What a drawing needs to know about the one object it draws."""

    rgb: RGB
    material: str
    state: str
    variant: int  # 0..2, proportions and fittings


def cardboard_box(c: Canvas, o: Look) -> None:
    top, right = ((34, 74), (46, 80), (24, 66))[o.variant]
    back, side, m = top - 11, right + 15, o.material
    c.poly([(right, top), (side, back), (side, 82), (right, 95)], tone(o.rgb, 0.68), m, "down")
    c.rect(8, top, right, 95, o.rgb, m, "down")
    mid = (8 + right) / 2
    if o.state == "open":
        c.poly([(8, top), (right, top), (side, back), (26, back)], tone(o.rgb, 0.3), m)
        c.poly([(26, back), (side, back), (side + 4, back - 15), (30, back - 17)], tone(o.rgb, 0.88), m)
        c.poly([(8, top), (26, back), (14, back - 13), (0, top - 8)], tone(o.rgb, 0.98), m)
        c.poly([(right, top), (side, back), (100, back + 6), (right + 14, top + 10)], tone(o.rgb, 0.8), m)
        c.poly([(8, top), (right, top), (right - 5, top + 16), (4, top + 16)], tone(o.rgb, 1.14), m, "down")
    else:
        c.poly([(8, top), (right, top), (side, back), (26, back)], tone(o.rgb, 1.16), m)
        tape = tone(o.rgb, 0.8, 0.45) if o.rgb[2] < 150 else (196, 160, 110)
        c.poly([(mid - 5, top), (mid + 5, top), (mid + 18, back), (mid + 9, back)], tape, edge=0.85)
        c.rect(mid - 5, top, mid + 5, top + 17, tape, edge=0.85)
    c.rect(13, 76, 30, 89, (240, 240, 236), edge=0.7)
    for row in (79, 82, 85):
        c.line([(15, row), (27, row)], (70, 70, 70), 1.0, rim=1)
    c.poly([(right - 14, 88), (right - 9, 78), (right - 4, 88)], tone(o.rgb, 0.42), edge=1)
    if o.state == "torn":
        hole = [(22, 60), (30, 51), (37, 55), (46, 45), (56, 54), (62, 50), (66, 64), (58, 70), (50, 82), (42, 73)]
        if o.variant == 1:
            hole = [(x, y + 8) for x, y in hole]
        c.poly(hole, tone(o.rgb, 0.5, 0.62), "cardboard", edge=0.9)
        cx, cy = (sum(v) / len(hole) for v in zip(*hole, strict=True))
        c.poly([(cx + (x - cx) * 0.76, cy + (y - cy) * 0.72) for x, y in hole], DARK, edge=1)
        c.poly([hole[5], hole[6], hole[7], (80, 76 if o.variant == 1 else 68)], tone(o.rgb, 1.15), "cardboard")


def crate(c: Canvas, o: Look) -> None:
    m, broken = o.material, o.state == "broken"
    top = (36, 28, 44)[o.variant]
    c.poly([(76, top), (93, top - 13), (93, 82), (76, 95)], tone(o.rgb, 0.58), m, "down")
    c.poly([(6, top), (76, top), (93, top - 13), (25, top - 13)], tone(o.rgb, 0.26), edge=1)
    c.poly([(25, top - 13), (93, top - 13), (92, top - 9), (24, top - 9)], tone(o.rgb, 1.1), m)
    for end in (80, 88):
        c.line([(end, top + 2), (end, 90 - (end - 76) * 0.7)], tone(o.rgb, 0.34), 1.6, rim=1)
    c.rect(6, top, 76, 95, tone(o.rgb, 0.24), edge=1)
    rows = 4 if m == "wood" else 3
    pitch = (95 - top) / rows
    for row in range(rows):
        y = top + row * pitch
        if m == "wood":
            if broken and row == 1:
                c.poly([(6, y + 1), (30, y + 1), (36, y + 6), (28, y + pitch * 0.8), (6, y + pitch * 0.8)], o.rgb, m)
                c.poly([(72, y - 2), (79, y + 5), (56, y + 34), (46, y + 30), (52, y + 24)], tone(o.rgb, 1.1), m)
                continue
            c.rect(6, y + 0.5, 76, y + pitch * 0.80, tone(o.rgb, (1.08, 0.96, 1.04, 0.92)[row]), m)
        else:
            c.rect(6, y, 76, y + pitch * 0.46, o.rgb, m, "log")
    if m == "wood":
        for x in (6, 66):
            c.rect(x, top - 1, x + 10, 96, tone(o.rgb, 1.12), m, upright=True)
            for row in range(rows):
                c.ellipse(x + 5, top + row * pitch + pitch * 0.4, 1.3, 1.3, (60, 58, 56), edge=1)
    else:
        for x in (6, 18, 30, 46, 58, 69):
            c.rect(x, top, x + 7, 95, tone(o.rgb, 1.06), m, "column")
        c.rect(4, top - 2, 78, top + 9, tone(o.rgb, 1.1), m, "log", radius=3)
        c.rect(32, top + 1, 50, top + 6, DARK, edge=1, radius=2)
        if broken:
            c.poly([(22, 70), (34, 50), (40, 60), (52, 46), (60, 66), (52, 96), (46, 84), (38, 97), (26, 96)], DARK)
            c.poly([(36, 74), (44, 68), (48, 98), (38, 99)], tone(o.rgb, 1.15), m)


def barrel(c: Canvas, o: Look) -> None:
    m = o.material
    half = (28, 31, 25)[o.variant]
    left, right = 50 - half, 50 + half
    c.poly([(left, 14), (right, 14), *arc(50, 89, half, 8, 0, 180)], o.rgb, m, "column")
    if m == "metal":
        for y in (36, 62):
            band = [*arc(50, y, half + 1.5, 8, 180, 0), *arc(50, y + 5, half + 1.5, 8, 0, 180)]
            c.poly(band, tone(o.rgb, 1.1), m, "column", edge=0.45)
        c.poly([*arc(50, 85, half + 1, 8, 180, 0), *arc(50, 89, half + 1, 8, 0, 180)], tone(o.rgb, 0.9), m, "column")
        c.ellipse(50, 14, half + 1, 9, tone(o.rgb, 1.05), m, "column")
        c.ellipse(50, 14.5, half - 4, 6.5, tone(o.rgb, 0.74), m)
        c.ellipse(40, 14, 4.5, 2, STEEL)
        c.ellipse(64, 16, 2.5, 1.2, STEEL)
    else:
        for y in (29, 80):
            c.poly([*arc(50, y, half, 8, 180, 0), *arc(50, y + 2, half, 8, 0, 180)], tone(o.rgb, 0.62), edge=1)
        c.poly([*arc(50, 15, half + 3, 9, 180, 360), *arc(50, 22, half + 3, 9, 0, 180)], (52, 52, 56), m, "column")
        c.ellipse(50, 14, half + 2, 8.5, (78, 78, 82), m, "down")
        c.ellipse(50, 14, half - 9, 4.5, (50, 50, 54), m)
        c.rect(40, 48, 60, 62, tone(o.rgb, 0.9, 0.75), edge=0.8)
        c.poly([(50, 49.5), (56, 60), (44, 60)], (225, 160, 30), edge=0.8)


def pallet(c: Canvas, o: Look) -> None:
    m, broken = o.material, o.state == "broken"
    c.poly([(2, 62), (98, 62), (94, 74), (4, 74)], DARK, edge=1)
    c.rect(2, 82, 98, 88, tone(o.rgb, 0.72), m)
    for x in (2, 42, 82):
        c.rect(x, 66, x + 16, 83, tone(o.rgb, 0.86), m)
        c.rect(x + 2, 69, x + 14, 80, tone(o.rgb, 0.7), m, edge=1)
    slats = 6 if m == "wood" else 8
    for row in range(slats):
        a, b = row / slats, (row + (0.80 if m == "wood" else 0.66)) / slats
        xa, xb, ya, yb = 22 - 20 * a, 22 - 20 * b, 34 + 28 * a, 34 + 28 * b
        if broken and row == slats // 2:
            c.poly([(xa, ya), (34, ya), (42, ya - 7), (32, yb + 3), (xb, yb)], tone(o.rgb, 1.1), m)
            continue
        if broken and row == slats // 2 + 1:
            c.poly([(62, ya - 16), (70, ya - 20), (100 - xb, yb), (84, yb + 3)], tone(o.rgb, 1.18), m)
            continue
        c.poly([(xa, ya), (100 - xa, ya), (100 - xb, yb), (xb, yb)], tone(o.rgb, 0.92 + 0.05 * row), m)
    c.rect(2, 60, 98, 67, tone(o.rgb, 1.02), m)
    if m == "plastic":
        for x in (26, 50, 74):
            c.poly([(x - 2 + (50 - x) * 0.35, 35), (x + 2 + (50 - x) * 0.35, 35), (x + 3, 61), (x - 3, 61)], o.rgb, m)
    elif not broken:
        for x in (9, 50, 91):
            c.ellipse(x, 63.5, 1.4, 1.4, (70, 66, 62), edge=1)


def jerrycan(c: Canvas, o: Look) -> None:
    m = o.material
    left, right = ((14, 80), (20, 76), (10, 84))[o.variant]
    outline = [(left, 34), (left + 9, 25), (right - 20, 25), (right, 42), (right, 90), (right - 5, 96), (left + 5, 96)]
    c.poly([*outline, (left, 91)], o.rgb, m, "column")
    for y in (12, 18) if m == "metal" else (14,):
        c.line([(left + 11, 27), (left + 13, y), (right - 27, y), (right - 25, 27)], tone(o.rgb, 0.92), 6)
    x, y = right - 7, 27
    if o.state == "open":
        c.poly([(x - 9, y + 3), (x + 1, y - 8), (x + 12, y + 3), (x + 3, y + 12)], tone(o.rgb, 0.8), m)
        c.ellipse(x + 6, y - 3, 9, 7, DARK, edge=0.6)
        c.line([(x - 6, y - 3), (x - 10, y - 14)], (50, 50, 52), 2.5)
        c.ellipse(x - 9, y - 17, 8, 7, (60, 60, 64), "plastic", "ball")
    else:
        c.poly([(x - 9, y + 3), (x, y - 7), (x + 11, y + 5), (x + 3, y + 13)], tone(o.rgb, 0.8), m)
        c.poly([(x - 4, y - 5), (x + 4, y - 14), (x + 16, y - 2), (x + 8, y + 6)], (52, 52, 56), "plastic", "ball")
    a, b = left + 10, right - 10
    c.line([(a, 46), (b, 86)], tone(o.rgb, 0.58), 5, rim=0.7)
    c.line([(b, 46), (a, 86)], tone(o.rgb, 0.58), 5, rim=0.7)
    if m == "plastic":
        c.line([(left + 3, 50), (left + 3, 86)], tone(o.rgb, 0.9, 0.55), 2.4, rim=1)


def toolbox(c: Canvas, o: Look) -> None:
    m, trim = o.material, tone((46, 46, 50), 1) if sum(o.rgb) > 200 else (150, 152, 158)
    shift = 14 if o.state == "open" else 0
    if o.state == "open":
        c.poly([(10, 46), (88, 46), (94, 14), (16, 14)], tone(o.rgb, 0.72), m, "down")
        c.poly([(15, 42), (85, 42), (89, 19), (20, 19)], tone(o.rgb, 0.42), m)
        c.line([(40, 14), (42, 7), (66, 7), (68, 14)], trim, 5)
        c.rect(6, 44, 94, 60, DARK, edge=1)
        for x, tint in ((14, (210, 60, 40)), (32, (240, 190, 40)), (74, (60, 120, 200))):
            c.line([(x, 60), (x + 8, 38)], STEEL, 3.4)
            c.line([(x + 4, 50), (x + 10, 34)], tint, 6)
        c.line([(50, 60), (62, 36), (70, 33)], STEEL, 5)
    else:
        c.line([(32, 36), (32, 22), (68, 22), (68, 36)], trim, 7)
        c.poly([(6, 52), (14, 34), (86, 34), (94, 52)], tone(o.rgb, 1.1), m, "log")
    y = 52 + shift * 0.4
    c.rect(4, y, 96, 92, o.rgb, m, "down", radius=3)
    c.rect(4, y, 96, y + 6, tone(o.rgb, 0.75), m, radius=2)
    for x in (22, 68):
        c.rect(x, y - 3, x + 10, y + 13, STEEL, "metal", "column", radius=2)
    if o.variant == 1:
        c.rect(38, y + 12, 62, y + 24, tone(o.rgb, 0.9, 0.7), edge=0.7)
    elif o.variant == 2:
        c.rect(10, 80, 90, 84, trim, edge=0.8)
    for x in (5, 87):
        c.rect(x, 84, x + 8, 93, trim, m, radius=2)


def bucket(c: Canvas, o: Look) -> None:
    m = o.material
    low = (26, 30, 23)[o.variant]
    c.line(arc(50, 32, 38, 27, 180, 360), STEEL if m == "metal" else (90, 90, 94), 2.6)
    if m == "plastic":
        c.line(arc(50, 32, 38, 27, 255, 285, 8), (235, 235, 235), 6)
    c.poly([(11, 32), (89, 32), *arc(50, 88, 50 - low, 8, 0, 180)], o.rgb, m, "column")
    if m == "metal":
        for y, w in ((50, 36), (72, 30)):
            band = [*arc(50, y, w, 8, 180, 0), *arc(50, y + 4, w - 1, 8, 0, 180)]
            c.poly(band, tone(o.rgb, 1.12), m, "column", edge=0.5)
    else:
        c.poly([*arc(50, 35, 40, 10, 180, 0), *arc(50, 41, 39, 10, 0, 180)], tone(o.rgb, 1.12), m, "column")
    c.ellipse(50, 32, 41, 11, tone(o.rgb, 1.1), m, "column")
    c.ellipse(50, 33, 36, 8, tone(o.rgb, 0.34), m, edge=0.8)
    for x in (11, 89):
        c.ellipse(x, 36, 4, 4, (80, 80, 84), "metal", "ball")


def bottle(c: Canvas, o: Look) -> None:
    m = o.material
    glass = m == "glass"
    half = (17, 20, 15)[o.variant]
    left, right, see = 50 - half, 50 + half, 0.80 if glass else 1.0
    neck = 7 if glass else 6
    body = [(50 - neck, 12), (50 + neck, 12), (50 + neck, 30), *arc(right - 8, 47, 8, 11, -80, 0, 8)]
    body += [
        *arc(right - 5, 93, 5, 4, 0, 90, 6),
        *arc(left + 5, 93, 5, 4, 90, 180, 6),
        *arc(left + 8, 47, 8, 11, 180, 260, 8),
    ]
    body.append((50 - neck, 30))
    c.poly(body, o.rgb, m, "column", opacity=see)
    if glass:
        c.poly(
            [(left + 3, 66), (right - 3, 66), (right - 3, 92), (left + 3, 92)], tone(o.rgb, 0.55), opacity=0.5, edge=1
        )
        c.line([(left + 5, 50), (left + 5, 88)], (255, 255, 255), 2.6, rim=1)
        c.line([(right - 4, 52), (right - 4, 84)], tone(o.rgb, 1, 0.5), 1.6, rim=1)
        c.rect(50 - neck - 1, 8, 50 + neck + 1, 15, (212, 180, 80), "metal", "column")
    else:
        for y in (54, 88):
            c.line([(left, y), (right, y)], tone(o.rgb, 0.6), 1.6, rim=1)
        c.rect(50 - neck - 3, 5, 50 + neck + 3, 17, (60, 60, 66), m, "column", radius=2)
    c.rect(left, 60, right, 78, (240, 236, 222), "cardboard", "column", edge=0.8)
    c.rect(left, 66, right, 71, tone(o.rgb, 0.8), "cardboard", "column", edge=1)
    if o.state == "broken":
        c.erase([(0, 0), (100, 0), (100, 44), (right, 56), (58, 40), (52, 52), (44, 36), (38, 50), (left, 34), (0, 36)])
        for x, y in ((20, 95), (76, 94), (86, 96)):
            c.poly([(x, y - 9), (x + 7, y), (x - 6, y + 2)], tone(o.rgb, 1.1, 0.3), m, opacity=0.85)


def sack(c: Canvas, o: Look) -> None:
    m = o.material
    wide = (0, 6, -5)[o.variant]
    body = [(42, 24), (58, 24), (74, 36), (86 + wide, 60), (88 + wide, 84), (80, 95), (50, 97), (20, 95)]
    body += [(12 - wide, 84), (14 - wide, 60), (26, 36)]
    c.poly([(36, 6), (44, 11), (50, 5), (57, 11), (65, 6), (58, 24), (42, 24)], tone(o.rgb, 1.08), m, "column")
    c.poly(body, o.rgb, m, "ball")
    for a, b in (
        ((44, 26), (30, 52)),
        ((50, 27), (50, 46)),
        ((56, 26), (70, 54)),
        ((18, 82), (30, 74)),
        ((82, 82), (70, 76)),
    ):
        c.line([a, b], tone(o.rgb, 0.6), 2.0, rim=1)
    c.rect(39, 21, 61, 27, (150, 40, 40) if o.rgb[0] < 160 else (70, 60, 50), "fabric", "column", radius=2)
    if m == "fabric":
        c.line(arc(50, 70, 18, 12, 0, 360), tone(o.rgb, 0.5), 2.4, rim=1)
        c.line([(40, 70), (60, 70)], tone(o.rgb, 0.5), 3, rim=1)
    else:
        c.poly([(20, 60), (80, 60), (82, 66), (18, 66)], tone(o.rgb, 0.55), m)
        c.poly([(26, 42), (34, 38), (24, 62), (19, 62)], (255, 255, 255), opacity=0.55, edge=1)
    if o.state == "torn":
        c.poly([(52, 54), (60, 60), (70, 56), (76, 72), (72, 92), (60, 84), (54, 72)], (62, 46, 32), edge=0.6)
        c.poly(
            [(58, 72), (66, 66), (72, 74), (84, 90), (98, 97), (46, 98), (56, 88)], (226, 196, 130), "rubber", "down"
        )
