from __future__ import annotations

from html.parser import HTMLParser

import numpy as np

from foveal.detections import Detections
from foveal.errors import BadInput
from retrieval.results import Contribution, Hit
from serve import fragments
from serve.demo import curate_fragments, review_fragments, search_fragments

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
            search_fragments.hits(NASTY, [Hit("ab", NASTY, 0.5, {NASTY: NASTY})]),
            search_fragments.hits(
                "depot",
                [Hit("ab", NASTY, 0.5, {NASTY: NASTY}, 0.5, (Contribution(NASTY, 1, 0.5),), (NASTY,), 2)],
                marks={"ab": True},
                more=True,
            ),
            search_fragments.nothing(NASTY),
            search_fragments.marks(1, 2, changed=True, note=NASTY),
            search_fragments.link("?q=" + NASTY),
            fragments.citation("depot", "ab", NASTY, supports=True, share=0.5),
            fragments.answer(NASTY, NASTY, NASTY, [], sure=False),
            fragments.column(NASTY, NASTY, NASTY, "", ""),
            curate_fragments.cluster(NASTY, ["ab"], [NASTY], 3, 0.5),
            review_fragments.panel(
                0,
                NASTY,
                "data:image/webp;base64,AA==",
                (10, 10),
                (1, 1, 5, 5),
                NASTY,
                {"label": NASTY, "probability": 0.5, "model": NASTY, "score": 0.5},
                NASTY,
                [NASTY],
                found,
                [review_fragments.Near(NASTY, 0.5, True, None)],
            ),
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
    assert "Nothing" in search_fragments.hits("depot", [])
    assert "Nothing" in fragments.table(Detections.empty(["a"]))


def test_meters_are_relative_to_the_best_hit() -> None:
    html = search_fragments.hits("depot", [Hit("a1", "a", 0.4, {}), Hit("b2", "b", 0.2, {}), Hit("c3", "c", -0.1, {})])
    assert [part.split('"')[0] for part in html.split("--share:")[1:]] == ["100%", "50%", "0%"]
