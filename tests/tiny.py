"""Tiny random models in the formats of the real ones: seeded, a few hundred kB, made in well under a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from adapt.tokenizer import build_tokenizer

CONTEXT = 32
SENTENCES = (
    "a photo of a red crate on a shelf",
    "a photo of a blue barrel left of a green box",
    "two yellow pallets and a dented drum on the floor",
    "an open cardboard box under a bright lamp",
)


def tiny_tokenizer(folder: Path) -> int:
    """A tokenizer for `CONTEXT` tokens in `folder`; returns its vocabulary size."""
    return build_tokenizer(SENTENCES * 2, folder, vocab_size=600, context_length=CONTEXT)


def tiny_clip(folder: Path, seed: int = 0) -> Path:
    """A random open_clip folder: 32 px, patch 8, width 32, 2 layers a tower, 32-d embeddings."""
    import open_clip

    vocabulary = tiny_tokenizer(folder)
    model_cfg: dict[str, Any] = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": vocabulary,
            "width": 32,
            "heads": 2,
            "layers": 2,
            "hf_tokenizer_name": ".",
        },
    }
    text_cfg = {k: v for k, v in model_cfg["text_cfg"].items() if k != "hf_tokenizer_name"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.CLIP(embed_dim=32, vision_cfg=model_cfg["vision_cfg"], text_cfg=text_cfg)  # pyright: ignore
    preprocess_cfg = {"size": 32, "interpolation": "bilinear", "resize_mode": "squash"}
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2))
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def tiny_hf(folder: Path, family: str) -> Path:
    """A random transformers folder of family `clip` or `siglip`: 32 px, patch 8, width 32, 2 layers a tower."""
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        CLIPTokenizer,
        SiglipConfig,
        SiglipModel,
    )

    vocabulary = tiny_tokenizer(folder)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**tower, "vocab_size": vocabulary, "max_position_embeddings": CONTEXT, "pad_token_id": 0}
    text |= {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if family == "clip":
            model: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
        else:
            model = SiglipModel(SiglipConfig(text_config={**text, "projection_size": 32}, vision_config=vision))
    model.save_pretrained(folder)
    size = {"shortest_edge": 32} if family == "clip" else {"height": 32, "width": 32}
    processor = CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32}, do_center_crop=family == "clip")
    CLIPProcessor(processor, CLIPTokenizer.from_pretrained(folder)).save_pretrained(folder)
    return folder


def tiny_owl(folder: Path, seed: int = 0) -> Path:
    """A random OWLv2 folder: 64 px, patch 16 (16 boxes), width 32, 2 layers a tower."""
    from transformers import (
        CLIPTokenizer,
        Owlv2Config,
        Owlv2ForObjectDetection,
        Owlv2ImageProcessor,
        Owlv2Processor,
    )

    vocabulary = tiny_tokenizer(folder)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Owlv2Config(
        text_config={
            **tower,
            "vocab_size": vocabulary,
            "max_position_embeddings": CONTEXT,
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
        },
        vision_config={**tower, "image_size": 64, "patch_size": 16},
        projection_dim=32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Owlv2ForObjectDetection(config)
        for head in (model.box_head, model.class_head):  # initialised so wide that every sigmoid would saturate
            for parameter in head.parameters():
                parameter.data.mul_(0.1)
    model.save_pretrained(folder)
    images = Owlv2ImageProcessor(size={"height": 64, "width": 64})
    Owlv2Processor(images, CLIPTokenizer.from_pretrained(folder)).save_pretrained(folder)
    return folder


def tiny_sam(folder: Path, family: str = "sam") -> Path:
    """A random SAM or SAM 2 folder: 64 px, width 16."""
    from transformers import (
        Sam2Config,
        Sam2ImageProcessor,
        Sam2Model,
        Sam2Processor,
        SamConfig,
        SamImageProcessor,
        SamModel,
        SamProcessor,
    )

    prompts = {"hidden_size": 16, "image_size": 64, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if family == "sam":
            vision = {
                "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 8,
                "output_channels": 16, "mlp_dim": 64, "num_pos_feats": 8, "global_attn_indexes": [1], "window_size": 4,
            }  # fmt: skip
            asked = {**prompts, "patch_size": 8, "image_embedding_size": 8}
            model = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=asked, mask_decoder_config=decoder))
            square = {"height": 64, "width": 64}
            images = SamImageProcessor(
                size={"longest_edge": 64}, pad_size=square, mask_size={"longest_edge": 16},
                mask_pad_size={"height": 16, "width": 16},
            )  # fmt: skip
            SamProcessor(images).save_pretrained(folder)
        else:
            backbone = {
                "model_type": "sam2_hiera_det_model", "hidden_size": 8, "num_attention_heads": 1,
                "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64],
                "num_attention_heads_per_stage": [1, 1, 2, 2], "window_size_per_stage": [8, 4, 4, 4],
                "global_attention_blocks": [3], "image_size": [64, 64],
            }  # fmt: skip
            vision = {
                "backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8],
                "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], "fpn_hidden_size": 16,
            }  # fmt: skip
            model = Sam2Model(
                Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
            )
            images = Sam2ImageProcessor(size={"height": 64, "width": 64}, mask_size={"height": 16, "width": 16})
            Sam2Processor(images).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def tiny_detr(folder: Path, family: str, side: int = 64, windows: int = 2) -> Path:
    """An RF-DETR ("rf_detr") or LW-DETR ("lw_detr") with random weights: patches of 16 px in square windows."""
    from transformers import AutoConfig, AutoModelForObjectDetection

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": 16,
        "out_indices": [1, 2],
    }
    if family == "rf_detr":
        backbone = AutoConfig.for_model("rf_detr_dinov2", **shape, num_windows=windows)
        more: dict[str, Any] = {}
    else:
        window = {"pretrain_image_size": side, "num_windows": windows**2, "window_block_indices": [0]}
        backbone, more = AutoConfig.for_model("lw_detr_vit", **shape, **window), {"projector_scale_factors": [1.0]}
    config = AutoConfig.for_model(
        family,
        backbone_config=backbone,
        d_model=32,
        decoder_ffn_dim=32,
        decoder_layers=2,
        decoder_self_attention_heads=2,
        decoder_cross_attention_heads=2,
        num_queries=12,
        group_detr=2,
        c2f_num_blocks=1,
        **more,
    )
    AutoModelForObjectDetection.from_config(config).save_pretrained(folder)
    return folder
