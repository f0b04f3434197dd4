"""Models that vLLM serves: which go to it as LoRA modules, which are merged first, and whether it says what they say.

vLLM drops the vision part of an adapter with no more than a warning, and knows nothing of the 4-bit weights or the
image size that one may have learnt under. So an adapter is handed over only where it changes nothing but the language
model of the plain base; any other is merged into a folder of its own first. Before any traffic a model's answers are
compared with those of the same model in transformers, and one that says other things is refused.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adapt.merge import merge
from foveal import adapters, world
from foveal.errors import BadInput, FovealError
from foveal.models import ModelRef, load_vlm, parse_ref
from foveal.progress import Progress
from foveal.vlms import TransformersVLM, conditions, part_of
from serve.vllm import VllmServer
from serve.vlm_http import RemoteVLM

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("foveal.serve")
PREFIX = "vllm:"
PYTHON = "FOVEAL_VLLM_PYTHON"
SCENES = 6  # pictures that answers are compared on, with each of `QUESTIONS`
QUESTIONS = ("describe the picture", "how many things are there", "what is in the picture")
WORDS = 3  # that an answer begins with: rounding may part long answers, as each word follows from the ones before
AGREED = 0.8  # of the answers must begin alike


class AnswersDiffer(FovealError):
    """vLLM does not say what the model says."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model goes to vLLM."""

    ref: ModelRef
    folder: str  # of the weights that it reads, or a name of the hub
    name: str  # that it calls the model
    adapter: Path | None = None  # handed over as a LoRA module


def plan(ref: ModelRef, scratch: Path) -> Plan:
    """Merges where it must, into a folder of `scratch` that is kept and found again."""
    base = str(ref.folder or ref.target)
    if ref.adapter is None:
        return Plan(ref, base, "base")
    if rides(ref.adapter):
        return Plan(ref, base, ref.adapter.name, ref.adapter)
    whole = hashlib.sha256(f"{base} {_content(ref.adapter)}".encode()).hexdigest()[:16]
    folder = scratch / whole
    if not folder.is_dir():
        merge(str(ref), folder)
    return Plan(ref, str(folder), "base")


def rides(adapter: Path) -> bool:
    """Whether an adapter may go to vLLM as it is: it touches the language model only, of the plain base."""
    parts = {part_of(name) for name in adapters.tensors(adapter)}
    return parts == {"language"} and not any(conditions(adapter).values())


def start(
    refs: Sequence[str], python: Path, scratch: Path, options: Sequence[str] = (), progress: Progress | None = None
) -> tuple[list[VllmServer], list[RemoteVLM]]:
    """(the servers, the models behind them), each compared with what it is in transformers.

    Args:
        refs: of models, e.g. `hf:./qwen+runs/adapter`; those of one base share a server.
        scratch: folder for merged models.

    Raises:
        BadInput, AdapterMismatch: a reference names nothing, or its adapter does not fit whole.
        Unavailable: vLLM does not start.
        AnswersDiffer: a model says other things there.
    """
    plans = [plan(parse_ref(ref.removeprefix(PREFIX)), scratch) for ref in refs]
    grouped: dict[str, dict[str, Path]] = {}
    for one in plans:
        handed = grouped.setdefault(one.folder, {})
        if one.adapter is not None:
            handed[one.name] = one.adapter
    servers: dict[str, VllmServer] = {}
    try:
        for folder, handed in grouped.items():
            servers[folder] = VllmServer(python, folder, adapters=handed, options=tuple(options))
            if progress is not None:
                progress.note(f"vLLM reads {folder}")
            servers[folder].start()
        return list(servers.values()), [_checked(one, servers[one.folder], progress) for one in plans]
    except BaseException:
        for server in servers.values():
            server.stop()
        raise


def python_of(environment: Mapping[str, str] = os.environ) -> Path:
    """The Python that vLLM is installed for; BadInput where nobody said."""
    if PYTHON not in environment:
        raise BadInput(
            "it is not known where vLLM is installed",
            expected=f"{PYTHON}, the Python of an environment of its own",
            remedy=f"python -m venv ~/vllm && ~/vllm/bin/pip install vllm, then {PYTHON}=~/vllm/bin/python",
        )
    return Path(environment[PYTHON]).expanduser()


def _checked(one: Plan, server: VllmServer, progress: Progress | None) -> RemoteVLM:
    local: Any = load_vlm(str(one.ref))
    if not isinstance(local, TransformersVLM):
        raise BadInput(f"{one.ref} is no model of transformers")
    there = RemoteVLM(server.url, one.name, family=local.family)
    there.name = f"{PREFIX}{one.ref}"
    there.fingerprint = hashlib.sha256(f"vllm {local.fingerprint}".encode()).hexdigest()
    agreed = agreement(local, there)
    said = f"{one.ref} in vLLM begins {agreed:.0%} of its answers as in transformers"
    log.info(said)
    if progress is not None:
        progress.note(said)
    if agreed < AGREED:
        raise AnswersDiffer(said, expected=f"{AGREED:.0%} or more", remedy="Serve it in-process: leave out `vllm:`.")
    return there


def agreement(local: TransformersVLM, there: RemoteVLM) -> float:
    """Share of the questions whose answers begin alike."""
    asked: list[tuple[Image, tuple[()], str]] = [(image, (), one) for image in probes() for one in QUESTIONS]
    pairs = zip(local.replies(asked, 24), there.replies(asked, 24), strict=True)
    return float(np.mean([a.split()[:WORDS] == b.split()[:WORDS] for a, b in pairs]))


def probes() -> list[Image]:
    """Rendered pictures of both domains, the same each time."""
    from PIL import Image as pillow

    scenes = [world.render(number, "base" if number % 2 else "site") for number in range(SCENES)]
    return [pillow.fromarray(scene.image) for scene in scenes]


def _content(adapter: Path) -> str:
    return hashlib.sha256((adapter / adapters.WEIGHTS).read_bytes()).hexdigest()
