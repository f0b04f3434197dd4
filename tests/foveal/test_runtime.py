import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foveal import runtime
from foveal.errors import FovealError, Unavailable, UnknownName
from foveal.runtime import fast_bfloat16

ROOT = Path(runtime.__file__).parent.parent


def test_the_rooms_of_this_checkout_belong_together() -> None:
    runtime.check_rooms()


@pytest.mark.parametrize("as_module", [True, False])
def test_a_shadowed_room_is_named(tmp_path: Path, as_module: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh interpreter, because the rooms of this one may be imported already."""
    (tmp_path / "evals.py").touch() if as_module else (tmp_path / "evals").mkdir()
    if not as_module:
        (tmp_path / "evals" / "__init__.py").touch()
    code = (
        "import sys\nfrom foveal.runtime import check_rooms\n"
        "try:\n    check_rooms()\nexcept Exception as error:\n    print(error)\n"
        "assert not set(sys.modules) & {'adapt', 'serve', 'retrieval', 'distill', 'evals'}"
    )
    paths = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": ""}
    told = subprocess.check_output([sys.executable, "-c", code], text=True, env=paths, cwd=tmp_path)
    assert told.startswith(f"package 'evals' is somebody else's; expected {ROOT}/evals; received {tmp_path}/evals")


def test_a_missing_room_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "ROOMS", ("no_such_room_at_all",))
    with pytest.raises(FovealError, match="'no_such_room_at_all' is missing"):
        runtime.check_rooms()


def test_devices() -> None:
    assert runtime.pick_device() in ("cpu", "cuda", "mps")
    assert runtime.pick_device("cpu") == "cpu"
    for name in ("gpu", "cuda:x", ""):
        with pytest.raises(UnknownName, match="no device"):
            runtime.pick_device(name)
    with pytest.raises(Unavailable, match="device cuda:99 is not there"):
        runtime.pick_device("cuda:99")


@pytest.mark.parametrize(
    ("abilities", "fast"),
    [
        ({"avx512_bf16": True, "amx_bf16": False, "cpu_name": "AMD EPYC"}, True),
        ({"avx512_bf16": True, "amx_bf16": False, "cpu_name": "Intel Xeon"}, False),
        ({"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, True),
        ({"avx512_bf16": False, "cpu_name": "AMD EPYC"}, False),
        ({}, False),
    ],
)
def test_bfloat16_is_taken_only_where_it_is_faster(
    abilities: dict[str, Any], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: abilities)
    assert fast_bfloat16("cpu") == fast
    assert not fast_bfloat16("mps")


def test_seeds_repeat_every_generator() -> None:
    def draw() -> tuple[float, float, float]:
        runtime.seed_everything(2**33 + 5)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert draw() == draw()


def test_the_machine_is_described() -> None:
    told = runtime.describe_machine()
    assert told["cores"] >= 1
    assert told["memory_mb"] > 100
    assert told["cpu"]
    assert told["versions"].keys() >= {"python", "torch", "numpy"}


def test_peak_memory_counts_children() -> None:
    before = runtime.peak_memory_mb()
    subprocess.run([sys.executable, "-c", "x = bytearray(300_000_000)"], check=True)
    assert runtime.peak_memory_mb() >= max(before, 280)
