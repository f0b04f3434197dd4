from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evals import look, plots
from evals.gates import check
from evals.report import Mark, Report
from foveal.detections import Detections
from foveal.errors import BadInput

NASTY = "<script>alert(1)</script>\"'&$x$"
VOID = {"meta", "img", "br", "link", "hr"}


class Page(HTMLParser):
    """Reads a document, checks that its tags nest, and keeps what a browser might fetch or run."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{tag} has a handler {name}"
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))


def full(picture: Image.Image) -> Report:
    """A report that uses every block, with hostile text wherever text is taken."""
    truth = Detections.build([[4, 4, 20, 30], [10, 8, 60, 40]], 1.0, [0, 1], ["crate", NASTY])
    found = Detections.build([[5, 4, 21, 30]], [0.7], [1], ["crate", NASTY])
    report = Report(NASTY, NASTY, facts=[(NASTY, NASTY)])
    report.prose(f"{NASTY}\n\nsecond")
    report.section(NASTY, NASTY)
    report.figures([(NASTY, NASTY, NASTY, "good"), ("b", "2", "", None)])
    report.table((NASTY, "n"), [(NASTY, 1), (Mark(NASTY, "bad"), 2.5), (None, None), (True, 3)], NASTY)
    report.plot(plots.bars({NASTY: {NASTY: 0.5, "b": 0.7}}), NASTY, NASTY)
    report.plot(plots.timeline([(NASTY, 1.0), ("b", 200.0)]), "t")
    report.section("two")
    report.gallery([(picture, NASTY)])
    report.hits(NASTY, [(picture, 0.31, NASTY), (picture, 0.2, "b")], image=picture, note=NASTY, right=[True, False])
    report.hits("", [], image=picture)
    report.strip(NASTY, [(picture, NASTY, NASTY, "warn"), (picture, "", "b", None)], NASTY)
    report.boxes(picture, {"truth": truth, NASTY: found}, NASTY)
    report.checks(
        check([{"name": NASTY, "metric": "a.b", "op": ">=", "bar": "2 * a.c", "why": NASTY}], {"a": {"b": 1}})
    )
    return report.code(NASTY)


def test_everything_is_escaped_and_nothing_is_fetched(picture: Image.Image) -> None:
    html = full(picture).html()
    page = Page(html)
    assert page.open == []
    assert "script" not in page.tags
    assert page.text.count("<script>alert(1)</script>") > 12, "the text itself must still be readable"
    assert all(link.startswith(("data:image/", "#")) for link in page.links)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert len(page.ids) == len(set(page.ids))
    inner = {link[1:] for link in page.links if link.startswith("#")} | set(re.findall(r"url\(#([^)]+)\)", html))
    assert inner <= set(page.ids)


def test_write_is_whole_and_small(picture: Image.Image, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "report.html"
    large = picture.resize((3000, 2250))
    report = Report("r")
    for _ in range(20):
        report.boxes(large, {"truth": Detections.empty(["a"]), "student": Detections.empty(["a"])})
        report.gallery([(large, "x")])
    report.write(out)
    assert out.stat().st_size < 4_000_000
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_same_input_same_bytes(picture: Image.Image) -> None:
    assert full(picture).html() == full(picture).html()


def test_bad_blocks_are_refused() -> None:
    with pytest.raises(BadInput, match="2 cells"):
        Report("r").table(("a", "b"), [(1, 2), (1,)])
    with pytest.raises(BadInput, match="PNG"):
        Report("r").plot(b"not a png", "caption")


def test_numbers_align_and_round() -> None:
    html = Report("r").table(("name", "value"), [("a", 0.123456), ("b", 12345)]).html()
    assert '<th scope="col" class="n">value</th>' in html
    assert "0.1235" in html
    assert "12,345" in html


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1])
@pytest.mark.parametrize("name", ["ink", "soft", "accent", "good", "warn", "bad"])
@pytest.mark.parametrize("ground", ["paper", "card", "well"])
def test_text_contrast_is_accessible(scheme: int, name: str, ground: str) -> None:
    """WCAG 2 AA for body text: 4.5 to 1."""
    light, dark = sorted((luminance(look.COLOURS[name][scheme]), luminance(look.COLOURS[ground][scheme])), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_every_plot_renders_with_theme_colours() -> None:
    line = np.linspace(0, 1, 20)
    figures = {
        "pr": plots.precision_recall({"a": (1 - line, line), "b": (1 - line**2, line)}),
        "rel": plots.reliability(line, line > 0.5),
        "bars": plots.bars({"m": {"a": 1.0}}, unit="ms"),
        "percent": plots.bars({"m": {"a": 0.5}}, percent=True),
        "curves": plots.curves({"a": (line, line + 1)}, log=True),
        "time": plots.timeline([]),
        "hist": plots.histogram({"a": line, "b": line**2}, x="score", lines={"bar": 0.4}),
    }
    for key, figure in figures.items():
        svg = plots.to_svg(figure, key)
        assert "var(--" in svg
        assert not re.search(r"#[0-9a-fA-F]{6}", svg), f"{key} keeps a fixed colour"


def test_reliability_points_state_the_share_that_was_right() -> None:
    figure = plots.reliability([0.05, 0.05, 0.95, 0.95, 0.95, 0.95], [0, 1, 1, 1, 1, 0])
    points = figure.axes[0].collections[-1].get_offsets()
    assert np.asarray(points) == pytest.approx(np.array([[0.05, 0.5], [0.95, 0.75]]))


def test_box_tags_stay_inside_and_apart() -> None:
    boxes = [[2, 2, 60, 50], [4, 4, 62, 52], [200, 180, 223, 223]]
    svg = look.boxes_svg((224, 224), Detections.build(boxes, [0.9, 0.8, 0.7], [0, 0, 0], ["crate"]), href="data:,")
    number = r"([\d.-]+)"
    rows = re.findall(rf'class="tag"><rect x="{number}" y="{number}" width="{number}" height="{number}"', svg)
    tags = [(float(x), float(y), float(x) + float(w), float(y) + float(h)) for x, y, w, h in rows]
    assert len(tags) == 3
    assert all(x1 >= 0 and y1 >= 0 and x2 <= 224.2 and y2 <= 224.2 for x1, y1, x2, y2 in tags)
    for i, a in enumerate(tags):
        for b in tags[:i]:
            assert min(a[2], b[2]) - max(a[0], b[0]) <= 0.2 or min(a[3], b[3]) - max(a[1], b[1]) <= 0.2
