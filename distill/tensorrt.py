"""A TensorRT engine from an exported ONNX folder, built on the very GPU it will run on.

Nothing here has been run: no GPU was at hand. What is tested is that its absence is said.
"""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

from foveal import artifacts
from foveal.detectors import ONNX
from foveal.errors import FovealError, Unavailable

ENGINE = "model.engine"
BATCHES = (1, 8, 32)  # smallest, usual and largest batch that the engine is tuned for


def build_engine(folder: Path, out: Path, *, fp16: bool = True) -> artifacts.Manifest:
    """Write `model.engine` beside a copy of the ONNX file, whose metadata it needs; the manifest names the device.

    Args:
        folder: that `foveal export --to onnx` wrote.

    Raises:
        Unavailable: TensorRT or an NVIDIA GPU is missing.
        FovealError: TensorRT cannot take the graph; says what it said.
    """
    source = artifacts.read(folder)
    try:
        trt: Any = import_module("tensorrt")
        import torch

        device = torch.cuda.get_device_name(0)
    except (ImportError, RuntimeError, AssertionError) as error:
        raise Unavailable(
            f"there is no TensorRT or no NVIDIA GPU on this machine: {str(error).splitlines()[0]}",
            remedy=f"Run the same command where it will serve, with `pip install tensorrt`; {folder} is all it needs.",
        ) from error
    log: Any = trt.Logger(trt.Logger.WARNING)
    builder: Any = trt.Builder(log)
    network, settings = builder.create_network(0), builder.create_builder_config()
    parser: Any = trt.OnnxParser(network, log)
    if not parser.parse((folder / ONNX).read_bytes()):
        raise FovealError(f"TensorRT cannot take {folder / ONNX}: {parser.get_error(0).desc()}")
    if fp16:
        settings.set_flag(trt.BuilderFlag.FP16)
    shape = tuple(network.get_input(0).shape)[1:]
    profile: Any = builder.create_optimization_profile()
    profile.set_shape("images", *((batch, *shape) for batch in BATCHES))
    settings.add_optimization_profile(profile)
    engine: Any = builder.build_serialized_network(network, settings)
    if engine is None:
        raise FovealError(f"TensorRT built no engine of {folder / ONNX}; its log says why")
    with artifacts.staged(out) as staging:
        (staging / ENGINE).write_bytes(bytes(engine))
        shutil.copyfile(folder / ONNX, staging / ONNX)
        return artifacts.seal(
            staging,
            name=out.name,
            kind="engine",
            parents=[source.fingerprint],
            config={"device": device, "tensorrt": str(trt.__version__), "fp16": fp16, "batches": list(BATCHES)},
            licence=source.licence,
        )
