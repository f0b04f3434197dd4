"""Turn the last checkpoint of `adapt.pretrain_vlm` into the shipped folder, checked against it and measured.

    python -m adapt.pretrain_vlm_export runs/pretrain --out foveal/backbones/vlm

Weights are stored as float16. The folder is only written when the model it loads to gives the checkpoint's logits; what
its card states is measured on it, through its own processor and chat template, by generating answers.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from adapt.pretrain import PATCH, VISION_LAYERS, WIDTH
from adapt.pretrain_data import MEAN, STD
from adapt.pretrain_dialogues import box_text
from adapt.pretrain_vlm import (
    BEGIN,
    END,
    IMAGE,
    LANGUAGE_LAYERS,
    LANGUAGE_WIDTH,
    PAD,
    PHASES,
    SIDE,
    TEMPLATE,
    build_model,
)
from evals.vqa import grounding_iou
from foveal.artifacts import seal, staged
from foveal.errors import IntegrityError
from foveal.models import load_vlm
from foveal.progress import Progress, RichProgress, track
from foveal.vlm_boxes import box_format
from foveal.vlms import TransformersVLM
from foveal.world import STRIDE, Domain, render

TOLERANCE = 2e-2  # float16 storage, on logits that span about 20
LICENCE = "Apache-2.0"
HELD_OUT = 9  # seed of the scenes the card is measured on; `adapt.pretrain` renders 7 and 8


def measure(vlm: TransformersVLM, domain: Domain, scenes: int, progress: Progress | None) -> dict[str, float]:
    """Exact match by sort of question, and the share of single objects whose box is found (IoU of at least 0.5)."""
    right: dict[str, list[bool]] = defaultdict(list)
    form = box_format(vlm.family)
    for number in track(progress, range(scenes), f"ask about {domain} scenes"):
        scene = render(HELD_OUT * STRIDE + number, domain)
        kinds = Counter(seen.kind for seen in scene.objects)
        single = [seen for seen in scene.objects if kinds[seen.kind] == 1]
        asked = [(q.question, q.answer, q.kind) for q in scene.questions]
        side = scene.image.shape[0]
        asked += [(form.ask(o.kind), box_text([v / side for v in o.box]), "box") for o in single]
        image = Image.fromarray(scene.image)
        said = vlm.replies([(image, (), text) for text, _, _ in asked], 24)
        for (_, truth, sort), answer in zip(asked, said, strict=True):
            if sort == "box":
                right[sort].append(grounding_iou(*(form.read(text, image.size) for text in (answer, truth))) >= 0.5)
            else:
                right[sort].append(answer == truth)
    questions = [hit for sort, hits in right.items() if sort != "box" for hit in hits]
    figures = {sort: float(np.mean(hits)) for sort, hits in sorted(right.items())}
    return {"exact_match": float(np.mean(questions)), **figures, "questions": float(len(questions))}


def _card(recipe: dict[str, Any], figures: dict[str, dict[str, float]]) -> str:
    sorts = [name for name in figures["base"] if name != "questions"]
    rows = "\n".join(f"| {name} | {figures['base'][name]:.3f} | {figures['site'].get(name, 0):.3f} |" for name in sorts)
    return f"""---
license: apache-2.0
library_name: transformers
tags: [foveal, synthetic, image-text-to-text]
---
# Foveal bundled backbone: vlm

A small model for the quickstart and the tests, so that the whole loop runs without a network. It answers questions
about the rendered sample world and knows nothing else: do not use it on photographs.

- **Architecture**: LLaVA (transformers): CLIP vision tower of width {WIDTH} with {VISION_LAYERS} layers, patch {PATCH},
  {SIDE} px; Llama of width {LANGUAGE_WIDTH} with {LANGUAGE_LAYERS} layers.
- **Data**: {recipe["scenes"]} scenes of the *base* domain that `foveal.world` renders, and questions that follow from
  their truth; no photograph, no text of others, no *site* scene. Data fingerprint `{recipe["data_fingerprint"]}`.
- **Recipe**: `python -m adapt.pretrain_vlm --scenes {recipe["scenes"]} --minutes {recipe["minutes"]:g} --seed
  {recipe["seed"]}` on top of the bundled OWLv2, then `python -m adapt.pretrain_vlm_export`; trained on
  {recipe["machine"]}. {recipe["note"]}
- **Boxes** are `[x1, y1, x2, y2]` as shares of the picture; ask `where is the red crate`.
- **Licence**: {LICENCE}, weights and data recipe alike.

Share of right answers on {recipe["measured_scenes"]} held-out scenes of each domain (exact match; for boxes an IoU of
at least 0.5 with the only object of its kind):

| question | base | site |
| --- | --- | --- |
{rows}
"""


def as_published(path: Path) -> None:
    """Name the vision tower's tensors as published LLaVA checkpoints do, which vLLM 0.32 insists on."""
    weights = load_file(path)
    named = {name.replace("vision_tower.", "vision_tower.vision_model.", 1): value for name, value in weights.items()}
    save_file(named, path, metadata={"format": "pt"})


def export(work: Path, out: Path, recipe: dict[str, Any], progress: Progress | None = None) -> None:
    """Write the transformers folder, check its logits and measure it.

    Raises:
        IntegrityError: what is loaded from the folder does not agree with the checkpoint.
    """
    from transformers import AutoTokenizer, CLIPImageProcessor, LlavaProcessor

    tokenizer: Any = AutoTokenizer.from_pretrained(work / "vlm" / "tokenizer")
    ids = [tokenizer.convert_tokens_to_ids(word) for word in (IMAGE, PAD, BEGIN, END)]
    models: list[Any] = []
    for _ in range(2):
        model = build_model(len(tokenizer), *ids)
        model.model.load_state_dict(load_file(work / "vlm" / f"{PHASES[-1].name}.safetensors"))
        model.tie_weights()
        models.append(model.eval())
    images = CLIPImageProcessor(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False, resample=Image.Resampling.BILINEAR,
        image_mean=MEAN.tolist(), image_std=STD.tolist(),
    )  # fmt: skip
    processor: Any = LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    with staged(out) as folder:
        models[1].generation_config.update(
            do_sample=False, pad_token_id=ids[1], bos_token_id=ids[2], eos_token_id=ids[3]
        )
        models[1].half().save_pretrained(folder)
        as_published(folder / "model.safetensors")
        processor.save_pretrained(folder)
        vlm: Any = load_vlm(f"hf:{folder}", "cpu")
        scene = render(HELD_OUT * STRIDE, "base")
        text = f"{BEGIN}USER: {IMAGE}\nhow many things are there ASSISTANT:"
        inputs = processor(
            images=Image.fromarray(scene.image), text=text, add_special_tokens=False, return_tensors="pt"
        )
        with torch.inference_mode():
            one, other = (m(**inputs).logits for m in (models[0], vlm.model))
        worst = float((one - other).abs().max())
        if not worst <= TOLERANCE:
            raise IntegrityError(
                "the exported VLM differs from its checkpoint", expected=f"<= {TOLERANCE}", received=f"{worst:g}"
            )
        scenes = recipe["measured_scenes"]
        figures = {d: measure(vlm, d, scenes, progress) for d in ("base", "site")}
        (folder / "README.md").write_text(_card(recipe, figures))
        seal(folder, name="bundled-vlm", kind="vlm", config=recipe, metrics=figures, licence=LICENCE)
        if progress is not None:
            progress.note(json.dumps(figures))


def main() -> None:
    """Export the folder from a finished work folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="the --out folder of adapt.pretrain_vlm")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--note", default="", help="how the run differed from the recipe, for the card")
    parser.add_argument("--scenes", type=int, default=200, help="held-out scenes of each domain to measure on")
    args = parser.parse_args()
    recipe = {**json.loads((args.work / "vlm" / "recipe.json").read_text()), "note": args.note}
    export(args.work, args.out, {**recipe, "measured_scenes": args.scenes}, RichProgress())


if __name__ == "__main__":
    main()
