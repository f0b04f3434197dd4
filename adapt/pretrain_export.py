"""Turn the checkpoints of `adapt.pretrain` into the shipped folders, each checked against its source.

    python -m adapt.pretrain_export runs/pretrain --out foveal/backbones

Weights are stored as float16 (half the download; the loaders compute in float32). A folder is only written when its
reloaded embeddings or boxes agree with the checkpoint's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from adapt.pretrain import (
    CLIP_LEFT,
    CLIP_SIZE,
    CONTEXT,
    HEADS,
    OWL_SIZE,
    PATCH,
    TEXT_LAYERS,
    VISION_LAYERS,
    WIDTH,
    Pretrainer,
    build_model,
    place_in_grid,
    window,
)
from adapt.pretrain_data import MEAN, STD, SceneViews
from foveal.artifacts import seal, staged
from foveal.errors import IntegrityError

TOLERANCE = 5e-3  # float16 storage, on unit vectors and [0, 1] boxes
LICENCE = "Apache-2.0"


def to_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The CLIP towers of an Owlv2ForObjectDetection state dict under open_clip's names, attention projections fused."""
    out: dict[str, Tensor] = {}

    def tower(source: str, target: str, layers: int) -> None:
        for i in range(layers):
            old, new = f"{source}.encoder.layers.{i}", f"{target}.resblocks.{i}"
            for kind in ("weight", "bias"):
                fused = [state[f"{old}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
                out[f"{new}.attn.in_proj_{kind}"] = torch.cat(fused)
                for theirs, ours in (
                    ("self_attn.out_proj", "attn.out_proj"),
                    ("layer_norm1", "ln_1"),
                    ("layer_norm2", "ln_2"),
                    ("mlp.fc1", "mlp.c_fc"),
                    ("mlp.fc2", "mlp.c_proj"),
                ):
                    out[f"{new}.{ours}.{kind}"] = state[f"{old}.{theirs}.{kind}"]

    vision, text = "owlv2.vision_model", "owlv2.text_model"
    tower(vision, "visual.transformer", VISION_LAYERS)
    tower(text, "transformer", TEXT_LAYERS)
    for kind in ("weight", "bias"):
        out[f"visual.ln_pre.{kind}"] = state[f"{vision}.pre_layernorm.{kind}"]
        out[f"visual.ln_post.{kind}"] = state[f"{vision}.post_layernorm.{kind}"]
        out[f"ln_final.{kind}"] = state[f"{text}.final_layer_norm.{kind}"]
    out["visual.class_embedding"] = state[f"{vision}.embeddings.class_embedding"]
    places = state[f"{vision}.embeddings.position_embedding.weight"]
    out["visual.positional_embedding"] = window(places, CLIP_LEFT, CLIP_LEFT, CLIP_SIZE // PATCH)
    out["visual.conv1.weight"] = state[f"{vision}.embeddings.patch_embedding.weight"]
    out["visual.proj"] = state["owlv2.visual_projection.weight"].T
    out["text_projection"] = state["owlv2.text_projection.weight"].T
    out["token_embedding.weight"] = state[f"{text}.embeddings.token_embedding.weight"]
    out["positional_embedding"] = state[f"{text}.embeddings.position_embedding.weight"]
    out["logit_scale"] = state["owlv2.logit_scale"]
    return {name: tensor.half().contiguous() for name, tensor in out.items()}


def open_clip_config(vocabulary: int) -> dict[str, Any]:
    """What open_clip needs to build the model and its preprocessing from a folder."""
    return {
        "model_cfg": {
            "embed_dim": WIDTH,
            "vision_cfg": {
                "image_size": CLIP_SIZE,
                "layers": VISION_LAYERS,
                "width": WIDTH,
                "patch_size": PATCH,
                "head_width": WIDTH // HEADS,
            },
            "text_cfg": {
                "context_length": CONTEXT,
                "vocab_size": vocabulary,
                "width": WIDTH,
                "heads": HEADS,
                "layers": TEXT_LAYERS,
                "hf_tokenizer_name": ".",
            },
        },
        "preprocess_cfg": {
            "size": CLIP_SIZE,
            "mean": MEAN.tolist(),
            "std": STD.tolist(),
            "interpolation": "bilinear",
            "resize_mode": "squash",
        },
    }


def _card(kind: str, recipe: dict[str, Any], figures: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {domain} | {v['recall@1']:.3f} | {v['kind']:.3f} | {v['giou']:.3f} |" for domain, v in figures.items()
    )
    return f"""---
license: apache-2.0
library_name: {"open_clip" if kind == "clip" else "transformers"}
tags: [foveal, synthetic, {"image-text-embedding" if kind == "clip" else "zero-shot-object-detection"}]
---
# Foveal bundled backbone: {kind}

A small model for the quickstart and the tests, so that the whole loop runs without a network. It knows the rendered
sample world and nothing else: do not use it on photographs.

- **Architecture**: {"CLIP (ViT, open_clip)" if kind == "clip" else "OWLv2 (transformers)"}, width {WIDTH},
  {VISION_LAYERS} vision and {TEXT_LAYERS} text layers, patch {PATCH}, {CLIP_SIZE if kind == "clip" else OWL_SIZE} px.
- **Data**: {recipe["scenes"]} scenes of the *base* domain that `foveal.world` renders; no photograph, no third-party
  imagery, no *site* scene. Data fingerprint `{recipe["data_fingerprint"]}`.
- **Recipe**: `python -m adapt.pretrain --scenes {recipe["scenes"]} --minutes {recipe["minutes"]:g} --seed
  {recipe["seed"]}`, then `python -m adapt.pretrain_export`; trained on {recipe["machine"]}. {recipe["note"]}
- **Licence**: {LICENCE}, weights and data recipe alike.

Measured on 200 held-out scenes of each domain right after training (text-to-image recall@1, share of objects whose best
patch names their kind, mean generalised IoU of that patch's box):

| domain | recall@1 | kind | GIoU |
| --- | --- | --- | --- |
{rows}
"""


def _agree(what: str, ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> None:
    worst = float(np.abs(ours - theirs).max())
    if worst > TOLERANCE:
        raise IntegrityError(
            f"exported {what} differs from its checkpoint", expected=f"<= {TOLERANCE}", received=f"{worst:g}"
        )


def export_clip(work: Path, out: Path, recipe: dict[str, Any]) -> None:
    """Write the open_clip folder and check its image and text embeddings on held-out scenes."""
    import open_clip
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    model = build_model(len(tokenizer))
    model.load_state_dict(load_file(work / "clip.safetensors"))
    place_in_grid(model, CLIP_LEFT)
    figures = json.loads((work / "clip.json").read_text())
    with staged(out) as folder:
        save_file(to_open_clip(model.state_dict()), folder / "open_clip_model.safetensors")
        (folder / "open_clip_config.json").write_text(json.dumps(open_clip_config(len(tokenizer)), indent=2))
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(_card("clip", recipe, figures))
        views = SceneViews(work / "check-base")
        plain = [views.plain(i, CLIP_SIZE, PATCH) for i in range(8)]
        pixels = torch.from_numpy(np.stack([v.pixels for v in plain]))
        made: Any = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
        exported: Any = made[0]
        tokens = open_clip.get_tokenizer(f"local-dir:{folder}")([v.caption for v in plain])
        source = Pretrainer(model.eval(), tokenizer, "cpu")
        with torch.inference_mode():
            _, outputs = model.image_embedder(pixels, interpolate_pos_encoding=True)
            image = F.normalize(model.owlv2.visual_projection(outputs.pooler_output), dim=-1)
            text = F.normalize(source.encode_texts([v.caption for v in plain]), dim=-1)
            _agree("image embedding", exported.eval().encode_image(pixels, normalize=True).numpy(), image.numpy())
            _agree("text embedding", exported.encode_text(tokens, normalize=True).numpy(), text.numpy())
        seal(folder, name="bundled-clip", kind="encoder", config=recipe, metrics=figures, licence=LICENCE)


def export_owl(work: Path, out: Path, recipe: dict[str, Any]) -> None:
    """Write the transformers folder and check its boxes and logits on held-out scenes."""
    from transformers import AutoTokenizer, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    model = build_model(len(tokenizer))
    model.load_state_dict(load_file(work / "owl.safetensors"))
    model.eval()
    figures = json.loads((work / "owl.json").read_text())
    with staged(out) as folder:
        half = build_model(len(tokenizer))
        half.load_state_dict(model.state_dict())
        half.half().save_pretrained(folder)
        images = Owlv2ImageProcessor(
            size={"height": OWL_SIZE, "width": OWL_SIZE}, image_mean=MEAN.tolist(), image_std=STD.tolist()
        )
        Owlv2Processor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
        (folder / "README.md").write_text(_card("owl", recipe, figures))
        views = SceneViews(work / "check-base")
        pixels = torch.from_numpy(np.stack([views.plain(i, OWL_SIZE, PATCH).pixels for i in range(4)]))
        loaded = Owlv2ForObjectDetection.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.inference_mode():
            feature, reloaded = (m.image_embedder(pixels)[0] for m in (model, loaded))
            bias = model.compute_box_bias(*feature.shape[1:3])
            boxes, again = (
                (m.box_head(f.flatten(1, 2)) + bias).sigmoid() for m, f in ((model, feature), (loaded, reloaded))
            )
            _agree("boxes", again.numpy(), boxes.numpy())
        seal(folder, name="bundled-owl", kind="open-detector", config=recipe, metrics=figures, licence=LICENCE)


def main() -> None:
    """Export both folders from a finished work folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="the --out folder of adapt.pretrain")
    parser.add_argument("--out", type=Path, required=True, help="where clip/ and owl/ are written")
    parser.add_argument("--note", default="", help="how the run differed from the recipe, for the cards")
    args = parser.parse_args()
    recipe = {**json.loads((args.work / "recipe.json").read_text()), "note": args.note}
    export_clip(args.work, args.out / "clip", recipe)
    export_owl(args.work, args.out / "owl", recipe)


if __name__ == "__main__":
    main()
