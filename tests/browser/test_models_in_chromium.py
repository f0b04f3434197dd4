"""The page of the models in a real Chromium: read at two widths, light and dark, by keys that may and may not."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from foveal import artifacts
from foveal.registry import Registry
from serve import versions
from serve.app import create_app
from serve.keys import Keys
from serve.middleware import COOKIE
from serve.server import running
from serve.versions import Rollout
from tests.browser.test_pages import CHROMIUM, SIZES, browser
from tests.serve.conftest import ColourEncoder
from tests.serve.test_versions import PICTURE, Numbered

__all__ = ["browser"]  # fixture

if TYPE_CHECKING:
    from playwright import sync_api as playwright
else:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]
# Texts whose colour stands out from what lies behind them by less than 4.5:1 (WCAG 2, 1.4.3).
FAINT = """() => {
  const parts = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => parts(colour).slice(0, 3).map(one => one / 255)
    .map(one => one <= .03928 ? one / 12.92 : ((one + .055) / 1.055) ** 2.4)
    .reduce((sum, one, at) => sum + one * [.2126, .7152, .0722][at], 0);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor, [, , , alpha = 1] = parts(colour);
      if (alpha > 0) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  return [...document.querySelectorAll('#fv-models *')]
    .filter(node => [...node.childNodes].some(one => one.nodeType === 3 && one.data.trim()))
    .map(node => {
      const [dark, bright] = [light(getComputedStyle(node).color), light(behind(node))].sort((a, b) => a - b);
      return [(bright + .05) / (dark + .05), node.textContent.slice(0, 40)];
    })
    .filter(([ratio]) => ratio < 4.5);
}"""


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setattr(versions, "FOLLOW_SECONDS", 0.02)
    store = Registry(tmp_path / "registry")
    for number in (1, 2, 3):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        (folder / "model.onnx").write_text(f"weights {number}")
        artifacts.seal(folder, name="colours", kind="detector", metrics={"gate_passed": True} if number < 3 else {})
        store.register(folder)
    store.promote("colours", 1)
    return store


def test_versions_are_seen_as_they_come_and_go(browser: playwright.Browser, registry: Registry, tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.sqlite")
    looks, figures = keys.add("looks", ["pages"]), keys.add("figures", ["pages", "metrics", "detect"])
    rollout = Rollout(registry.root, "colours", share=0.5, load=lambda number: Numbered(number, blind=number == 3))
    with running(create_app(detector=rollout, encoder=ColourEncoder(), keys=keys, demo=True)) as url:
        client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {figures}"})

        def detect(times: int) -> None:
            for _ in range(times):
                assert client.post("/v1/detect", files={"image": PICTURE}).status_code == 200

        def opened(secret: str, size: str, scheme: str) -> playwright.Page:
            context = browser.new_context(viewport=SIZES[size], permissions=["clipboard-read", "clipboard-write"])
            context.set_default_timeout(120_000)
            context.add_cookies([{"name": COOKIE, "value": secret, "url": url}])
            page = context.new_page()
            page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on(
                "request", lambda one: None if one.url.startswith((url, "data:", "blob:")) else wrong.append(one.url)
            )
            page.goto(f"{url}/models")
            page.wait_for_selector(".fv-model")
            return page

        wrong: list[str] = []
        registry.promote("colours", 2, "canary")
        registry.promote("colours", 3, "shadow")
        deadline = time.monotonic() + 30
        while len(rollout.versions) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        detect(20)
        for size in SIZES:
            for scheme in ("light", "dark"):
                page = opened(figures, size, scheme)
                roles = page.locator(".fv-versions tbody tr .fv-role").all_inner_texts()
                assert roles == ["production", "canary", "shadow"]
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
                inside = page.evaluate(
                    "(({scrollWidth, clientWidth}) => scrollWidth > clientWidth)(document.querySelector('.fv-scroll'))"
                )
                assert inside == (size == "phone")
                assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
                assert page.evaluate(FAINT) == []
                page.context.close()

        page = opened(figures, "phone", "dark")
        page.locator(".fv-command", has_text="Put version 2").get_by_role("button").click()
        line = f"foveal registry promote colours 2 --registry {registry.root}"
        assert page.evaluate("navigator.clipboard.readText()") == line
        page.evaluate("window.box = document.querySelector('.fv-scroll'); box.scrollLeft = 60")
        registry.withdraw("colours", "canary", reason="it is slow")
        page.get_by_text("version 2 was withdrawn as canary: it is slow").wait_for()
        assert page.locator(".fv-versions tbody tr").count() == 2
        assert page.evaluate("box.isConnected && box.scrollLeft") == 60  # what stays is not drawn anew
        page.context.close()

        page = opened(looks, "desktop", "light")
        page.get_by_text("the verb metrics").wait_for()
        assert page.locator(".fv-figures, .fv-versions, .fv-command").count() == 0
        assert "artifact:colours@production" in page.locator("#fv-models").inner_text()
        page.context.close()
        assert wrong == []
