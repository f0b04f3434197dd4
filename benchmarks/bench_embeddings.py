"""Embeddings over HTTP, by `foveal serve` and by infinity, of the same CLIP in transformers' form.

    python3 -m venv peer && peer/bin/pip install 'infinity-emb[server,torch,vision]' 'transformers<4.50' aiohttp
    python -m benchmarks.bench_embeddings --infinity peer/bin/infinity_emb --out runs/embeddings.json

The model is a CLIP ViT-B/32 with random weights, both its towers at their full size; a short vocabulary. Each server
runs alone, on the same cores, asked by wrk's closed loop: texts, and JPEG files as data URIs, one to a request, with
OpenAI's form of answer. Its vectors are compared first.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.bench_serve import pictures, started, texts, wrk
from foveal.models import BACKBONES, load_encoder
from foveal.runtime import describe_machine
from retrieval.archive import Archive

KINDS = ("texts", "images")


def checkpoint(folder: Path) -> None:
    """A CLIP ViT-B/32 with random weights as `save_pretrained` writes one."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(BACKBONES / "clip")
    torch.manual_seed(0)
    tokens = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    CLIPModel(CLIPConfig(text_config=tokens)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)  # each in files of its own: the transformers of the peer is an older one
    CLIPImageProcessor().save_pretrained(folder)


def asked(server: str, kind: str, sent: list[Any], model: str) -> list[bytes]:
    """Bodies of requests for one embedding each."""
    bodies: list[dict[str, Any]] = []
    for one in sent:
        if kind == "texts":
            bodies.append({"model": model, "input": one})
            continue
        uri = f"data:image/jpeg;base64,{base64.b64encode(one).decode()}"
        part = {"type": "image_url", "image_url": {"url": uri}}
        ours = {"messages": [{"role": "user", "content": [part]}]}
        bodies.append({"model": model, **(ours if server == "foveal" else {"input": uri, "modality": "image"})})
    return [json.dumps(body).encode() for body in bodies]


@contextmanager
def serving(server: str, command: list[str], port: int) -> Iterator[str]:
    """The address of a server's embeddings."""
    ready, path = ("/readyz", "/v1/embeddings") if server == "foveal" else ("/health", "/embeddings")
    base = f"http://127.0.0.1:{port}"
    with started([*command, "--port", str(port)], base + ready):
        yield base + path


def vectors(url: str, bodies: list[bytes]) -> np.ndarray:
    """Unit vectors (N, D) of the first requests."""
    answers = [
        httpx.post(url, content=body, headers={"Content-Type": "application/json"}, timeout=60) for body in bodies
    ]
    rows = np.array([answer.raise_for_status().json()["data"][0]["embedding"] for answer in answers])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--infinity", required=True, help="the program infinity_emb of its own environment")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-embeddings"))
    parser.add_argument("--connections", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--port", type=int, default=8979)
    parser.add_argument("--out", type=Path, default=Path("runs/embeddings.json"))
    options = parser.parse_args()
    model, archive = (options.work / "clip").absolute(), options.work / "archive"
    if not model.exists():
        checkpoint(model)
    if not archive.exists():
        encoder = load_encoder(f"hf:{model}")
        Archive.create(archive, encoder, reference=f"hf:{model}")
    sent: dict[str, list[Any]] = {"texts": texts(), "images": pictures(options.work / "images")}
    commands = {
        "foveal": [sys.executable, "-m", "foveal", "serve", "--archive", str(archive), "--no-demo"],
        "infinity": [
            options.infinity, "v2", "--model-id", str(model), "--engine", "torch", "--device", "cpu", "--dtype",
            "float32", "--no-bettertransformer", "--served-model-name", "clip",
        ],
    }  # fmt: skip
    found: dict[str, Any] = {"machine": describe_machine(), "turns": []}
    for _ in range(options.turns):
        turn: dict[str, Any] = {kind: {} for kind in KINDS}
        made: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
        for server, command in commands.items():
            with serving(server, command, options.port) as url:
                for kind in KINDS:
                    bodies = asked(server, kind, sent[kind], "encoder" if server == "foveal" else "clip")
                    made[kind].append(vectors(url, bodies[:8]))
                    payload = ("application/json", bodies)
                    turn[kind][server] = {c: wrk(url, kind, payload, c) for c in options.connections}
        turn["least cosine"] = {kind: float((one * other).sum(1).min()) for kind, (one, other) in made.items()}
        found["turns"].append(turn)
        print(json.dumps(turn, indent=1), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
