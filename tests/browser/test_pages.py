"""The demo's pages in a real Chromium: what a visitor does, and that nothing is asked of the network."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from distill.ontology import Ontology
from distill.prelabel import prelabel
from retrieval.archive import Archive
from retrieval.feedback import Feedback
from retrieval.milvus import MilvusArchive
from retrieval.stores import create_archive
from serve.app import create_app
from serve.audit import Audit
from serve.keys import Keys
from serve.middleware import COOKIE
from serve.reviewing import ReviewJob
from serve.server import running
from tests.distill.painted import CLASSES, DenseBlobs, painted, remember
from tests.serve.conftest import (
    ColourDetector,
    ColourEncoder,
    ColourLabeller,
    ColourOpenDetector,
    ColourTalker,
    archive,
    draw,
    pictures,
)

__all__ = ["archive", "pictures"]  # fixtures

if TYPE_CHECKING:
    from playwright import sync_api as playwright
else:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]
SIZES: dict[str, playwright.ViewportSize] = {
    "desktop": {"width": 1280, "height": 860},
    "phone": {"width": 390, "height": 844},
}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> ReviewJob:
    """A labelling job of painted discs."""
    folder = tmp_path_factory.mktemp("job")
    gold, hidden = painted(folder / "gold", 30, 1), painted(folder / "hidden", 24, 2)
    source = hidden.with_truth([None] * len(hidden), CLASSES)
    prelabel(source, Ontology.of(CLASSES), DenseBlobs(), gold, remember(gold), folder / "out")
    return ReviewJob(folder / "out", gold)


@pytest.fixture(scope="module")
def url(archive: Archive, job: ReviewJob) -> Iterator[str]:
    app = create_app(
        archive=archive,
        encoder=ColourEncoder(),
        detector=ColourDetector(),
        open_detector=ColourOpenDetector(),
        vlm=ColourTalker(),
        labeller=ColourLabeller(),  # pyright: ignore[reportArgumentType]
        review=job,
        demo=True,
    )
    with running(app) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(params=["desktop", "phone"])
def page(request: pytest.FixtureRequest, browser: playwright.Browser, url: str) -> Iterator[playwright.Page]:
    """A page that fails the test when it asks another host, gets an error, or is wider than the screen."""
    context = browser.new_context(viewport=SIZES[request.param], color_scheme="dark")
    context.set_default_timeout(120_000)  # ms; a browser on a busy machine
    page = context.new_page()
    wrong: list[str] = []
    page.on("request", lambda asked: None if asked.url.startswith((url, "data:", "blob:")) else wrong.append(asked.url))
    page.on("response", lambda answer: wrong.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    yield page
    assert wrong == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    context.close()


def test_search_by_words_filter_and_picture(page: playwright.Page, url: str) -> None:
    page.goto(url)
    page.wait_for_selector("#fv-results [data-id]")
    page.fill("#fv-words textarea, #fv-words input", "a red box")
    page.keyboard.press("Enter")
    page.wait_for_selector("#fv-results .fv-score b")
    ids = page.eval_on_selector_all("#fv-results .fv-card > [data-id]", "all => all.map(one => one.dataset.id)")
    colours = [page.request.get(f"{url}/v1/items/{id}").json()["uri"].rpartition("/")[2] for id in ids]
    assert [name.split("-")[0] for name in colours[:3]] == ["red"] * 3
    similarities = [float(text) for text in page.locator("#fv-results .fv-score b").all_inner_texts()]
    assert similarities == sorted(similarities, reverse=True)
    page.wait_for_function("[...document.querySelectorAll('#fv-results img')][0].naturalWidth > 0")

    page.get_by_text("Refine").click()
    page.fill("#fv-filter textarea, #fv-filter input", "camera = 'north' AND hour >= 4")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('#fv-results .fv-card').length === 2")

    page.fill("#fv-filter textarea, #fv-filter input", "kamera = 1")
    page.keyboard.press("Enter")
    assert "kamera" in page.locator(".fv-problem").inner_text()

    page.fill("#fv-filter textarea, #fv-filter input", "")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('#fv-results .fv-card').length === 12")
    page.locator("#fv-results .fv-card > [data-id]").nth(0).click()
    page.get_by_text("Like this picture.").wait_for()
    page.wait_for_function("document.querySelector('#fv-results .fv-score b').innerText === '1.000'")


def test_search_minus_marks_and_the_way_back(page: playwright.Page, url: str, archive: Archive) -> None:
    page.goto(f"{url}/?q=red+blue&not=yellow&k=6")
    page.wait_for_selector("#fv-results .fv-score b")
    assert page.input_value("#fv-words textarea, #fv-words input") == "red blue"
    assert page.input_value("#fv-minus textarea, #fv-minus input") == "yellow"
    found = page.locator("#fv-results .fv-card")
    assert found.count() == 6
    page.get_by_text("Show more").click()
    page.wait_for_function("document.querySelectorAll('#fv-results .fv-card').length === 12")

    page.fill("#fv-minus textarea, #fv-minus input", "blue")
    page.keyboard.press("Enter")
    page.wait_for_function("location.search === '?q=red+blue&not=blue&k=6'")
    page.wait_for_function("document.querySelectorAll('#fv-results .fv-card').length === 6")
    first = found.first.locator("> [data-id]").get_attribute("data-id") or ""
    found.first.locator("[data-do=wrong]").click()
    assert found.first.locator("[data-do=wrong]").get_attribute("aria-pressed") == "true"
    page.get_by_text("0 right, 1 wrong").wait_for()
    judged = {(one.text, one.id): one.relevant for one in Feedback(archive.path / "feedback.sqlite").read()}
    assert judged["red blue", first] is False
    page.get_by_text("Search again").click()
    page.wait_for_function("id => location.search.endsWith(`wrong=${id}`)", arg=first)
    found.first.locator("summary").click()
    assert "not text 'blue'" in found.first.inner_text()

    page.go_back()
    page.wait_for_function("!location.search.includes('wrong')")
    page.go_back()
    page.wait_for_function("document.querySelector('#fv-minus textarea, #fv-minus input')?.value === 'yellow'")
    page.wait_for_function("document.querySelectorAll('#fv-results .fv-card').length === 6")


def _place(piece: playwright.Locator) -> playwright.FloatRect:
    """Where it is on the screen, once it is there."""
    piece.scroll_into_view_if_needed()
    place = piece.bounding_box()
    assert place is not None
    return place


def test_search_with_a_part_of_a_picture(page: playwright.Page, url: str, tmp_path: Path) -> None:
    draw(("red", (0, 0, 32, 48)), ("blue", (32, 0, 64, 48))).resize((320, 240), 0).save(tmp_path / "both.png")
    page.goto(url)
    page.wait_for_selector("#fv-results [data-id]")
    page.get_by_text("Refine, or").click()
    page.set_input_files("#fv-image input[type=file]", tmp_path / "both.png")
    page.get_by_text("Like this picture.").wait_for()
    page.wait_for_function("document.querySelector('#fv-query [data-region] img').naturalWidth > 0")
    for start, end, colour in ((0.55, 0.95, "blue"), (0.05, 0.45, "red")):
        picture = page.locator("#fv-query [data-region]")
        place = _place(picture)
        page.mouse.move(place["x"] + start * place["width"], place["y"] + 0.1 * place["height"])
        page.mouse.down()
        page.mouse.move(place["x"] + end * place["width"], place["y"] + 0.9 * place["height"], steps=4)
        page.mouse.up()
        page.get_by_text("Like the marked part").wait_for()
        page.wait_for_function(
            """async colour => {
              const id = document.querySelector('#fv-results .fv-card > [data-id]').dataset.id;
              return (await (await fetch(`/v1/items/${id}`)).json()).uri.includes(colour);
            }""",
            arg=colour,
        )
    page.get_by_text("Without the picture").click()
    page.get_by_text("a look around").wait_for()


def test_detect_with_student_and_teacher_and_move_the_threshold(
    page: playwright.Page, url: str, tmp_path: Path
) -> None:
    scene = draw(("red", (4, 6, 20, 30)), ("blue", (30, 10, 60, 40)))
    for x in range(30, 60, 2):
        scene.paste((128, 128, 128), (x, 12, x + 1, 40))  # thins blue out to a lower score
    scene.save(tmp_path / "scene.png")
    page.goto(f"{url}/detect")
    page.set_input_files("#fv-image input[type=file]", tmp_path / "scene.png")
    page.wait_for_function("document.querySelectorAll('#fv-boxes .fv-column table').length === 3")
    titles = page.locator("#fv-boxes h2")
    assert [title.split("\n")[0] for title in titles.all_inner_texts()] == ["Student", "Teacher", "Labeller"]
    assert all(" ms" in title for title in titles.all_inner_texts())
    rows = [page.locator("#fv-boxes .fv-column").nth(n).locator("tbody tr") for n in range(3)]
    for mine in rows[:2]:  # without a name the teacher looks for what the student finds
        assert [re.split(r"\s+", row)[0] for row in mine.all_inner_texts()] == ["red", "blue"]
    assert "probability" in page.locator("#fv-boxes .fv-column").nth(2).inner_text()
    assert "accept" in rows[2].first.inner_text()
    assert page.locator("#fv-boxes svg .tag").count() == 5  # the labeller gives blue half its score
    page.locator("#fv-threshold input[type=number]").fill("0.8")
    page.keyboard.press("Tab")
    page.wait_for_function("document.querySelectorAll('#fv-boxes tbody tr').length === 2")
    assert rows[0].first.inner_text().startswith("red")

    page.fill("#fv-prompts textarea, #fv-prompts input", "something red, a yellow thing")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('#fv-boxes td')[3]?.innerText.startsWith('something red')")
    assert rows[0].first.inner_text().startswith("red")


def test_detect_an_example_of_the_archive(page: playwright.Page, url: str) -> None:
    page.goto(f"{url}/detect")
    page.wait_for_selector("#fv-strip [data-id]")
    page.locator("#fv-strip [data-id]").nth(2).click()
    page.wait_for_function("document.querySelectorAll('#fv-boxes svg .tag').length >= 2")
    assert page.locator("#fv-boxes .fv-column").first.locator("tbody tr").count() == 1
    assert (page.locator("#fv-boxes svg").first.get_attribute("aria-label") or "").startswith("detections: ")


def test_a_file_that_is_no_picture_is_explained(page: playwright.Page, url: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not a picture")
    page.goto(f"{url}/detect")
    page.set_input_files("#fv-image input[type=file]", tmp_path / "a.png")
    assert "not an image" in page.locator(".fv-problem").inner_text()


def test_ask_the_whole_archive_and_one_of_its_pictures(page: playwright.Page, url: str) -> None:
    page.goto(f"{url}/ask")
    page.fill("#fv-words textarea, #fv-words input", "is there something yellow")
    page.keyboard.press("Enter")
    page.wait_for_selector("#fv-talk .fv-answer")
    assert page.locator("#fv-talk .fv-answer > b").inner_text() == "yes"
    cards = page.locator("#fv-talk .fv-card")
    assert cards.count() == 4
    page.wait_for_function("document.querySelector('#fv-talk img').naturalWidth > 0")
    assert "yes" in cards.first.inner_text()

    cards.first.locator("button").click()
    page.wait_for_selector("#fv-boxes svg")
    page.fill("#fv-words textarea, #fv-words input", "which colours are there")
    page.keyboard.press("Enter")
    page.wait_for_selector("#fv-talk li b")
    assert page.locator("#fv-talk li b").inner_text() == "yellow"

    page.get_by_text("The whole archive").click()
    page.wait_for_function("!document.querySelector('#fv-boxes svg')")
    page.get_by_text("Refine", exact=True).click()
    page.fill("#fv-filter textarea, #fv-filter input", "hour > 100")
    page.fill("#fv-words textarea, #fv-words input", "is there something yellow")
    page.keyboard.press("Enter")
    page.get_by_text("No image fits the filter").wait_for()


def test_ask_about_an_upload_and_where_things_are(page: playwright.Page, url: str, tmp_path: Path) -> None:
    draw(("red", (4, 6, 20, 30)), ("blue", (30, 10, 60, 40)), size=(80, 50)).save(tmp_path / "scene.png")
    page.goto(f"{url}/ask")
    page.get_by_text("One picture").click()
    page.wait_for_selector("#fv-boxes svg")  # one of the archive's pictures is there to begin with
    page.locator("#fv-strip [data-id]").nth(1).wait_for()
    page.set_input_files("#fv-image input[type=file]", tmp_path / "scene.png")
    page.wait_for_function("document.querySelector('#fv-boxes svg').viewBox.baseVal.width === 80")
    page.fill("#fv-words textarea, #fv-words input", "which colours are there")
    page.keyboard.press("Enter")
    page.get_by_text("red and blue").wait_for()
    assert page.locator("#fv-boxes svg .tag").count() == 0

    page.fill("#fv-words textarea, #fv-words input", "Where is the blue thing?")
    page.keyboard.press("Enter")
    page.wait_for_selector("#fv-boxes svg .tag")
    assert page.locator("#fv-boxes svg .tag text").all_text_contents() == ["blue thing"]
    assert page.locator("#fv-talk li b").all_inner_texts() == ["here", "red and blue"]

    page.locator("#fv-chips [data-id]").first.click()
    page.wait_for_function("document.querySelectorAll('#fv-talk li').length === 3")
    assert page.locator("#fv-boxes svg .tag").count() == 0
    page.locator("#fv-strip [data-id]").nth(1).click()
    page.wait_for_function("document.querySelectorAll('#fv-talk li').length === 0")


def test_ask_without_a_picture_says_so(page: playwright.Page, url: str, tmp_path: Path) -> None:
    picture = tmp_path / "scene.png"
    draw(("red", (4, 6, 20, 30))).save(picture)
    page.goto(f"{url}/ask")
    page.get_by_text("One picture").click()
    page.wait_for_selector("#fv-boxes svg")
    page.set_input_files("#fv-image input[type=file]", picture)
    page.locator("#fv-image button[aria-label*=lear], #fv-image button[aria-label*=emove]").first.click()
    page.wait_for_selector("#fv-boxes .fv-note")
    page.fill("#fv-words textarea, #fv-words input", "is it red")
    page.keyboard.press("Enter")
    page.wait_for_timeout(1000)
    assert "Choose a picture" in page.locator("#fv-boxes").inner_text()
    assert page.locator("#fv-talk li").count() == 0


def test_review_by_keys_and_by_hand(page: playwright.Page, url: str, job: ReviewJob) -> None:
    before = job.progress.decided
    page.goto(f"{url}/review")
    page.wait_for_selector(".fv-review")

    def number() -> int:
        return page.evaluate("JSON.parse(document.querySelector('.fv-review').dataset.case).case")

    first = job.cases[number()]
    assert job.decision(first) is None
    page.wait_for_function("document.querySelector('.fv-near img').naturalWidth > 0")
    box = job.record(first)["box"]
    page.keyboard.press("2")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("a")
    page.get_by_text(f"{before + 1} of {len(job.cases)} boxes decided").wait_for()
    said = job.decision(first)
    assert said is not None
    assert (said.keep, said.label) == (True, CLASSES[1])
    assert said.place == pytest.approx((box[0] + 1, box[1], box[2] + 1, box[3] - 1), abs=0.01)

    second = job.cases[number()]
    corner = page.locator("[data-corner='11'] circle").last
    at = _place(corner)
    page.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
    page.mouse.down()
    page.mouse.move(at["x"] - 20, at["y"] - 20, steps=4)
    page.mouse.up()
    page.get_by_role("button", name="Accept").click()
    page.get_by_text(f"{before + 2} of {len(job.cases)} boxes decided").wait_for()
    said = job.decision(second)
    assert said is not None
    assert said.place[:2] == pytest.approx(tuple(job.record(second)["box"][:2]), abs=0.01)
    assert said.place[2] < job.record(second)["box"][2]

    third = number()
    page.keyboard.press("r")
    page.get_by_text(f"{before + 3} of {len(job.cases)} boxes decided").wait_for()
    page.keyboard.press("u")
    page.get_by_text(f"{before + 2} of {len(job.cases)} boxes decided").wait_for()
    assert number() == third
    assert job.decision(job.cases[third]) is None


def test_curate_takes_out_only_what_is_confirmed(browser: playwright.Browser, pictures: Path, tmp_path: Path) -> None:
    """By a key that may write; one that may only look is told so, on this page and where it marks a hit."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a", "b"):
        draw(("red", (4, 4, 20, 40))).save(folder / f"{name}.png")
    draw(("blue", (9, 9, 50, 40))).save(folder / "c.png")
    store = Archive.create(tmp_path / "depot", ColourEncoder())
    store.add(folder, ColourEncoder())
    keys = Keys(tmp_path / "keys.sqlite")
    looks, writes = keys.add("looks", ["pages"]), keys.add("writes", ["pages", "write"])
    audit = Audit(tmp_path / "audit.jsonl")
    with running(create_app(archive=store, encoder=ColourEncoder(), keys=keys, audit=audit, demo=True)) as url:
        for secret, left in ((looks, 3), (writes, 2)):
            context = browser.new_context(viewport=SIZES["phone"])
            context.set_default_timeout(120_000)
            context.add_cookies([{"name": COOKIE, "value": secret, "url": url}])
            page = context.new_page()
            page.goto(f"{url}/?q=red")
            page.locator("#fv-results [data-do=right]").first.click()
            page.get_by_text("1 right, 0 wrong").wait_for()
            assert ("may not write" in page.locator("#fv-marks").inner_text()) == (left == 3)

            page.goto(f"{url}/curate")
            page.get_by_text("2 equal files").wait_for()
            page.get_by_role("button", name="Take the copies out").click()
            if left == 3:
                page.get_by_text("This key may look").wait_for()
            else:
                page.get_by_text("Take this picture out").wait_for()
                page.get_by_role("button", name="Leave in").click()
                page.wait_for_function("!document.querySelector('.fv-ask-first')")
                assert len(store) == 3
                page.get_by_role("button", name="Take the copies out").click()
                page.get_by_role("button", name="Take out", exact=True).click()
                page.get_by_text("No picture is there twice").wait_for()
                page.get_by_text("Odd ones out").click()
                page.wait_for_function("document.querySelectorAll('#fv-findings .fv-card').length === 2")
                page.get_by_text("Clusters", exact=True).click()
                page.wait_for_selector("#fv-findings .fv-group img")
            assert len(store) == left
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            context.close()
    assert [one.relevant for one in Feedback(store.path / "feedback.sqlite").read()] == [True]
    lines = [json.loads(line) for line in audit.file.read_text().splitlines()]
    changed = [(line["key"], line["path"], len(line["items"]["depot"])) for line in lines if line["method"] == "PAGE"]
    assert changed == [("writes", "/search/right", 1), ("writes", "/curate/yes", 1)]


@pytest.mark.parametrize("size", list(SIZES))
def test_search_one_of_several_archives(
    browser: playwright.Browser, size: str, archive: Archive, tmp_path: Path
) -> None:
    draw(("red", (0, 0, 20, 20))).save(tmp_path / "night-red.png")
    (tmp_path / "metadata.csv").write_text("file_name,lamp\nnight-red.png,on\n")
    place = f"milvus://{tmp_path}/lite.db/night" if importlib.util.find_spec("milvus_lite") else tmp_path / "night"
    night = create_archive(place, ColourEncoder())
    night.add(tmp_path / "night-red.png", ColourEncoder())
    app = create_app(archive={"depot": archive, "night": night}, encoder=ColourEncoder(), demo=True)
    with running(app) as url:
        page = browser.new_context(viewport=SIZES[size]).new_page()
        page.set_default_timeout(60_000)
        page.goto(f"{url}/?q=red+box&words=red&k=4")
        page.wait_for_function("document.querySelectorAll('#fv-results .fv-card').length === 4")
        page.locator("#fv-archive input").click()
        page.get_by_role("option", name="night").click()
        page.wait_for_function("document.querySelectorAll('#fv-results .fv-card').length === 1")
        page.wait_for_function("[...document.querySelectorAll('#fv-results img')][0].naturalWidth > 0")
        page.wait_for_function("location.search === '?q=red+box&in=night&k=4'")
        assert "lamp" in page.locator("#fv-filter").inner_text()
        assert page.locator("#fv-exact").count() == int(not isinstance(night, MilvusArchive))
        page.locator("#fv-results .fv-card > [data-id]").nth(0).click()
        page.get_by_text("Like this picture.").wait_for()
        page.wait_for_function("document.querySelector('#fv-results .fv-score b').innerText === '1.000'")
        page.wait_for_function("document.querySelector('#fv-query img').naturalWidth > 0")
        page.go_back()
        page.go_back()
        page.wait_for_function("document.querySelectorAll('#fv-results .fv-card').length === 4")
        assert "camera" in page.locator("#fv-filter").inner_text()
        page.goto(f"{url}/?q=red&in=nowhere")
        assert "nowhere" in page.locator(".fv-problem").inner_text()
        page.goto(f"{url}/?q=red&in=night")
        page.wait_for_function("document.querySelector('#fv-archive input')?.value === 'night'")
        page.wait_for_function("document.querySelectorAll('#fv-results .fv-card').length === 1")
