"""Train the bundled backbones from rendered scenes: one trunk, exported as an open_clip CLIP and a transformers OWLv2.

    python -m adapt.pretrain --out runs/pretrain --minutes 72

Both share towers (OWLv2 is a CLIP with box heads; arXiv 2306.09683). Each step sees one batch of views and joins the
contrastive loss over view and caption (arXiv 2103.00020) with dense supervision: every patch that shows an object must
name it among text queries and give its box, its score aiming at the IoU it reached (arXiv 2006.04388). Hidden matrices
take Muon steps, everything else AdamW. Only the *base* domain is ever rendered here.

Shape letters: B views, S pixels, T patches, Q text queries, K objects of the batch, D dimensions.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou, generalized_box_iou_loss

from adapt.pretrain_data import SHORT_TEMPLATES, Mix, SceneViews, Thing, View, render_scenes
from adapt.tokenizer import build_tokenizer
from foveal.artifacts import staged
from foveal.progress import Progress, RichProgress
from foveal.runtime import describe_machine, pick_device, seed_everything

WIDTH, VISION_LAYERS, TEXT_LAYERS, HEADS, PATCH = 192, 8, 3, 6, 16
ATTENTION = "eager"  # on CPUs its backward pass is faster than the fused kernel at these lengths
CLIP_SIZE, OWL_SIZE, CONTEXT, VOCABULARY = 160, 256, 77, 1024
GRID = OWL_SIZE // PATCH
CLIP_LEFT = (GRID - CLIP_SIZE // PATCH) // 2  # first row and column of the positions the CLIP uses


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of training at one resolution; `share` of the time budget."""

    name: str
    size: int
    batch: int
    share: float
    rate: float
    clip_weight: float
    dense_weight: float
    views: Mix
    left: int | None = None  # see `place_in_grid`
    floor: float = 0.0  # share of `rate` at which the cosine ends; a phase that is exported ends at none


# Small windows of a scene show things as large as the whole scene does at `OWL_SIZE`, in a fraction of the patches:
# kinds are learnt there first, then places and captions, then the whole.
PHASES = (
    Phase("things", 64, 192, 0.25, 2e-3, 0.3, 1.0, Mix(whole=0.0, crop=1.0, area=(0.05, 0.11)), floor=0.4),
    Phase("groups", 96, 96, 0.20, 1.5e-3, 0.3, 1.0, Mix(whole=0.0, crop=0.85, area=(0.10, 0.25)), floor=0.4),
    Phase("clip", CLIP_SIZE, 64, 0.22, 1.5e-3, 1.0, 1.0, Mix(whole=0.6, crop=0.2, area=(0.2, 0.8)), CLIP_LEFT),
    Phase("owl", OWL_SIZE, 24, 0.33, 1e-3, 0.0, 1.0, Mix(whole=0.7, crop=0.3, area=(0.5, 0.9))),
)


def build_model(vocabulary: int) -> Any:
    """An untrained Owlv2ForObjectDetection whose towers fit both exports, for `OWL_SIZE` px squares."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection

    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_attention_heads": HEADS,
        "hidden_act": "gelu",
    }
    text = {
        **tower,
        "num_hidden_layers": TEXT_LAYERS,
        "vocab_size": vocabulary,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
    }
    vision = {**tower, "num_hidden_layers": VISION_LAYERS, "image_size": OWL_SIZE, "patch_size": PATCH}
    config = Owlv2Config(text_config=text, vision_config=vision, projection_dim=WIDTH)
    model: Any = Owlv2ForObjectDetection(config)
    model.set_attn_implementation(ATTENTION)
    # transformers draws head weights with unit variance; these start near silence instead.
    for head in (model.class_head, model.box_head, model.objectness_head):
        for name, weight in head.named_parameters():
            if name.endswith("weight"):
                last = weight.shape[0] <= 4
                nn.init.normal_(weight, std=1e-3 if last else WIDTH**-0.5)
    nn.init.constant_(model.objectness_head.dense2.bias, -2.0)
    # Start where a match scores well above a miss: logit = (cosine + shift) * (elu(scale) + 1).
    nn.init.constant_(model.class_head.logit_scale.bias, 9.0)
    nn.init.constant_(model.class_head.logit_shift.bias, -0.45)
    # OWL multiplies each patch with the class token: around one, both pass instead of gating each other at random.
    nn.init.ones_(model.owlv2.vision_model.post_layernorm.bias)
    for layer in model.owlv2.vision_model.encoder.layers:
        nn.init.normal_(layer.self_attn.v_proj.weight, std=WIDTH**-0.5)
        nn.init.normal_(layer.self_attn.out_proj.weight, std=0.5 * WIDTH**-0.5)
    _place(model.owlv2.vision_model.embeddings)
    return model


WAVELENGTHS = np.geomspace(32, 2.4, 8)  # in patches: the longest tell the grid's ends apart, the shortest neighbours
PLACES = 4 * len(WAVELENGTHS)  # dimensions that say where a patch is


@torch.no_grad()
def _place(embeddings: Any) -> None:
    """Start positions as sines and cosines of the column and the row (arXiv 2205.01580), in dimensions of their own."""
    rows, columns = (axis.flatten() for axis in torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij"))
    turns = 2 * torch.pi / torch.from_numpy(WAVELENGTHS).float()  # radians a patch
    waves = [wave(axis[:, None] * turns) for axis in (columns, rows) for wave in (torch.cos, torch.sin)]
    embeddings.position_embedding.weight[:, :PLACES] = 0
    embeddings.position_embedding.weight[1:, :PLACES] = 2**0.5 * torch.cat(waves, 1)
    embeddings.patch_embedding.weight[:PLACES] = 0
    embeddings.class_embedding[:PLACES] = 0


@torch.no_grad()
def whiten(tower: Any, patches: npt.NDArray[np.float32]) -> None:
    """Start the patch embedding as whitened principal components of `patches` (N, 3 * PATCH * PATCH).

    Pixels of a patch are nearly alike; drawn at random, an embedding shows their mean and hides edges
    (arXiv 2404.00498 starts a convolutional network this way).
    """
    power, axes = np.linalg.eigh(np.cov(patches, rowvar=False))
    power, axes = power[::-1][: WIDTH - PLACES], axes[:, ::-1][:, : WIDTH - PLACES]
    filters = axes / np.sqrt(power + 1e-2)
    weight = tower.embeddings.patch_embedding.weight
    weight[PLACES:] = torch.from_numpy(filters.T.copy()).float().reshape(-1, *weight.shape[1:])


def place_in_grid(model: Any, left: int | None = None) -> None:
    """Give pictures smaller than `OWL_SIZE` the positions of a window of the grid instead of a squeezed grid.

    A patch then has its neighbours at the same distance at every size. `left` (and top) is the window's first column
    and row; None draws another window each time.
    """
    embeddings = model.owlv2.vision_model.embeddings

    def positions(_: Tensor, height: int, width: int) -> Tensor:
        side = height // PATCH
        x, y = (int(torch.randint(GRID - side + 1, ())) if left is None else left for _ in range(2))
        return window(embeddings.position_embedding.weight, x, y, side)[None]

    embeddings.interpolate_pos_encoding = positions


def window(table: Tensor, left: int, top: int, side: int) -> Tensor:
    """The class token's position and those of a square of the grid: (1 + GRID * GRID, D) -> (1 + side * side, D)."""
    grid = table[1:].reshape(GRID, GRID, -1)[top : top + side, left : left + side]
    return torch.cat([table[:1], grid.reshape(side * side, -1)])


class TextQueries:
    """The words a batch is asked about: every kind under a random template, and phrases of what is in sight."""

    def __init__(self, kinds: Sequence[str], rng: np.random.Generator) -> None:
        self.kinds, self.rng = list(kinds), rng

    def draw(self, things: list[Thing], phrases: int = 48) -> tuple[list[str], list[frozenset[str]]]:
        """Query texts and, for each, the words a thing must all have to match it."""
        template = SHORT_TEMPLATES[int(self.rng.integers(len(SHORT_TEMPLATES)))]
        texts, needs = [template.format(k) for k in self.kinds], [frozenset([k]) for k in self.kinds]
        picked = self.rng.permutation(len(things))[: 2 * phrases] if things else []
        seen = set(texts)
        for j in picked:
            thing = things[int(j)]
            if self.rng.random() < 0.6:
                text, need = thing.phrase, frozenset(thing.phrase.split()) & thing.words | {thing.kind}
            else:
                word = str(self.rng.choice(sorted(thing.words - {thing.kind}) or [thing.kind]))
                text, need = (f"{word} {thing.kind}", frozenset([word, thing.kind]))
            if text not in seen and len(texts) < len(self.kinds) + phrases:
                seen.add(text)
                texts.append(text)
                needs.append(need)
        return texts, needs


class Pretrainer:
    """Holds the model, the tokenizer and the losses."""

    def __init__(self, model: Any, tokenizer: Any, device: str) -> None:
        self.model, self.tokenizer, self.device = model.to(device), tokenizer, device

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (N, D), not normalised."""
        tokens = self.tokenizer(
            list(texts), padding="longest", truncation=True, max_length=CONTEXT, return_tensors="pt"
        )
        tokens = tokens.to(self.device)
        tower = self.model.owlv2
        pooled = tower.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
        return tower.text_projection(pooled)

    def losses(self, views: list[View], queries: TextQueries, phase: Phase) -> dict[str, Tensor]:
        """Named scalar losses of one batch."""
        pixels = torch.from_numpy(np.stack([v.pixels for v in views])).to(self.device)  # (B, 3, S, S)
        with torch.autocast(self.device, torch.bfloat16):
            features, outputs = self.model.image_embedder(pixels, interpolate_pos_encoding=True)
            losses: dict[str, Tensor] = {}
            if phase.clip_weight:
                pooled = self.model.owlv2.visual_projection(outputs.pooler_output)
                losses["clip"] = phase.clip_weight * self._contrast(pooled, [v.caption for v in views])
            if phase.dense_weight:
                dense = self._dense(features, views, queries)
                losses |= {name: phase.dense_weight * value for name, value in dense.items()}
        return losses

    def _contrast(self, pooled: Tensor, captions: list[str]) -> Tensor:
        """InfoNCE both ways; views that share a caption are positives of each other."""
        order = {text: i for i, text in enumerate(dict.fromkeys(captions))}
        ids = torch.tensor([order[c] for c in captions], device=self.device)
        text = F.normalize(self.encode_texts(list(order)).float(), dim=-1)  # (U, D), U distinct captions
        logits = F.normalize(pooled.float(), dim=-1) @ text.T * self.model.owlv2.logit_scale.exp().clamp(max=100)
        toward_text = F.cross_entropy(logits, ids)
        same = F.one_hot(ids, len(order)).T.float()  # (U, B)
        toward_image = -(F.log_softmax(logits.T, dim=-1) * same / same.sum(1, keepdim=True)).sum(1).mean()
        return (toward_text + toward_image) / 2

    def _dense(self, features: Tensor, views: list[View], queries: TextQueries) -> dict[str, Tensor]:
        batch, rows, columns, _ = features.shape
        flat = features.flatten(1, 2)  # (B, T, D)
        things = [t for v in views for t in v.things]
        offsets = np.cumsum([0, *(len(v.things) for v in views)])
        owner = torch.from_numpy(
            np.stack([np.where(v.owner >= 0, v.owner + o, -1) for v, o in zip(views, offsets, strict=False)])
        ).to(self.device)  # (B, T) index into `things`
        texts, needs = queries.draw(things)
        query = self.encode_texts(texts)
        logits = self.model.class_head(flat, query[None].expand(batch, -1, -1), None)[0].float()  # (B, T, Q)
        bias = self.model.compute_box_bias(rows, columns).to(self.device)
        boxes = (self.model.box_head(flat).float() + bias).sigmoid()  # (B, T, 4) cxcywh
        on = owner >= 0
        target_boxes = torch.tensor([t.box for t in things], device=self.device).reshape(-1, 4)[owner[on]]  # (P, 4)
        cx, cy, w, h = boxes[on].unbind(-1)
        found = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], -1)
        giou = 1 - generalized_box_iou_loss(found, target_boxes)  # (P,)
        quality = giou.detach().clamp(min=0.05)  # (P,) what the score should say
        match = torch.tensor([[need <= t.words for need in needs] for t in things], device=self.device).float()
        target = torch.zeros_like(logits)
        if len(found):
            target[on] = match[owner[on]] * quality[:, None]
        # Quality focal loss: soft targets, the easy zeros weighted down.
        weight = (target - logits.detach().sigmoid()).abs() ** 2
        score = (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight).sum()
        normal = max(int(on.sum()), 1)
        # The focal weights let wrong kinds rest at middling scores; a softmax over the kinds tells them apart.
        order = {kind: i for i, kind in enumerate(queries.kinds)}
        kind = torch.tensor([order[t.kind] for t in things], dtype=torch.long, device=self.device)[owner[on]]
        naming = F.cross_entropy(logits[on][:, : len(order)], kind) if len(found) else found.sum()
        objectness = self.model.objectness_predictor(flat).float()
        object_target = torch.zeros_like(objectness)
        object_target[on] = quality
        return {
            "class": 2.0 * score / normal,
            "name": 1.5 * naming,
            "giou": 2.0 * (1 - giou).sum() / normal,
            "l1": 4.0 * (found - target_boxes).abs().sum() / normal,
            "object": F.binary_cross_entropy_with_logits(objectness, object_target),
        }


def _optimizers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers." in n]
    chosen = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(hidden, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate * 0.5, weight_decay=0.01, betas=(0.9, 0.98)),
    ]


def _batches(views: SceneViews, phase: Phase, rng: np.random.Generator) -> Iterator[list[View]]:
    """Endless batches in epochs of a fresh order, the next one prepared while this one trains."""

    def prepare(indices: list[int], seed: int) -> list[View]:
        own = np.random.default_rng(seed)
        return [views.random(i, phase.size, PATCH, own, phase.views) for i in indices]

    def orders() -> Iterator[list[int]]:
        while True:
            order = rng.permutation(len(views)).tolist()
            for start in range(0, len(order) - phase.batch + 1, phase.batch):
                yield order[start : start + phase.batch]

    with ThreadPoolExecutor(1) as pool:
        pending = None
        for indices in orders():
            following = pool.submit(prepare, indices, int(rng.integers(2**63)))
            if pending is not None:
                yield pending.result()
            pending = following


def train_phase(
    trainer: Pretrainer,
    views: SceneViews,
    kinds: Sequence[str],
    phase: Phase,
    seconds: float,
    seed: int,
    progress: Progress,
    checkpoint: Path,
) -> None:
    """Train for `seconds`, the rate warming up over 3% of them and falling to its floor along a cosine.

    Every 5% the weights go to `checkpoint`; a run that finds one goes on from there (with fresh optimizer moments).
    """
    rng = np.random.default_rng(seed)
    queries, optimizers = TextQueries(kinds, rng), _optimizers(trainer.model, phase.rate)
    rates = [[g["lr"] for g in o.param_groups] for o in optimizers]
    before = resume(trainer.model, checkpoint)
    trainer.model.train()
    progress.start(phase.name, None)
    began, saved = time.monotonic(), before
    means: dict[str, float] = {}
    for step, batch in enumerate(_batches(views, phase, rng)):
        part = before + (time.monotonic() - began) / seconds
        if part >= 1:
            break
        warm = (part - before) / 0.03 if step else 0.0
        falling = phase.floor + (1 - phase.floor) * 0.5 * (1 + np.cos(np.pi * part))
        factor = max(min(warm, falling), 1e-3)
        for optimizer, base in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = rate * factor
        losses = trainer.losses(batch, queries, phase)
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(trainer.model.parameters(), 2.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        means = {k: 0.95 * means.get(k, v.item()) + 0.05 * v.item() for k, v in losses.items()}
        progress.advance(len(batch))
        if part - saved >= 0.05:
            saved = part
            save_weights(trainer.model, checkpoint, {"part": repr(part)})
            progress.note(f"{part:.0%} step {step + 1} " + " ".join(f"{k} {v:.3f}" for k, v in means.items()))
    progress.finish()


def save_weights(model: nn.Module, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write all weights of `model` to `path`, whole or not at all."""
    with staged(path, folder=False) as file:
        save_file({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, file, metadata)


def resume(model: nn.Module, checkpoint: Path) -> float:
    """Load a checkpoint if there is one; the share of the phase that it has behind it."""
    if not checkpoint.exists():
        return 0.0
    with safe_open(checkpoint, "pt") as file:
        part = float(file.metadata()["part"])
    model.load_state_dict(load_file(checkpoint))
    return part


@torch.no_grad()
def probe(trainer: Pretrainer, views: SceneViews, size: int, count: int = 200) -> dict[str, float]:
    """Text-to-image recall@1 over `count` whole scenes, and how often a patch on an object names its kind."""
    trainer.model.eval()
    count = min(count, len(views))
    plain = [views.plain(i, size, PATCH) for i in range(count)]
    kinds = sorted({t.kind for v in plain for t in v.things})
    query = trainer.encode_texts([f"a photo of a {k}" for k in kinds])
    pooled, right, overlaps = [], [], []
    for start in range(0, count, 50):
        part = plain[start : start + 50]
        pixels = torch.from_numpy(np.stack([v.pixels for v in part])).to(trainer.device)
        features, outputs = trainer.model.image_embedder(pixels, interpolate_pos_encoding=True)
        pooled.append(trainer.model.owlv2.visual_projection(outputs.pooler_output))
        flat = features.flatten(1, 2)
        logits = trainer.model.class_head(flat, query[None].expand(len(part), -1, -1), None)[0]
        boxes = (trainer.model.box_head(flat) + trainer.model.compute_box_bias(*features.shape[1:3])).sigmoid()
        for v, scores, found in zip(part, logits, boxes, strict=True):
            for j, thing in enumerate(v.things):
                mine = torch.from_numpy(np.flatnonzero(v.owner == j))
                if not len(mine):  # another thing shares its only patch
                    continue
                best = mine[scores[mine].amax(-1).argmax()]
                right.append(kinds[int(scores[best].argmax())] == thing.kind)
                cx, cy, w, h = found[best].tolist()
                box = torch.tensor([[cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]])
                overlaps.append(float(generalized_box_iou(box, torch.tensor([thing.box]))))
    images = F.normalize(torch.cat(pooled), dim=-1)
    texts = F.normalize(trainer.encode_texts([v.caption for v in plain]), dim=-1)
    hits = (texts @ images.T).argmax(1) == torch.arange(count)
    return {
        "recall@1": float(hits.float().mean()),
        "kind": float(np.mean(right)),
        "giou": float(np.mean(overlaps)),
    }


def main() -> None:
    """Render, train and save checkpoints; `adapt.pretrain_export` turns them into the shipped folders."""
    from transformers import AutoTokenizer

    from foveal.world import kinds

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="work folder: scenes, tokenizer, checkpoints")
    parser.add_argument("--scenes", type=int, default=20000, help="base scenes to render")
    parser.add_argument("--minutes", type=float, default=72, help="training time over all phases")
    parser.add_argument("--workers", type=int, default=2, help="rendering processes")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    progress, device = RichProgress(), pick_device(None)
    seed_everything(args.seed)
    folder = render_scenes(
        args.out / "scenes", "base", args.scenes, seed=args.seed, size=224, workers=args.workers, progress=progress
    )
    checks = {
        domain: SceneViews(
            render_scenes(args.out / f"check-{domain}", domain, 200, seed=args.seed + 1, size=224, workers=args.workers)
        )
        for domain in ("base", "site")
    }
    views = SceneViews(folder)
    recipe = {
        "scenes": args.scenes,
        "minutes": args.minutes,
        "seed": args.seed,
        "data_fingerprint": views.fingerprint(),
        "machine": describe_machine()["cpu"] if device == "cpu" else device,
    }
    (args.out / "recipe.json").write_text(json.dumps(recipe, indent=2))
    vocabulary = build_tokenizer(views.sentences(), args.out / "tokenizer", VOCABULARY, CONTEXT)
    tokenizer = AutoTokenizer.from_pretrained(args.out / "tokenizer")
    trainer = Pretrainer(build_model(vocabulary), tokenizer, device)
    whiten(trainer.model.owlv2.vision_model, views.patches(PATCH, 20_000, np.random.default_rng(args.seed)))
    for number, phase in enumerate(PHASES):
        checkpoint = args.out / f"{phase.name}.safetensors"
        if checkpoint.exists():
            trainer.model.load_state_dict(load_file(checkpoint))
            continue
        place_in_grid(trainer.model, phase.left)
        partial = args.out / f"{phase.name}.partial.safetensors"
        seconds = args.minutes * 60 * phase.share
        train_phase(trainer, views, kinds("base"), phase, seconds, args.seed + number, progress, partial)
        place_in_grid(trainer.model, (GRID - phase.size // PATCH) // 2)
        figures = {domain: probe(trainer, check, phase.size) for domain, check in checks.items()}
        progress.note(f"{phase.name}: {json.dumps(figures)}")
        (args.out / f"{phase.name}.json").write_text(json.dumps(figures, indent=2))
        save_weights(trainer.model, checkpoint)
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
