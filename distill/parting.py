"""Where two forms of one network part: the first layer whose output differs, or those that differ most.

Shape letters: M images, S input side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.students import Student
from foveal.detections import FloatArray

IMAGES = 3  # looked at
PARTED = 1e-2  # error of a layer's output, as a share of its spread, from which the forms have parted
Outputs = dict[str, FloatArray]


def first_difference(net: Student, model: Any, pixels: FloatArray) -> str | None:
    """The first block of a student whose output an ONNX export of it does not give; None where all agree.

    The exporter names nodes by the module they come from (`/net/body/stem/stem.0/Conv`), so the last node of a module's
    scope gives what the module gave. A convolution whose batch norm was folded into it does not, and is passed over:
    the block around both tells.

    Args:
        model: an ONNX ModelProto of `net.predict`.
        pixels: (M, 3, S, S), of which a few are run through both.
    """
    pixels = pixels[:IMAGES]
    last: dict[str, str] = {}
    for node in model.graph.node:
        scope = list[str]()
        for part in node.name.strip("/").split("/")[:-1]:
            # Below a list or a sequence the exporter repeats the name of the parent: `stages.0/stages.0.1`.
            if scope and part.startswith(f"{scope[-1]}."):
                scope.pop()
            scope.append(part)
            last[".".join(scope)] = node.output[0]
    wanted = {
        name: last[name]
        for name, module in net.named_modules()
        if name in last and not isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    }
    theirs = _onnx_outputs(model, list(wanted.values()), pixels)
    ours = _module_outputs(net, list(wanted), pixels)
    order = {output: place for place, node in enumerate(model.graph.node) for output in node.output}
    for name in sorted(ours, key=lambda name: order[wanted[name]]):
        found = theirs.get(wanted[name])
        if found is not None and found.shape == ours[name].shape and _error(ours[name], found) > PARTED:
            return name
    return None


def worst_layers(plain: Any, quantised: Any, pixels: FloatArray) -> list[tuple[str, float]]:
    """Convolutions and matrix products by how far quantising moved their outputs, as a share of their spread.

    Args:
        plain, quantised: ONNX ModelProtos of the same network, in which outputs kept their names.
    """
    pixels = pixels[:IMAGES]
    kept = {output for node in quantised.graph.node for output in node.output}
    layers = {n.name: n.output[0] for n in plain.graph.node if n.op_type in ("Conv", "MatMul", "Gemm")}
    shared = {name: output for name, output in layers.items() if output in kept}
    before, after = (_onnx_outputs(model, list(shared.values()), pixels) for model in (plain, quantised))
    errors = {name: _error(before[output], after[output]) for name, output in shared.items()}
    return sorted(errors.items(), key=lambda item: -item[1])


def float_layers(model: Any) -> set[str]:
    """Names of the convolutions and matrix products of a quantised ONNX or OpenVINO model that compute in fp32."""
    if not hasattr(model, "graph"):
        kinds = ("Convolution", "GroupConvolution", "MatMul")
        return {
            op.get_friendly_name()
            for op in model.get_ops()
            if op.get_type_name() in kinds and op.input_value(0).get_node().get_type_name() != "FakeQuantize"
        }
    made_by = {output: node.op_type for node in model.graph.node for output in node.output}
    return {
        node.name
        for node in model.graph.node
        if node.op_type in ("Conv", "MatMul", "Gemm") and made_by.get(node.input[0]) != "DequantizeLinear"
    }


def _onnx_outputs(model: Any, names: Sequence[str], pixels: FloatArray) -> Outputs:
    """The named tensors of a graph; those that ONNX Runtime cannot hand out are left out."""
    import onnx
    import onnxruntime as ort

    copy: Any = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {output.name for output in copy.graph.output}
    for name in dict.fromkeys(names):
        if name not in known:
            copy.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session: Any = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    asked = list(dict.fromkeys(names))
    values: Sequence[Any] = session.run(asked, {"images": pixels})
    return {name: np.asarray(value, np.float32) for name, value in zip(asked, values, strict=True)}


def _module_outputs(net: Student, names: Sequence[str], pixels: FloatArray) -> Outputs:
    found: Outputs = {}
    wanted, handles = set(names), list[Any]()

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and name not in found:
                found[name] = output.detach().float().cpu().clone().numpy()  # a later layer may write in place
            elif name in found:
                found.pop(name)  # called more than once: which call the graph's node is, nobody knows
                wanted.discard(name)

        return hook

    for name, module in net.named_modules():
        if name in wanted:
            handles.append(module.register_forward_hook(keep(name)))
    try:
        with torch.inference_mode():
            net.predict(torch.from_numpy(pixels))
    finally:
        for handle in handles:
            handle.remove()
    return {name: value for name, value in found.items() if name in wanted}


def _error(one: FloatArray, other: FloatArray) -> float:
    """Root mean square difference over the spread of the first."""
    return float(np.sqrt(np.mean((one - other) ** 2)) / (np.std(one) + 1e-9))
