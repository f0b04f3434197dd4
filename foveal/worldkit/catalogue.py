"""Which kinds of object exist, how they vary, and which domain shows them."""

from __future__ import annotations

from dataclasses import dataclass

from foveal.worldkit.scene import Domain

WHOLE = "whole"

COLOURS: dict[str, tuple[int, int, int]] = {  # RGB under white light
    "red": (205, 38, 36),
    "orange": (244, 122, 20),
    "yellow": (246, 208, 40),
    "green": (44, 150, 66),
    "blue": (34, 88, 200),
    "purple": (132, 58, 172),
    "white": (236, 236, 232),
    "black": (40, 40, 45),
    "grey": (138, 142, 148),
    "brown": (128, 80, 42),
}
MATERIALS = ("cardboard", "wood", "metal", "plastic", "rubber", "fabric", "glass")
ADJECTIVES = {"wood": "wooden"}  # a material in front of a noun, where the word differs

# Bare board and bare timber are both called brown, but are lighter than brown paint.
RAW: dict[tuple[str, str], tuple[int, int, int]] = {
    ("cardboard", "brown"): (186, 140, 90),
    ("wood", "brown"): (168, 116, 66),
    ("fabric", "brown"): (172, 138, 94),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of object and the ways it varies."""

    name: str
    plural: str
    size: float  # longer side in pixels of a 224-pixel picture, close to the camera
    colours: tuple[str, ...]
    materials: tuple[str, ...]
    states: tuple[str, ...]  # besides whole
    stands: tuple[str, ...]  # of floor, deck (shelf, belt, bench), wall


def _kind(
    name: str, plural: str, size: float, colours: str, materials: str, states: str, stands: str = "floor deck"
) -> Kind:
    split = (tuple(words.split()) for words in (colours, materials, states, stands))
    return Kind(name, plural, size, *split)


_SHARED = (
    _kind("cardboard box", "cardboard boxes", 60, "brown white blue", "cardboard", "open torn"),
    _kind("crate", "crates", 64, "brown red green blue yellow grey", "wood plastic", "broken"),
    _kind("barrel", "barrels", 72, "blue red green yellow black grey", "metal plastic", "dented rusty tipped"),
    _kind("pallet", "pallets", 86, "brown blue black red", "wood plastic", "broken", "floor"),
    _kind("traffic cone", "traffic cones", 60, "orange red yellow green blue", "plastic rubber", "bent tipped"),
    _kind("fire extinguisher", "fire extinguishers", 62, "red yellow blue grey", "metal", "rusty tipped"),
    _kind("jerrycan", "jerrycans", 54, "green red blue white yellow", "plastic metal", "dented open"),
    _kind("tyre", "tyres", 62, "black grey blue red", "rubber", "torn"),
    _kind("toolbox", "toolboxes", 56, "red blue black yellow orange", "metal plastic", "open rusty"),
    _kind("hand truck", "hand trucks", 94, "red blue green orange grey", "metal", "rusty tipped", "floor"),
)
_BASE_ONLY = (
    _kind("bucket", "buckets", 50, "blue red grey green white orange", "plastic metal", "cracked tipped"),
    _kind("bottle", "bottles", 52, "green brown blue white red", "glass plastic", "broken tipped", "deck floor"),
    _kind("lamp", "lamps", 60, "black white red yellow green", "metal plastic", "lit", "deck"),
    _kind("plant pot", "plant pots", 64, "brown white orange black purple", "plastic wood", "empty tipped"),
    _kind("helmet", "helmets", 46, "yellow white red blue orange", "plastic metal", "cracked", "deck wall"),
    _kind("clock", "clocks", 48, "black red blue brown purple", "plastic wood metal", "cracked", "wall deck"),
    _kind("fan", "fans", 62, "white blue green black purple", "plastic metal", "broken", "deck floor"),
    _kind("gear", "gears", 50, "grey brown black yellow purple", "metal plastic", "rusty broken", "deck wall"),
    _kind("wrench", "wrenches", 54, "grey red blue black yellow", "metal", "rusty bent", "deck wall"),
    _kind("sack", "sacks", 64, "brown white blue purple grey", "fabric plastic", "torn"),
    _kind("ladder", "ladders", 100, "brown grey yellow red blue", "wood metal", "broken", "floor"),
    _kind("umbrella", "umbrellas", 66, "red blue purple green black yellow", "fabric", "folded torn", "floor deck"),
)
_SITE_ONLY = (
    _kind("gas cylinder", "gas cylinders", 88, "green grey blue red white", "metal", "rusty tipped", "floor"),
    _kind("cable reel", "cable reels", 68, "brown orange black blue", "wood plastic", "empty"),
    _kind("valve", "valves", 56, "blue red yellow green grey", "metal", "rusty", "deck wall"),
    _kind("drone", "drones", 68, "white black orange yellow", "plastic", "broken"),
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in (*_SHARED, *_BASE_ONLY, *_SITE_ONLY)}
SHOWN: dict[Domain, tuple[str, ...]] = {
    "base": tuple(kind.name for kind in (*_SHARED, *_BASE_ONLY)),
    "site": tuple(kind.name for kind in (*_SHARED, *_SITE_ONLY)),
}
STATES = tuple(dict.fromkeys((WHOLE, *(state for kind in KINDS.values() for state in kind.states))))


def can_be(state: str, material: str) -> bool:
    """Whether something of `material` can be in `state`: only metal rusts."""
    return state != "rusty" or material == "metal"


def body_colour(colour: str, material: str) -> tuple[int, int, int]:
    """RGB of `colour` as `material` shows it."""
    return RAW.get((material, colour), COLOURS[colour])


def phrase(kind: str, colour: str, state: str, material: str | None = None) -> str:
    """ "dented blue barrel", or "dented blue metal barrel" when a material is asked for."""
    words = [state] if state != WHOLE else []
    words.append(colour)
    if material is not None and material not in kind:
        words.append(ADJECTIVES.get(material, material))
    return " ".join([*words, kind])
