"""Questions about rendered views, answered from their truth: what the bundled VLM learns from.

The wordings of counts, presence, colours, states and relations are those of `foveal.worldkit.language.questions`; boxes
are written as LLaVA-1.5 does, x1 y1 x2 y2 as shares of the picture with two decimals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from adapt.pretrain_data import Thing, View
from foveal.worldkit.catalogue import COLOURS, KINDS, SHOWN, STATES
from foveal.worldkit.language import NUMBERS, OPPOSITE, a

Dialogue = tuple[str, str]  # question, answer
DESCRIBE = "describe the picture"
SORTS = ("box", "name", "count", "presence", "look", "relation", "describe")
SHARES = (0.26, 0.16, 0.14, 0.14, 0.16, 0.08, 0.06)


def box_text(box: Sequence[float]) -> str:
    """A box in [0, 1] as LLaVA-1.5 writes it."""
    return "[" + ", ".join(f"{min(max(value, 0.0), 1.0):.2f}" for value in box) + "]"


def draw(view: View, count: int, rng: np.random.Generator) -> list[Dialogue]:
    """Up to `count` different questions about the view, of all sorts that it allows; at least one."""
    if not view.things:
        return [_absent({}, rng)]
    asked: dict[str, str] = {}
    makers = {
        "box": _box,
        "name": _name,
        "count": _count,
        "presence": _presence,
        "look": _look,
        "relation": _relation,
        "describe": lambda things, rng: (DESCRIBE, view.caption),
    }
    for sort in rng.choice(SORTS, 2 * count, p=SHARES).tolist():
        found = makers[sort](view.things, rng)
        if found is not None:
            asked.setdefault(*found)
        if len(asked) == count:
            break
    return list(asked.items()) or [_absent(_kinds(view.things), rng)]


def _pick(items: Sequence[Thing], rng: np.random.Generator) -> Thing:
    return items[int(rng.integers(len(items)))]


def _kinds(things: Sequence[Thing]) -> Counter[str]:
    return Counter(thing.kind for thing in things)


def _box(things: Sequence[Thing], rng: np.random.Generator) -> Dialogue | None:
    kinds, phrases = _kinds(things), Counter(thing.phrase for thing in things)
    names = [(thing.kind, thing) for thing in things if kinds[thing.kind] == 1]
    names += [(thing.phrase, thing) for thing in things if phrases[thing.phrase] == 1]
    if not names:
        return None
    name, thing = names[int(rng.integers(len(names)))]
    return f"where is the {name}", box_text(thing.box)


def _name(things: Sequence[Thing], rng: np.random.Generator) -> Dialogue:
    thing = _pick(things, rng)
    return f"what is at {box_text(thing.box)}", a(thing.phrase)


def _count(things: Sequence[Thing], rng: np.random.Generator) -> Dialogue | None:
    kinds = _kinds(things)
    kind = list(kinds)[int(rng.integers(len(kinds)))]
    what, number = (KINDS[kind].plural, kinds[kind]) if rng.random() < 0.5 else ("things", len(things))
    return (f"how many {what} are there", NUMBERS[number]) if number < len(NUMBERS) else None


def _presence(things: Sequence[Thing], rng: np.random.Generator) -> Dialogue:
    kinds = _kinds(things)
    if rng.random() < 0.5:
        return _absent(kinds, rng)
    return f"is there {a(list(kinds)[int(rng.integers(len(kinds)))])}", "yes"


def _absent(kinds: Counter[str] | dict[str, int], rng: np.random.Generator) -> Dialogue:
    away = [kind for kind in SHOWN["base"] if kind not in kinds]
    return f"is there {a(away[int(rng.integers(len(away)))])}", "no"


def _look(things: Sequence[Thing], rng: np.random.Generator) -> Dialogue | None:
    kinds = _kinds(things)
    single = [thing for thing in things if kinds[thing.kind] == 1]
    if not single:
        return None
    thing = _pick(single, rng)
    colour = [word for word in COLOURS if word in thing.words]
    state = [word for word in STATES if word in thing.words]
    if rng.random() < 0.5 and colour:
        return f"what colour is the {thing.kind}", colour[0]
    return (f"what state is the {thing.kind} in", state[0]) if state else None


def _relation(things: Sequence[Thing], rng: np.random.Generator) -> Dialogue | None:
    kinds = _kinds(things)
    single = [thing for thing in things if kinds[thing.kind] == 1]
    if len(single) < 2:
        return None
    i, j = rng.permutation(len(single))[:2].tolist()
    words = _side(single[i].box, single[j].box)
    if words is None:
        return None
    truth = rng.random() < 0.5
    said = words if truth else OPPOSITE[words]
    return f"is the {single[i].kind} {said} the {single[j].kind}", "yes" if truth else "no"


def _side(p: Sequence[float], q: Sequence[float]) -> str | None:
    """Where box `p` is, seen from `q`, by the rules of `foveal.worldkit.language.relation`; boxes in [0, 1]."""
    dx, dy = ((p[i] + p[i + 2] - q[i] - q[i + 2]) / 2 for i in (0, 1))
    apart_x = max(p[0], q[0]) - min(p[2], q[2])
    apart_y = max(p[1], q[1]) - min(p[3], q[3])
    if apart_x > -0.04 and abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    if apart_y > 0 and abs(dy) > abs(dx):
        return "above" if dy < 0 else "below"
    return None
