"""An encoder that computes otherwise than PyTorch in float32 does: made when it is loaded, and used only if they agree.

Shape letters: N images or texts, D embedding dimensions, L tokens, S the side of the square the model sees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from foveal.detections import FloatArray
from foveal.encoders import TorchEncoder
from foveal.errors import FovealError, Unavailable
from foveal.quiet import quiet
from foveal.runtime import fast_bfloat16, usable_cores
from foveal.sessions import onnx_session, openvino_settings

if TYPE_CHECKING:
    from PIL.Image import Image

Run = Callable[[Sequence[np.ndarray]], FloatArray]  # inputs in their order -> features (N, D)
FAR = 1e-3  # that a component of a unit-length embedding may differ: rankings change only among ties
ROUNDED = 1e-2  # that a component may differ in bfloat16, of which 0.002 was measured on a ViT-B/32: a cosine of 0.9999
PROBES = ("a photo of a valve", "two red crates beside a green barrel in a dark hall", "x", "")


class RuntimesDiffer(FovealError):
    """A converted encoder embeds otherwise than its source; it is not used."""


class ConvertedEncoder:
    """An `Encoder`, and `PreparingEncoder`, that does not compute in PyTorch; PyTorch's weights are let go.

    Its vectors are those of its source up to rounding, so it has its source's fingerprint.

    Raises:
        RuntimesDiffer: an embedding of the probes differs by more than `FAR`.
        Unavailable: the runtime is not installed, or cannot take the model.
    """

    def __init__(self, source: TorchEncoder, runtime: Literal["onnx", "openvino"]) -> None:
        self.name, self.fingerprint = source.name, source.fingerprint
        self.dimension, self.logit_scale, self.image_side = source.dimension, source.logit_scale, source.image_side
        self._source = source
        images = probes(source.image_side or 224)
        seen, read = source.encode_images(images), source.encode_texts(PROBES)
        tower = TOWERS[runtime]
        self._images = _converted(tower, source.name, source, source.image_features, source.image_inputs(images))
        self._texts = _converted(tower, source.name, source, source.text_features, source.text_inputs(PROBES[:2]))
        _agree(source.name, runtime, [(self.encode_images(images), seen), (self.encode_texts(PROBES), read)], FAR)
        source.model = nn.Module()  # only its preprocessing is still needed

    def encode_images(self, images: Sequence[Image], batch: int = 64) -> FloatArray:
        """Upright RGB images -> (N, D) float32, unit length."""
        return self._each(images, batch, lambda part: self._images(self._source.image_inputs(part)))

    def encode_texts(self, texts: Sequence[str], batch: int = 256) -> FloatArray:
        """Texts -> (N, D) float32, unit length."""
        return self._each(texts, batch, lambda part: self._texts(self._source.text_inputs(part)))

    def overlong(self, texts: Sequence[str]) -> int:
        """How many of the texts are longer than the model's context and lose their end."""
        return self._source.overlong(texts)

    def prepare_image(self, image: Image) -> dict[str, Tensor]:
        """As `TorchEncoder.prepare_image`."""
        return self._source.prepare_image(image)

    def encode_prepared(self, prepared: Sequence[Mapping[str, Tensor]], batch: int = 64) -> FloatArray:
        """What `prepare_image` gave -> (N, D) float32, unit length."""

        def encode(part: Sequence[Mapping[str, Tensor]]) -> FloatArray:
            return self._images({name: torch.cat([one[name] for one in part]) for name in part[0]})

        return self._each(prepared, batch, encode)

    def _each(self, items: Sequence[Any], batch: int, encode: Callable[[Sequence[Any]], FloatArray]) -> FloatArray:
        rows = [encode(items[start : start + batch]) for start in range(0, len(items), batch)]
        return np.concatenate(rows) if rows else np.zeros((0, self.dimension), dtype=np.float32)


def in_bfloat16(encoder: TorchEncoder) -> TorchEncoder:
    """The encoder itself, its weights and its work in bfloat16 from now on; its fingerprint stays.

    Raises:
        Unavailable: its device is no faster in it; emulated it took eight times float32's time.
        RuntimesDiffer: an embedding of the probes differs by more than `ROUNDED`.
    """
    if not fast_bfloat16(encoder.device):
        raise Unavailable(f"{encoder.device} is no faster in bfloat16", remedy="Use --runtime torch or openvino.")
    images = probes(encoder.image_side or 224)
    seen, read = encoder.encode_images(images), encoder.encode_texts(PROBES)
    encoder.model, encoder.dtype = encoder.model.bfloat16(), torch.bfloat16
    _agree(encoder.name, "bf16", [(encoder.encode_images(images), seen), (encoder.encode_texts(PROBES), read)], ROUNDED)
    return encoder


def _agree(name: str, runtime: str, pairs: Sequence[tuple[FloatArray, FloatArray]], limit: float) -> None:
    far = max(np.abs(one - other).max() for one, other in pairs)
    if not far <= limit:
        raise RuntimesDiffer(
            f"{name} embeds otherwise in {runtime}", expected=f"within {limit:g}", received=f"{far:.3g}",
            remedy="Use --runtime torch.",
        )  # fmt: skip


def probes(side: int) -> list[Image]:
    """Four pictures of smooth colours and of noise, the same each time."""
    from PIL import Image as pillow

    rng = np.random.default_rng(0)
    coarse = [pillow.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((side, side)) for _ in range(3)]
    return [*coarse, pillow.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))]


class _Tower(nn.Module):
    """One tower as a module of tensors in a fixed order."""

    def __init__(self, model: nn.Module, names: Sequence[str], features: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.names, self._features = model, list(names), features

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._features(self.model, dict(zip(self.names, inputs, strict=True)))


def _converted(
    tower: Callable[[_Tower, tuple[Tensor, ...]], Run],
    name: str,
    source: TorchEncoder,
    features: Callable[..., Tensor],
    example: Mapping[str, Tensor],
) -> Callable[[Mapping[str, Tensor]], FloatArray]:
    names = list(example)
    module = _Tower(source.model, names, features).eval()
    try:
        with quiet(), torch.no_grad():
            run = tower(module, tuple(example.values()))
    except FovealError:
        raise
    except Exception as error:  # each converter raises types of its own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Unavailable(f"{name} cannot be converted: {reason}", remedy="Use --runtime torch.") from error

    def encode(inputs: Mapping[str, Tensor]) -> FloatArray:
        rows = run([np.ascontiguousarray(inputs[key].numpy()) for key in names])
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

    return encode


def _openvino(module: _Tower, example: tuple[Tensor, ...]) -> Run:
    try:
        import openvino as ov
    except ImportError as error:
        raise Unavailable("openvino is not installed", remedy="pip install 'foveal[openvino]'") from error
    model = ov.convert_model(module, example_input=example)
    compiled: Any = ov.Core().compile_model(model, "CPU", openvino_settings(usable_cores()))

    def run(inputs: Sequence[np.ndarray]) -> FloatArray:
        answer = compiled.create_infer_request().infer(dict(enumerate(inputs)))
        return np.array(answer[0], dtype=np.float32)  # the buffer belongs to the request

    return run


def _onnx(module: _Tower, example: tuple[Tensor, ...]) -> Run:
    import onnxruntime as ort

    auto = torch.export.Dim.AUTO  # the batch, and the length of texts where the model leaves it open
    shapes = tuple({0: auto, 1: auto} if one.dim() == 2 else {0: auto} for one in example)
    program: Any = torch.onnx.export(module, example, dynamo=True, dynamic_shapes=(shapes,), verbose=False)
    wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    there = [name for name in wanted if name in ort.get_available_providers()]
    session = onnx_session(program.model_proto.SerializeToString(), usable_cores(), there)
    names = [each.name for each in session.get_inputs()]

    def run(inputs: Sequence[np.ndarray]) -> FloatArray:
        return session.run(None, dict(zip(names, inputs, strict=True)))[0]

    return run


TOWERS: dict[str, Callable[[_Tower, tuple[Tensor, ...]], Run]] = {"onnx": _onnx, "openvino": _openvino}
