"""How models run outside of PyTorch: the settings that every ONNX Runtime session and OpenVINO model here has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def onnx_session(model: bytes, threads: int, providers: Sequence[str] = ("CPUExecutionProvider",)) -> Any:
    """A session over a model's bytes, which uses `threads` for one call."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Threads that spin while they wait take the cores from decoding and from other models: beside a second model the
    # student answered 223 to 237 images/s with spinning and 382 to 400 without, alone as many either way.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options, providers=list(providers))


def openvino_settings(threads: int) -> dict[str, Any]:
    """Settings to compile with; without the hint of f32, CPUs with bfloat16 units would round silently, and the parity
    check would not speak for them."""
    return {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
