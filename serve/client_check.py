"""A first client: one search, one detection and one embedding over real HTTP, each checked and timed."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import httpx
from fastapi import FastAPI

from evals.speed import latency
from foveal.errors import FovealError
from serve.server import running

if TYPE_CHECKING:
    from PIL.Image import Image

TEXT = "a yellow drone on the floor"


def exercise(app: FastAPI, image: Image, runs: int = 20) -> dict[str, Any]:
    """Start `app` on a free port, use search, detection and embeddings as a client would, and stop it.

    Returns the median milliseconds a request took (`search_ms`, `detect_ms`, `embed_ms`) and how much came back.

    Raises:
        FovealError: a request was not answered with what it asked for.
    """
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    picture = base64.b64encode(buffer.getvalue()).decode()
    with running(app) as url, httpx.Client(base_url=url, timeout=30) as client:

        def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
            answer = client.post(path, json=body)
            if answer.status_code != 200:
                raise FovealError(f"{path} answered {answer.status_code}: {answer.text[:300]}", expected="200")
            return answer.json()

        search = {"text": TEXT, "k": 10}
        detect = {"image": picture, "threshold": 0.3}
        embed = {"input": TEXT, "encoding_format": "float"}
        found = {
            "hits": len(post("/v1/search", search)["hits"]),
            "detections": len(post("/v1/detect", detect)["detections"]),
            "dimension": len(post("/v1/embeddings", embed)["data"][0]["embedding"]),
        }
        times = {
            f"{name}_ms": latency(lambda p=path, b=body: post(p, b), warmup=3, runs=runs)["p50_ms"]
            for name, path, body in (
                ("search", "/v1/search", search),
                ("detect", "/v1/detect", detect),
                ("embed", "/v1/embeddings", embed),
            )
        }
    if not found["hits"] or not found["dimension"]:
        raise FovealError("the server answered without content", received=str(found))
    return {**times, **found}
