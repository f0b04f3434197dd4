"""transformers' DETR-style detectors as students: configurations from scratch, hub checkpoints, and weighted losses.

Shape letters: B images, N target boxes (padded), Q queries, C classes, S input side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, box_iou

from distill.fcos import Targets
from foveal.errors import BadInput, Unavailable, UnknownName

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# model_type -> (mean, deviation) its published checkpoints were trained with; None: pixels in [0, 1] as they are.
# All of them score by sigmoid, one score a class and query.
FAMILIES: dict[str, tuple[tuple[float, ...], tuple[float, ...]] | None] = {
    "d_fine": None,
    "rt_detr": None,
    "rt_detr_v2": None,
    "deimv2": None,
    "lw_detr": IMAGENET,
    "rf_detr": IMAGENET,
}
LITE_HGNET: dict[str, Any] = {
    "stem_channels": [3, 16, 16],
    "stage_in_channels": [16, 64, 256],
    "stage_mid_channels": [16, 32, 64],
    "stage_downsample": [False, True, True],
    "stage_light_block": [False, False, True],
    "stage_numb_of_layers": [3, 3, 3],
    "depths": [3, 3, 3],
    "use_learnable_affine_block": True,
    "out_indices": [3],
}


def deimv2(width: int, ffn: int, blocks: Sequence[int], last: int, kernel: int) -> dict[str, Any]:
    """DEIMv2 on a shortened HGNetV2 with the lite encoder (arXiv 2509.20787, the published pico and atto configs).

    From scratch the local distribution loss costs a third of a step and both configs leave it out.
    """
    return {
        "model_type": "deimv2",
        "backbone_config": {
            "model_type": "hgnet_v2",
            **LITE_HGNET,
            "hidden_sizes": [64, 256, last],
            "stage_out_channels": [64, 256, last],
            "stage_num_blocks": list(blocks),
            "stage_kernel_size": [3, 3, kernel],
        },
        "encoder_type": "lite",
        "encoder_layers": 0,
        "encoder_in_channels": [last],
        "encoder_hidden_dim": width,
        "hidden_expansion": 0.34,
        "depth_mult": 0.5,
        "feat_strides": [16, 32],
        "decoder_in_channels": [width, width],
        "d_model": width,
        "decoder_ffn_dim": ffn,
        "decoder_layers": 3,
        "num_feature_levels": 2,
        "decoder_n_points": [4, 2],
        "share_bbox_head": True,
        "use_gateway": False,
        "use_dense_one_to_one": False,
        "decoder_activation_function": "silu",
        "num_queries": 200,
        "weight_loss_fgl": 0.0,
        "weight_loss_ddf": 0.0,
    }


DFINE_N: dict[str, Any] = {
    "model_type": "d_fine",
    "backbone_config": {
        "model_type": "hgnet_v2",
        "hidden_sizes": [128, 256, 512, 1024],
        "stem_channels": [3, 16, 16],
        "stage_in_channels": [16, 64, 256, 512],
        "stage_mid_channels": [16, 32, 64, 128],
        "stage_out_channels": [64, 256, 512, 1024],
        "stage_num_blocks": [1, 1, 2, 1],
        "stage_numb_of_layers": [3, 3, 3, 3],
        "depths": [3, 3, 3, 3],
        "use_learnable_affine_block": True,
        "out_indices": [3, 4],
    },
    "num_feature_levels": 2,
    "encoder_in_channels": [512, 1024],
    "encoder_hidden_dim": 128,
    "encoder_ffn_dim": 512,
    "encode_proj_layers": [1],
    "feat_strides": [16, 32],
    "d_model": 128,
    "decoder_ffn_dim": 512,
    "decoder_layers": 3,
    "decoder_n_points": [6, 6],
    "decoder_in_channels": [128, 128],
    "depth_mult": 0.5,
    "hidden_expansion": 0.34,
}
RTDETR_R18: dict[str, Any] = {
    "model_type": "rt_detr_v2",
    "backbone_config": {
        "model_type": "rt_detr_resnet",
        "layer_type": "basic",
        "depths": [2, 2, 2, 2],
        "hidden_sizes": [64, 128, 256, 512],
        "out_indices": [2, 3, 4],
    },
    "encoder_in_channels": [128, 256, 512],
    "hidden_expansion": 0.5,
    "decoder_layers": 3,
}


def from_scratch(config: Mapping[str, Any], classes: Sequence[str], size: int) -> nn.Module:
    """A randomly initialised detector; queries are cut to a quarter of the tokens that `size` gives it."""
    from transformers import AutoConfig, AutoModelForObjectDetection

    options = {k: v for k, v in config.items() if k != "model_type"}
    backbone = dict(options.pop("backbone_config"))
    built = AutoConfig.for_model(
        config["model_type"],
        backbone_config=AutoConfig.for_model(backbone.pop("model_type"), **backbone),
        freeze_backbone_batch_norms=False,  # random statistics must be learned
        **{**options, "id2label": dict(enumerate(classes)), "label2id": {c: i for i, c in enumerate(classes)}},
    )
    tokens = sum((size // stride) ** 2 for stride in built.feat_strides)
    built.num_queries = max(8, min(built.num_queries, tokens // 4))
    built.num_denoising = min(built.num_denoising, built.num_queries)
    return AutoModelForObjectDetection.from_config(built)


def from_hub(target: str, classes: Sequence[str]) -> nn.Module:
    """A pretrained detector with a new class head.

    Raises:
        Unavailable: the checkpoint is neither on disk nor reachable.
        UnknownName: its architecture is none of `FAMILIES`.
    """
    from transformers import AutoConfig, AutoModelForObjectDetection

    try:
        config = AutoConfig.from_pretrained(target)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise Unavailable(
            f"detector {target} cannot be loaded: {reason}", remedy="Check the name and the network, or give a folder."
        ) from error
    if config.model_type not in FAMILIES:
        raise UnknownName("student family", config.model_type, FAMILIES, remedy=f"{target} cannot be a student.")
    return AutoModelForObjectDetection.from_pretrained(
        target,
        id2label=dict(enumerate(classes)),
        label2id={c: i for i, c in enumerate(classes)},
        ignore_mismatched_sizes=True,  # the class head is new
        use_safetensors=True,
    )


def loss_inputs(targets: Targets) -> list[dict[str, Tensor]]:
    """What transformers' losses take, an image each, with `weights` (N,) and `silent` (K, 4 xyxy) added."""
    result: list[dict[str, Tensor]] = []
    for boxes, labels, weights, ignore in zip(*targets, strict=True):
        here, live = labels >= 0, (labels >= 0) & ~ignore
        result.append(
            {
                "class_labels": labels[live],
                "boxes": box_convert(boxes[live], "xyxy", "cxcywh"),
                "weights": weights[live],
                "silent": boxes[here & ignore],
            }
        )
    return result


def weigh(model: nn.Module) -> None:
    """Make a detector's own loss honour the weights and silent regions of `loss_inputs`.

    The criterion keeps its matching and its terms; only the gradient that reaches each query is scaled: by the weight
    of the box it is matched to, and to nothing where an unmatched query lies mostly in a silent region.

    Raises:
        BadInput: the loss is not built on a criterion with `get_loss`.
    """
    original: Any = model.loss_function
    scope = dict(original.__globals__)
    names = [
        name
        for name in original.__code__.co_names
        if isinstance(found := scope.get(name), type) and issubclass(found, nn.Module) and hasattr(found, "get_loss")
    ]
    if not names:
        raise BadInput(f"the loss of {type(model).__name__} cannot weigh boxes", expected="a set criterion")
    for name in names:
        scope[name] = _weighing(scope[name])
    # The same function over its own copy of the module's names: nothing global is patched.
    model.loss_function = FunctionType(  # type: ignore[assignment]
        original.__code__, scope, original.__name__, original.__defaults__, original.__closure__
    )


def _weighing(criterion: Callable[..., nn.Module]) -> Any:
    class Weighing(criterion):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            weights: Any = getattr(self, "weight_dict", {})
            if "local" in self.losses and not (weights.get("loss_fgl") or weights.get("loss_ddf")):
                self.losses = [name for name in self.losses if name != "local"]

        def get_loss(self, loss: str, outputs: Any, targets: Any, indices: Any, num_boxes: Any) -> Any:
            return super().get_loss(loss, scaled(outputs, targets, indices), targets, indices, num_boxes)

    return Weighing


def scaled(
    outputs: dict[str, Any], targets: list[dict[str, Tensor]], indices: list[tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """The outputs with unchanged values whose gradients are scaled query by query."""
    if all(t["weights"].eq(1).all() and not len(t["silent"]) for t in targets):
        return outputs
    boxes = box_convert(outputs["pred_boxes"].detach(), "cxcywh", "xyxy")
    factor = torch.ones(boxes.shape[:2], device=boxes.device)
    for row, (target, (source, chosen)) in enumerate(zip(targets, indices, strict=True)):
        if len(target["silent"]):
            factor[row, covered(boxes[row], target["silent"]) > 0.5] = 0.0
        factor[row, source.to(factor.device)] = target["weights"][chosen.to(factor.device)].to(factor)
    result = dict(outputs)
    for name in ("logits", "pred_boxes", "pred_corners"):
        if isinstance(value := outputs.get(name), Tensor):
            share = factor.view(*factor.shape, *[1] * (value.ndim - 2)).to(value)
            result[name] = value.detach() + (value - value.detach()) * share
    return result


def covered(boxes: Tensor, regions: Tensor) -> Tensor:
    """The largest share of each box (Q, 4) that one region (K, 4) covers -> (Q,); both xyxy."""
    low, high = torch.maximum(boxes[:, None, :2], regions[:, :2]), torch.minimum(boxes[:, None, 2:], regions[:, 2:])
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6).prod(1)
    share = (high - low).clamp(min=0).prod(2) / area[:, None]
    # A small region in the middle of a large box speaks for that box too when the two nearly coincide.
    return torch.maximum(share, box_iou(boxes, regions)).amax(1)
