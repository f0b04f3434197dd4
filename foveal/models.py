"""Model references, the protocols every room codes against, and the loaders behind a visible dict.

Shape letters: N images or texts, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from foveal.detections import Detections, FloatArray
from foveal.errors import BadInput, UnknownName

if TYPE_CHECKING:
    from PIL.Image import Image


Runtime = Literal["torch", "bf16", "onnx", "openvino"]  # bf16: PyTorch, in bfloat16


@runtime_checkable
class Encoder(Protocol):
    """Images and texts into one space."""

    name: str
    fingerprint: str  # sha256 over weights, adapter and preprocessing
    dimension: int
    logit_scale: float  # multiplier of cosine similarity before softmax

    def encode_images(self, images: Sequence[Image]) -> FloatArray:
        """Upright RGB images -> (N, D) float32, unit length."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """Texts -> (N, D) float32, unit length."""
        ...


@runtime_checkable
class PreparingEncoder(Encoder, Protocol):
    """An encoder whose work before the model can be done elsewhere: in threads, one image at a time."""

    image_side: int | None  # shorter side that the model sees, pixels; None when it varies

    def prepare_image(self, image: Image) -> Any:
        """What the model takes of one upright RGB image; threads may call it."""
        ...

    def encode_prepared(self, prepared: Sequence[Any]) -> FloatArray:
        """Prepared images -> what `encode_images` gives for them, (N, D) float32."""
        ...


@runtime_checkable
class Detector(Protocol):
    """A closed-vocabulary detector."""

    name: str
    fingerprint: str
    classes: tuple[str, ...]

    def detect(self, images: Sequence[Image], threshold: float = 0.05) -> list[Detections]:
        """One `Detections` an image, boxes in that image's own pixels, best score first."""
        ...


@runtime_checkable
class OpenDetector(Protocol):
    """A detector that takes its classes as text."""

    name: str
    fingerprint: str

    def detect(self, images: Sequence[Image], prompts: Sequence[str], threshold: float = 0.05) -> list[Detections]:
        """One `Detections` an image whose `names` are the prompts, boxes in that image's own pixels, best first."""
        ...


@runtime_checkable
class VisionLanguageModel(Protocol):
    """A model that answers in words."""

    name: str
    fingerprint: str

    def answer(self, image: Image, question: str, max_tokens: int = 64) -> str:
        """The answer to one question about one image."""
        ...

    def locate(self, image: Image, phrase: str, max_tokens: int = 128) -> FloatArray:
        """Where the model says that the phrase is: boxes (N, 4), xyxy in the image's own pixels, unscored."""
        ...


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A parsed reference, e.g. `open_clip:ViT-B-32/laion2b_s34b_b79k+runs/adapter`."""

    scheme: str
    target: str
    adapter: Path | None = None

    def __str__(self) -> str:
        names = (f"bundled:{name}" for name, ref in BUNDLED.items() if ref == replace(self, adapter=None))
        return next(names, f"{self.scheme}:{self.target}") + (f"+{self.adapter}" if self.adapter else "")

    @property
    def folder(self) -> Path | None:
        """The local folder the reference names, or None when it names something on a hub."""
        path = Path(self.target).expanduser()
        return path if path.is_dir() else None


# scheme -> what may follow it; the message of an unknown reference prints these.
SCHEMES: dict[str, str] = {
    "open_clip": "open_clip:MODEL/PRETRAINED or open_clip:./folder",
    "hf": "hf:org/model or hf:./folder",
    "bundled": "bundled:clip, bundled:owl or bundled:vlm",
    "onnx": "onnx:./exported-folder",
    "openvino": "openvino:./exported-folder",
    "artifact": "artifact:name@production",
}
BACKBONES = Path(__file__).parent / "backbones"
BUNDLED: dict[str, ModelRef] = {
    "clip": ModelRef("open_clip", str(BACKBONES / "clip")),
    "owl": ModelRef("hf", str(BACKBONES / "owl")),
    "vlm": ModelRef("hf", str(BACKBONES / "vlm")),
}

Loader = Callable[..., Any]
# Each value is `module:function`, resolved on first use so that importing this file loads no framework.
ENCODERS: dict[str, str] = {"open_clip": "foveal.encoders:load_open_clip", "hf": "foveal.encoders:load_hf"}
OPEN_DETECTORS: dict[str, str] = {"hf": "foveal.open_detectors:load_hf"}
VLMS: dict[str, str] = {"hf": "foveal.vlms:load_hf"}
DETECTORS: dict[str, str] = {"onnx": "foveal.detectors:load_onnx", "openvino": "foveal.detectors:load_openvino"}


def parse_ref(text: str) -> ModelRef:
    """A reference from text; `bundled:` names are expanded, a trailing `+folder` is the adapter.

    Raises:
        UnknownName: the scheme, or the bundled name, is not known.
        BadInput: the text has no scheme, or the adapter folder or the bundled backbone does not exist.
    """
    scheme, colon, target = text.partition(":")
    if not colon or not target:
        raise BadInput(
            f"{text!r} is not a model reference", expected="; ".join(SCHEMES.values()), remedy="Prefix the scheme."
        )
    if scheme not in SCHEMES:
        raise UnknownName("model scheme", scheme, SCHEMES)
    target, plus, adapter = target.partition("+")
    adapter_path = Path(adapter) if plus else None
    if adapter_path is not None and not adapter_path.is_dir():
        raise BadInput(f"adapter folder {adapter} does not exist", remedy="Give the folder that `foveal adapt` wrote.")
    if scheme == "bundled":
        if target not in BUNDLED:
            raise UnknownName("bundled backbone", target, BUNDLED)
        if BUNDLED[target].folder is None:
            raise BadInput(
                f"this installation holds no bundled {target}",
                expected=f"a folder {BUNDLED[target].target}",
                remedy="Install Foveal again, or name a model: hf:org/model or hf:./folder.",
            )
        return replace(BUNDLED[target], adapter=adapter_path)
    if target.startswith((".", "/", "~")) and not Path(target).expanduser().is_dir():
        raise BadInput(f"model folder {target} does not exist", remedy="Check the path, or name a hub model.")
    return ModelRef(scheme, target, adapter_path)


def _load(what: str, loaders: dict[str, str], ref: ModelRef, **options: Any) -> Any:
    if ref.scheme not in loaders:
        raise UnknownName(f"{what} loader for scheme", ref.scheme, loaders, remedy=f"{ref} cannot serve as {what}.")
    module, function = loaders[ref.scheme].split(":")
    return getattr(import_module(module), function)(ref, **options)


def load_encoder(ref: str, device: str | None = None, runtime: Runtime = "torch") -> Encoder:
    """An image-text encoder by reference, its adapter (if any) applied whole.

    Args:
        runtime: what computes; see `foveal.encoder_runtimes`.

    Raises:
        UnknownName, BadInput: the reference names nothing.
        AdapterMismatch: the adapter does not fit the model whole.
        RuntimesDiffer, Unavailable: another runtime cannot take the place of PyTorch in float32.
    """
    encoder = _load("encoder", ENCODERS, parse_ref(ref), device=device if runtime in ("torch", "bf16") else "cpu")
    if runtime == "torch":
        return encoder
    from foveal.encoder_runtimes import ConvertedEncoder, in_bfloat16

    return in_bfloat16(encoder) if runtime == "bf16" else ConvertedEncoder(encoder, runtime)


def load_open_detector(ref: str, device: str | None = None) -> OpenDetector:
    """A zero-shot detector by reference; raises as `load_encoder`."""
    return _load("open-vocabulary detector", OPEN_DETECTORS, parse_ref(ref), device=device)


def load_vlm(ref: str, device: str | None = None) -> VisionLanguageModel:
    """A vision-language model by reference; raises as `load_encoder`."""
    return _load("vision-language model", VLMS, parse_ref(ref), device=device)


def load_detector(
    ref: str, registry: Path | None = None, threads: int | None = None, size: int | None = None
) -> Detector:
    """An exported detector by reference; `artifact:name@alias` is looked up in the registry folder `registry`.

    Args:
        size: side of the square it sees, where its file leaves that open.

    Raises:
        UnknownName, BadInput: the reference names nothing, or it sees one size only.
        IntegrityError: a file differs from its manifest.
    """
    parsed = parse_ref(ref)
    if parsed.scheme == "artifact":
        from foveal.registry import Registry

        if registry is None:
            raise BadInput(f"{ref} needs a registry", remedy="Pass --registry DIR.")
        folder = Registry(registry).resolve(parsed.target)
        parsed = ModelRef("openvino" if (folder / "model.xml").exists() else "onnx", str(folder))
    return _load("detector", DETECTORS, parsed, threads=threads, size=size)


def licence_of(ref: str) -> str:
    """The licence that a model's folder or hub page states: its manifest's, else its card's; `unknown` without one."""
    import yaml
    from pydantic import ValidationError

    parsed = parse_ref(ref)
    folder = parsed.folder
    if folder is not None and (folder / "manifest.json").is_file():
        from foveal import artifacts

        return artifacts.read(folder, verify=False).licence
    try:
        if folder is None:
            from huggingface_hub import hf_hub_download

            card = Path(hf_hub_download(parsed.target.split("@")[0], "README.md", local_files_only=True))
        else:
            card = folder / "README.md"
        head = card.read_text(encoding="utf-8").split("---")[1]
        return str(yaml.safe_load(head)["license"])
    except (OSError, IndexError, KeyError, TypeError, ValueError, ValidationError, yaml.YAMLError):
        return "unknown"
