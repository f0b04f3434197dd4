"""Drawings of tools and devices: lamps, helmets, clocks, fans, gears, wrenches, valves, drones."""

from __future__ import annotations

import math

from foveal.worldkit.canvas import RGB, Canvas, arc, tone
from foveal.worldkit.containers import STEEL, Look


def lamp(c: Canvas, o: Look) -> None:
    m, lit = o.material, o.state == "lit"
    lift = (0, 5, -4)[o.variant]
    c.ellipse(40, 93, 24, 5, tone(o.rgb, 0.8), m, "down")
    c.ellipse(40, 90, 21, 4.5, o.rgb, m, "column")
    arm = STEEL if m == "metal" else tone(o.rgb, 0.9)
    c.line([(40, 88), (22, 52 + lift), (56, 24 + lift)], arm, 4.6)
    c.ellipse(22, 52 + lift, 4.5, 4.5, (60, 60, 64), "metal", "ball")
    if lit:
        c.poly([(52, 36), (90, 30), (100, 86), (30, 86)], (255, 240, 150), "plastic", edge=1, opacity=0.62)
    c.poly([(50, 18), (66, 10), (74, 16), (93, 34), (54, 46)], o.rgb, m, "column")
    if lit:
        c.ellipse(74, 40, 20, 6.5, (255, 250, 205), edge=1)
    else:
        c.ellipse(74, 40, 20, 6, tone(o.rgb, 0.34), edge=0.7)
        c.ellipse(74, 40, 7, 4, (205, 205, 196), "glass")
    c.ellipse(56, 22 + lift * 0.5, 4, 4, (60, 60, 64), "metal", "ball")


def helmet(c: Canvas, o: Look) -> None:
    m = o.material
    c.line([(24, 74), (30, 92), (58, 94), (70, 76)], (60, 60, 64), 2.2)
    c.poly([*arc(48, 70, 38, 48, 180, 360), (86, 74), (10, 74)], o.rgb, m, "ball")
    c.poly([(4, 74), (10, 66), (84, 66), (99, 76), (97, 81), (60, 79), (8, 81)], tone(o.rgb, 0.9), m, "down")
    for x, bend in ((34, -9), (48, 0), (62, 9)) if o.variant != 1 else ((48, 0),):
        c.line([(x + bend, 66), (x, 40), (48 + (x - 48) * 0.5, 23)], tone(o.rgb, 0.66), 3.4, rim=0.8)
    if o.variant == 2:
        c.rect(70, 44, 84, 56, (248, 244, 200), "glass", radius=3)
        c.line([(12, 58), (84, 50)], (50, 50, 54), 3)
    else:
        c.ellipse(48, 54, 6, 6, tone(o.rgb, 0.55), edge=0.8)


def clock(c: Canvas, o: Look) -> None:
    m = o.material
    c.ellipse(50, 50, 45, 45, o.rgb, m, "ball")
    c.ellipse(50, 50, 36, 36, (244, 243, 236), "cardboard", edge=0.6)
    for hour in range(12):
        a = math.radians(hour * 30)
        near = 26 if hour % 3 == 0 else 30
        ends = [(50 + r * math.cos(a), 50 + r * math.sin(a)) for r in (near, 34)]
        c.line(ends, (30, 30, 34), 3.4 if hour % 3 == 0 else 1.8, rim=1)
    for turn, reach, width in (
        ((200, 320, 30)[o.variant], 18, 5.0),
        ((280, 60, 150)[o.variant], 28, 3.2),
        ((40, 200, 300)[o.variant], 30, 1.4),
    ):
        a = math.radians(turn)
        tip = (50 + reach * math.cos(a), 50 + reach * math.sin(a))
        c.line([(50, 50), tip], (200, 30, 30) if width < 2 else (24, 24, 28), width, rim=1)
    c.ellipse(50, 50, 3.4, 3.4, (30, 30, 34), edge=1)
    if o.state != "cracked":
        c.poly(arc(40, 36, 20, 12, 170, 300), (255, 255, 255), edge=1, opacity=0.5)


def fan(c: Canvas, o: Look) -> None:
    m = o.material
    c.rect(46, 70, 54, 92, tone(o.rgb, 0.8), m, "column")
    c.ellipse(50, 93, 25, 5, tone(o.rgb, 0.85), m, "column")
    c.ellipse(50, 42, 39, 39, (30, 32, 36), edge=1, opacity=0.62)
    blades = (3, 4, 5)[o.variant]
    for i in range(blades):
        if o.state == "broken" and i == 0:
            continue
        start = math.radians(i * 360 / blades - 70)
        shape: list[tuple[float, float]] = [(50, 42)]
        for step, reach in ((-0.1, 14), (-0.18, 30), (0.12, 36), (0.55, 34), (0.62, 18)):
            a = start + step * (6.2 / blades)
            shape.append((50 + reach * math.cos(a), 42 + reach * math.sin(a)))
        c.poly(shape, tone(o.rgb, 1.04), m, "ball", edge=0.45)
    for reach in (15, 27):
        c.line(arc(50, 42, reach, reach, 0, 360), (196, 198, 204), 1.2, rim=1)
    for i in range(12):
        a = math.radians(i * 30)
        near, far = ((50 + r * math.cos(a), 42 + r * math.sin(a)) for r in (9, 38))
        if not (o.state == "broken" and i in (9, 10, 11)):
            c.line([near, far], (190, 192, 198), 1.1, rim=1)
    c.line(arc(50, 42, 39, 39, 0, 360), tone(o.rgb, 0.95), 5)
    c.ellipse(50, 42, 8, 8, tone(o.rgb, 0.9), m, "ball")


def gear(c: Canvas, o: Look) -> None:
    teeth = (10, 12, 8)[o.variant]
    gone = {1, 2, 3} if o.state == "broken" else set[int]()
    ring: list[tuple[float, float]] = []
    for i in range(teeth):
        for step, reach in ((0.0, 36), (0.12, 47), (0.48, 47), (0.60, 36)):
            a = 2 * math.pi * (i + step) / teeth - math.pi / 2
            r = reach if i not in gone or reach < 40 else 33 - 4 * (i % 2)
            ring.append((50 + r * math.cos(a), 50 + r * math.sin(a)))
    c.poly([(x + 3, y + 3) for x, y in ring], tone(o.rgb, 0.45), o.material)
    c.poly(ring, o.rgb, o.material, "ball", edge=0.45)
    c.line(arc(50, 50, 30, 30, 0, 360), tone(o.rgb, 0.6), 2.2, rim=1)
    holes = (5, 6, 4)[o.variant]
    for i in range(holes):
        a = 2 * math.pi * i / holes
        c.ellipse(50 + 21 * math.cos(a), 50 + 21 * math.sin(a), 6, 6, tone(o.rgb, 0.25), edge=1)
        c.erase(arc(50.6 + 21 * math.cos(a), 50.6 + 21 * math.sin(a), 5, 5, 0, 360))
    c.ellipse(50, 50, 13, 13, tone(o.rgb, 1.12), o.material, "ball")
    c.ellipse(50, 50, 7, 7, tone(o.rgb, 0.3), edge=1)
    c.erase(arc(50.5, 50.5, 6, 6, 0, 360))


def wrench(c: Canvas, o: Look) -> None:
    c.line([(24, 78), (74, 26)], o.rgb, (15, 13, 17)[o.variant], rim=0.55)
    c.line([(32, 70), (66, 34)], tone(o.rgb, 0.62), 4.6, rim=0.8)
    c.ellipse(77, 23, 18, 18, o.rgb, "metal", "ball")
    c.ellipse(21, 81, 15, 15, o.rgb, "metal", "ball")
    c.erase([(76, 12), (86, 22), (104, 8), (92, -6)])
    c.erase([(72, 16), (80, 12), (90, 22), (86, 28), (77, 26)])
    if o.variant == 1:
        c.erase([(26, 84), (18, 76), (-2, 90), (10, 104)])
        c.erase([(28, 80), (20, 74), (13, 82), (20, 90)])
    else:
        c.ellipse(21, 81, 8.5, 8.5, tone(o.rgb, 0.35), edge=1)
        c.erase(arc(21.5, 81.5, 7.5, 7.5, 0, 360, 7))


def valve(c: Canvas, o: Look) -> None:
    m = o.material
    c.rect(2, 64, 98, 84, tone(o.rgb, 0.86), m, "log")
    for x in (2, 88, 22, 68):
        c.rect(x, 55, x + 9, 93, o.rgb, m, "log", radius=1.5)
        for y in (59, 72, 87):
            c.ellipse(x + 4.5, y, 2, 2, (70, 70, 74), "metal", edge=1)
    c.ellipse(50, 73, 21, 19, o.rgb, m, "ball")
    c.poly([(40, 60), (60, 60), (56, 42), (44, 42)], tone(o.rgb, 0.9), m, "column")
    c.rect(36, 52, 64, 59, tone(o.rgb, 0.8), m, "column", radius=1)
    c.rect(47, 20, 53, 46, STEEL, "metal", "column")
    wheel: RGB = (204, 44, 36) if o.rgb[0] < 150 else (48, 50, 56)
    flat = (11, 14, 9)[o.variant]
    c.line([(20, 22), (80, 22)], tone(wheel, 0.85), 3.4)
    c.line([(50 - 18, 22 - flat * 0.72), (50 + 18, 22 + flat * 0.72)], tone(wheel, 0.85), 3.2)
    c.line([(50 + 18, 22 - flat * 0.72), (50 - 18, 22 + flat * 0.72)], tone(wheel, 0.85), 3.2)
    c.line(arc(50, 22, 31, flat, 0, 360), wheel, 6)
    c.ellipse(50, 21, 5.5, 4, STEEL, "metal", "ball")


def drone(c: Canvas, o: Look) -> None:
    broken = o.state == "broken"
    arm = tone(o.rgb, 0.72)
    spots = [(14, 38), (86, 38), (26, 24), (74, 24)]
    for i, (x, y) in enumerate(spots):
        if broken and i == 1:
            c.line([(56, 52), (74, 56)], arm, 6)
            c.line([(76, 58), (90, 82)], arm, 5)
            c.ellipse(91, 84, 6, 6, (54, 54, 58), "metal", "ball")
            c.line([(82, 92), (99, 80)], (70, 72, 78), 2.6)
            continue
        c.line([(50, 50), (x, y + 4)], arm, 6 if i < 2 else 4.4)
    for x in (36, 64):
        c.line([(x, 58), (x + (x - 50) * 0.7, 78)], (60, 60, 64), 3)
    for x0, x1 in ((18, 40), (60, 82)):
        c.line([(x0, 79), (x1, 79)], (60, 60, 64), 3.4)
    for i, (x, y) in enumerate(spots):
        if broken and i == 1:
            continue
        c.rect(x - 3.4, y - 3, x + 3.4, y + 7, (54, 54, 58), "metal", "column")
        wide = 14 if i < 2 else 12
        c.ellipse(x, y - 4, wide, 4.4, (120, 126, 134), edge=0.7, opacity=0.66)
        c.line([(x - wide, y - 3), (x + wide, y - 5)], (52, 54, 60), 2.2, rim=1)
    shape = [(28, 50), (38, 40), (62, 40), (72, 50), (66, 62), (34, 62)]
    c.poly(shape, o.rgb, "plastic", "ball")
    c.poly([(36, 44), (64, 44), (60, 49), (40, 49)], tone(o.rgb, 0.45), edge=0.8)
    if o.variant:
        c.rect(30, 52, 70, 55, ((220, 60, 40), (60, 160, 220))[o.variant - 1], edge=1)
    c.ellipse(50, 64, 8, 8, (44, 46, 52), "plastic", "ball")
    c.ellipse(50, 65, 4, 4, (90, 150, 210), "glass", "ball")
    c.ellipse(48.6, 63.4, 1.3, 1.3, (240, 250, 255), edge=1)
