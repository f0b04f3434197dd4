"""The machine: device, seeds, what it is, how much memory was used, and whether the six rooms belong together."""

from __future__ import annotations

import importlib.util
import os
import platform
import random
import resource
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from foveal.errors import FovealError, Unavailable, UnknownName

ROOMS = ("adapt", "serve", "retrieval", "distill", "evals")
LIBRARIES = (
    "torch", "transformers", "open_clip_torch", "peft", "datasets", "faiss-cpu", "faiss-gpu", "pylance", "onnxruntime",
    "openvino", "numpy", "pillow", "gradio",
)  # fmt: skip
_DEVICES = ("cpu", "cuda", "mps")


def check_rooms() -> None:
    """Make sure that the five rooms beside `foveal` are this project's own, without importing them.

    Raises:
        FovealError: another installed package shadows a room (the names are not unique on PyPI), or a room is missing.
    """
    home = Path(__file__).resolve().parent.parent
    for room in ROOMS:
        spec = importlib.util.find_spec(room)
        places = [Path(place).resolve() for place in (spec.submodule_search_locations or [])] if spec else []
        if spec is not None and not places and spec.origin:
            places = [Path(spec.origin).resolve()]
        if home / room in places[:1]:
            continue
        if not places:
            raise FovealError(
                f"package {room!r} is missing",
                expected=f"a folder {home / room}",
                remedy="Install Foveal again: pip install --force-reinstall foveal",
            )
        owner = next(iter(metadata.packages_distributions().get(room, [])), None)
        foreign = owner if owner and owner != "foveal" else None
        raise FovealError(
            f"package {room!r} is somebody else's",
            expected=str(home / room),
            received=str(places[0]),
            remedy=f"Uninstall it: pip uninstall {foreign}" if foreign else "Move that folder off the Python path.",
        )


def pick_device(name: str | None = None) -> str:
    """The device to compute on: `name` if it is there, else the first of CUDA, Apple's MPS and the CPU.

    Raises:
        UnknownName: not a device.
        Unavailable: the device is not on this machine.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, colon, index = name.partition(":")
    if kind not in _DEVICES or (colon and not index.isdecimal()):
        raise UnknownName("device", name, [*_DEVICES, "cuda:1"])
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if int(index or 0) >= count:
        raise Unavailable(
            f"device {name} is not there", received=f"{count} of that kind", remedy="Use cpu, or leave it out."
        )
    return name


def fast_bfloat16(device: str) -> bool:
    """Whether `device` multiplies bfloat16 faster than float32, so that work in it is quicker and not only smaller.

    Intel's AVX-512 has the instruction, but half the units for it: without AMX a matrix product took 1.8 times as long.
    """
    import torch

    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    abilities = torch.cpu.get_capabilities() if device == "cpu" and hasattr(torch.cpu, "get_capabilities") else {}
    vectors = abilities.get("avx512_bf16") and not str(abilities.get("cpu_name")).startswith("Intel")
    return bool(vectors or abilities.get("amx_bf16"))


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (every device)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def describe_machine() -> dict[str, Any]:
    """CPU model, usable cores, memory in MB, accelerator, and versions of what matters; imports none of it."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    torch = sys.modules.get("torch")
    return {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "gpu": torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None,
        "versions": versions,
    }


def usable_cores() -> int:
    """Cores this process may run on; a container's CPU quota counts, and OMP_NUM_THREADS, as in PyTorch."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    told = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, max(1, int(told))) if told.isdecimal() else cores


def peak_memory_mb() -> float:
    """Peak resident memory of the largest process, this one or a finished child, MB.

    Not their sum: a forked child shares its pages with its parent, and they would count twice.
    """
    unit = 2**20 if sys.platform == "darwin" else 2**10
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(own, children) / unit


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            for line in stream:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
