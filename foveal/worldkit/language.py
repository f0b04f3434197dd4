"""Plain words about a scene: captions and questions that follow from its truth alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from foveal.worldkit.camera import LEVELS, TONES, Light
from foveal.worldkit.catalogue import ADJECTIVES, COLOURS, KINDS, MATERIALS, SHOWN, STATES, WHOLE, phrase
from foveal.worldkit.scene import Domain, Question, WorldObject
from foveal.worldkit.stage import Placed

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
SETTINGS = {
    "shelf": "a storeroom",
    "loading bay": "a loading bay",
    "conveyor": "an inspection hall",
    "aisle": "a depot aisle",
    "workbench": "a workshop",
}
ON = {
    "shelf": "on the shelf",
    "floor": "on the floor",
    "conveyor belt": "on the conveyor belt",
    "workbench": "on the workbench",
    "wall": "on the wall",
}
RELATIONS = ("left of", "right of", "above", "below", "in front of", "behind")
OPPOSITE: dict[str, str] = dict(
    zip(RELATIONS, ("right of", "left of", "below", "above", "behind", "in front of"), strict=True)
)
_GLUE = ("a an and the in with is are there how many things", "what colour state yes no")


def _vocabulary() -> tuple[str, ...]:
    texts: list[str] = [*_GLUE, *NUMBERS, *SETTINGS.values(), *ON.values(), *RELATIONS, *COLOURS, *STATES]
    texts += [*MATERIALS, *ADJECTIVES.values(), *LEVELS, *TONES, "light"]
    texts += [word for kind in KINDS.values() for word in (kind.name, kind.plural)]
    return tuple(sorted({word for text in texts for word in text.split()}))


VOCABULARY = _vocabulary()  # every word that a caption, a question, an answer or a phrase may use


def a(words: str) -> str:
    """The words behind their article."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def several(words: str, kind: str, count: int) -> str:
    """ "a red crate" or "two red crates"."""
    if count == 1:
        return a(words)
    return f"{NUMBERS[count]} {words.removesuffix(kind)}{KINDS[kind].plural}"


def listing(parts: Sequence[str]) -> str:
    """ "x", "x and y", "x, y and z"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def groups(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Counted noun phrases of (words, kind) pairs, in order of first appearance."""
    return [several(words, kind, count) for (words, kind), count in Counter(pairs).items()]


def relation(first: int, second: int, objects: Sequence[WorldObject], placed: Sequence[Placed]) -> str | None:
    """Where the first object is, seen from the second: only if nobody could dispute it."""
    p, q = objects[first].box, objects[second].box
    size = objects[first].mask.shape[0]
    dx, dy = ((p[i] + p[i + 2] - q[i] - q[i + 2]) / 2 for i in (0, 1))
    apart_x = max(p[0], q[0]) - min(p[2], q[2])
    apart_y = max(p[1], q[1]) - min(p[3], q[3])
    if apart_x > -0.04 * size and abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    if apart_y > 0 and abs(dy) > abs(dx):
        return "above" if dy < 0 else "below"
    nearer = placed[first].depth - placed[second].depth
    if placed[first].surface is placed[second].surface and apart_x < -0.1 * size and abs(nearer) > 0.2:
        return "in front of" if nearer > 0 else "behind"
    return None


def _relations(
    rng: np.random.Generator, objects: Sequence[WorldObject], placed: Sequence[Placed]
) -> list[tuple[int, str, int]]:
    """Relations between objects whose phrases occur once, in random order."""
    once = [i for i, seen in enumerate(objects) if sum(seen.phrase == other.phrase for other in objects) == 1]
    found: list[tuple[int, str, int]] = []
    for i in once:
        for j in once:
            if i != j and (words := relation(i, j, objects, placed)) is not None:
                found.append((i, words, j))
    return [found[int(k)] for k in rng.permutation(len(found))]


def captions(
    rng: np.random.Generator, place: str, light: Light, objects: Sequence[WorldObject], placed: Sequence[Placed]
) -> tuple[str, ...]:
    """Five captions, the most complete first."""
    order = sorted(range(len(objects)), key=lambda i: objects[i].box[0])
    where: dict[str, list[int]] = {}
    for i in order:
        where.setdefault(placed[i].surface.name, []).append(i)
    parts = [
        f"{listing(groups([(objects[i].phrase, objects[i].kind) for i in ids]))} {ON[on]}" for on, ids in where.items()
    ]
    ties = _relations(rng, objects, placed)
    tie = ""
    if ties:
        i, words, j = ties[0]
        tie = f", the {objects[i].phrase} {words} the {objects[j].phrase}"
    scene = SETTINGS[place]
    full = f"{', '.join(parts)}{tie}, {scene} in {light.name}"
    materials = [(phrase(o.kind, o.colour, WHOLE, o.material), o.kind) for o in (objects[i] for i in order)]
    coloured = listing(groups([(f"{objects[i].colour} {objects[i].kind}", objects[i].kind) for i in order]))
    plain = listing(groups([(objects[i].kind, objects[i].kind) for i in order]))
    big = max(objects, key=lambda seen: int(seen.mask.sum()))
    short = f"{a(big.phrase)} in {scene}"
    if ties:
        i, words, j = ties[-1]
        short = f"{a(objects[i].phrase)} {words} {a(objects[j].phrase)}"
    made = listing(groups(materials[:4]))
    return (full, f"{coloured} in {scene}", f"{scene} with {plain}", made, short)


def questions(
    rng: np.random.Generator, domain: Domain, objects: Sequence[WorldObject], placed: Sequence[Placed]
) -> tuple[Question, ...]:
    """Up to eight questions, at least one of each sort the scene allows."""
    kinds = Counter(seen.kind for seen in objects)
    names = list(kinds)
    asked = names[int(rng.integers(len(names)))]
    away = [name for name in SHOWN[domain] if name not in kinds]
    absent = away[int(rng.integers(len(away)))]
    found = [
        Question(f"how many {KINDS[asked].plural} are there", NUMBERS[kinds[asked]], "count"),
        Question("how many things are there", NUMBERS[len(objects)], "count"),
        Question(f"is there {a(asked)}", "yes", "presence"),
        Question(f"is there {a(absent)}", "no", "presence"),
    ]
    single = [seen for seen in objects if kinds[seen.kind] == 1]
    if single:
        one = single[int(rng.integers(len(single)))]
        found.append(Question(f"what colour is the {one.kind}", one.colour, "colour"))
        choices = [seen for seen in single if KINDS[seen.kind].states]
        one = choices[int(rng.integers(len(choices)))]
        found.append(Question(f"what state is the {one.kind} in", one.state, "state"))
    pairs = [(i, words, j) for i, words, j in _relations(rng, objects, placed) if words in RELATIONS[:4]]
    pairs = [(i, words, j) for i, words, j in pairs if kinds[objects[i].kind] == kinds[objects[j].kind] == 1]
    for truth, (i, words, j) in zip((True, False), pairs, strict=False):
        said = words if truth else OPPOSITE[words]
        text = f"is the {objects[i].kind} {said} the {objects[j].kind}"
        found.append(Question(text, "yes" if truth else "no", "relation"))
    return tuple(found)
