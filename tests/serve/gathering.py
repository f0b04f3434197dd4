"""Requests that wait for a model together, so that they become one batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from fastapi.testclient import TestClient
from PIL import Image

from foveal.detections import Detections
from tests.serve.conftest import ColourDetector


class Waiting(ColourDetector):
    """Does not answer a batch until it is let."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()

    def detect(self, images: Sequence[Image.Image], threshold: float = 0.05) -> list[Detections]:
        self.go.wait(30)
        return super().detect(images, threshold)


def warm(client: TestClient) -> None:
    """Returns once the server is ready."""
    while client.get("/readyz").status_code != 200:
        time.sleep(0.01)


def together(lane: Any, detector: Waiting, ask: Callable[[], Any], count: int) -> None:
    """Asks once, and `count` times more while that is being worked on: those become one batch."""
    lane.most = count
    detector.go.clear()
    calls = [threading.Thread(target=ask) for _ in range(count + 1)]
    calls[0].start()
    _until(lambda: lane._running is not None and not lane._running.done() and not lane._waiting)
    for call in calls[1:]:
        call.start()
    _until(lambda: len(lane._waiting) == count)
    detector.go.set()
    for call in calls:
        call.join()


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
