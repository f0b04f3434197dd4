from __future__ import annotations

from html.parser import HTMLParser

import numpy as np

from foveal.detections import Detections
from foveal.errors import BadInput
from retrieval.results import Hit
from serve import fragments

NASTY = "<img src=x onerror=alert(1)>'\" ${1+1} {{value}}"


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_no_text_becomes_markup_or_template() -> None:
    found = Detections.build(np.array([[1, 1, 5, 5]]), [0.5], [0], [NASTY])
    html = "".join(
        [
            fragments.header(NASTY, {"/": NASTY}, [NASTY]),
            fragments.heading(NASTY, NASTY),
            fragments.status([NASTY]),
            fragments.problem(BadInput(NASTY, expected=NASTY, received=NASTY, remedy=NASTY)),
            fragments.note(NASTY),
            fragments.hits(NASTY, [Hit("ab", NASTY, 0.5, {NASTY: NASTY})]),
            fragments.table(found),
            fragments.picture("data:image/webp;base64,AA==", (10, 10), found),
        ]
    )
    for tag, attributes in Tags(html).found:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert tag != "img" or (attributes["src"] or "").startswith("/v1/items/ab/image?")
    assert "${" not in html
    assert "{{" not in html


def test_a_filter_that_leaves_nothing_says_so() -> None:
    assert "Nothing" in fragments.hits("depot", [])
    assert "Nothing" in fragments.table(Detections.empty(["a"]))


def test_meters_are_relative_to_the_best_hit() -> None:
    html = fragments.hits("depot", [Hit("a1", "a", 0.4, {}), Hit("b2", "b", 0.2, {}), Hit("c3", "c", -0.1, {})])
    assert [part.split('"')[0] for part in html.split("--share:")[1:]] == ["100%", "50%", "0%"]
