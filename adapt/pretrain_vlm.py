"""Train the bundled VLM from rendered scenes: a LLaVA whose vision tower starts as the bundled OWLv2's.

    python -m adapt.pretrain_vlm --out runs/pretrain --minutes 60

Needs the scenes that `adapt.pretrain` rendered (it renders them when they are not there). Small windows of a scene come
first: the language model learns to read patches where there are few of them. A sequence holds the picture once and
many questions after it, none of which sees another: every question is answered as if it were asked alone.

Shape letters: B views, S pixels, T patches, L tokens, Q questions a view, D dimensions.
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
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from adapt.pretrain import GRID, PATCH, VISION_LAYERS, WIDTH, resume, save_weights, window
from adapt.pretrain_data import Mix, SceneViews, View, render_scenes
from adapt.pretrain_dialogues import draw
from foveal.models import BACKBONES
from foveal.progress import Progress, RichProgress
from foveal.runtime import describe_machine, pick_device, seed_everything
from foveal.vlm_prompts import side_by_side

SIDE = 192  # pixels
LANGUAGE_WIDTH, LANGUAGE_LAYERS, LANGUAGE_HEADS = 256, 4, 4
VOCABULARY = 1024
PAD, BEGIN, END, IMAGE = "<pad>", "<s>", "</s>", "<image>"
QUESTION, ANSWER = "\n{}", " ASSISTANT:"  # after "USER: <image>"; the answer follows a space
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %} ASSISTANT: {% else %}{% if not loop.first %} {% endif %}USER: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of training at one resolution; `share` of the time budget."""

    name: str
    size: int
    batch: int
    share: float
    rate: float
    questions: int
    views: Mix
    tower: float  # rate of the vision tower, as a share; 0 leaves it alone


PHASES = (
    Phase("near", 96, 24, 0.35, 2e-3, 10, Mix(whole=0.0, crop=0.8, area=(0.08, 0.3)), tower=0.0),
    Phase("whole", SIDE, 12, 0.65, 1.5e-3, 16, Mix(whole=0.8, crop=0.2, area=(0.4, 0.9)), tower=0.2),
)


def build_tokenizer(sentences: Sequence[str], folder: Path) -> Any:
    """A byte-level BPE over `sentences` in which a word, or a number such as 0.37, is mostly one token."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Split(Regex(r" ?\d\.\d\d| ?[A-Za-z]+|\s+|[^\sA-Za-z]"), "isolated")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    special = [AddedToken(word, special=True, normalized=False) for word in (PAD, BEGIN, END, IMAGE)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(sentences, trainer)
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        extra_special_tokens={"image_token": IMAGE},
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_model(vocabulary: int, image_token: int, pad: int, begin: int, end: int) -> Any:
    """A LlavaForConditionalGeneration whose vision tower is the bundled OWLv2's and the rest untrained."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=6,
        image_size=SIDE,
        patch_size=PATCH,
        hidden_act="gelu",
        projection_dim=WIDTH,
    )
    language = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=LANGUAGE_WIDTH,
        intermediate_size=3 * LANGUAGE_WIDTH,
        num_hidden_layers=LANGUAGE_LAYERS,
        num_attention_heads=LANGUAGE_HEADS,
        num_key_value_heads=LANGUAGE_HEADS,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=pad,
        bos_token_id=begin,
        eos_token_id=end,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=image_token,
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model: Any = LlavaForConditionalGeneration(config)
    model.set_attn_implementation("sdpa")
    _start_tower(model.model.vision_tower, load_file(BACKBONES / "owl" / "model.safetensors"))
    for layer in model.model.language_model.layers:
        for linear in (m for m in layer.modules() if isinstance(m, nn.Linear)):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        for last in (layer.self_attn.o_proj, layer.mlp.down_proj):
            last.weight.data.mul_(0.5)
    return model


@torch.no_grad()
def _start_tower(tower: Any, owl: dict[str, Tensor]) -> None:
    """OWLv2's vision tower is CLIP's; only one norm is spelt otherwise, and a window of its positions is taken."""
    prefix = "owlv2.vision_model."
    state = {name.removeprefix(prefix): value.float() for name, value in owl.items() if name.startswith(prefix)}
    state = {name.replace("pre_layernorm", "pre_layrnorm"): value for name, value in state.items()}
    side = SIDE // PATCH
    left = (GRID - side) // 2
    places = "embeddings.position_embedding.weight"
    state[places] = window(state[places], left, left, side)
    tower.load_state_dict(state)


class Reader:
    """The model with its tokenizer: views and questions in, loss or answers out."""

    def __init__(self, model: Any, tokenizer: Any, device: str) -> None:
        self.model, self.tokenizer, self.device = model.to(device), tokenizer, device
        self.before = [*self.ids(BEGIN + "USER: ")]
        self.end = tokenizer.eos_token_id

    def ids(self, text: str) -> list[int]:
        """Token ids of a text as it stands."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def features(self, pixels: Tensor, learn: bool) -> Tensor:
        """Pixels (B, 3, S, S) -> what the language model reads (B, T, D); smaller squares take the middle positions."""
        tower = self.model.model.vision_tower
        side, whole = pixels.shape[-1] // PATCH, SIDE // PATCH
        left = (whole - side) // 2
        embeddings = tower.embeddings
        with torch.set_grad_enabled(learn):
            patches = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
            first = embeddings.class_embedding.expand(len(pixels), 1, -1)
            table = embeddings.position_embedding.weight
            grid = table[1:].reshape(whole, whole, -1)[left : left + side, left : left + side].flatten(0, 1)
            hidden = torch.cat([first, patches], dim=1) + torch.cat([table[:1], grid])
            hidden = tower.encoder(inputs_embeds=tower.pre_layrnorm(hidden)).last_hidden_state[:, 1:]
        return self.model.model.multi_modal_projector(hidden)

    def pack(self, dialogues: Sequence[Sequence[tuple[str, str]]], patches: int) -> dict[str, Tensor]:
        """Token ids (B, L), positions, targets, and a mask (B, 1, L, L) by which each question sees the picture and
        itself alone.
        """
        head = len(self.before) + patches
        rows: list[list[tuple[list[int], list[int]]]] = []
        for questions in dialogues:
            row: list[tuple[list[int], list[int]]] = []
            for question, answer in questions:
                asked = self.ids(QUESTION.format(question) + ANSWER)
                row.append((asked, [*self.ids(f" {answer}"), self.end]))
            rows.append(row)
        length = head + max(sum(len(asked) + len(said) for asked, said in row) for row in rows)
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        positions = torch.zeros(len(rows), length, dtype=torch.long)
        targets = torch.full((len(rows), length), -100)
        owner = torch.full((len(rows), length), -1)  # question a token belongs to; 0 is the picture
        ids[:, : len(self.before)] = torch.tensor(self.before)
        positions[:, :head], owner[:, :head] = torch.arange(head), 0
        for b, row in enumerate(rows):
            at = head
            for number, (asked, said) in enumerate(row, start=1):
                words = [*asked, *said]
                stop = at + len(words)
                ids[b, at:stop] = torch.tensor(words)
                positions[b, at:stop] = head + torch.arange(len(words))
                owner[b, at:stop] = number
                targets[b, at + len(asked) - 1 : stop - 1] = torch.tensor(said)
                at = stop
        packed = {"ids": ids, "positions": positions, "targets": targets, "mask": side_by_side(owner)}
        return {name: value.to(self.device) for name, value in packed.items()}

    def loss(self, views: Sequence[View], dialogues: Sequence[Sequence[tuple[str, str]]], learn: bool) -> Tensor:
        """Mean loss over the answers' tokens."""
        pixels = torch.from_numpy(np.stack([view.pixels for view in views])).to(self.device)
        packed = self.pack(dialogues, (pixels.shape[-1] // PATCH) ** 2)
        with torch.autocast(self.device, torch.bfloat16):
            seen = self.features(pixels, learn)
            words = self.model.model.language_model.embed_tokens(packed["ids"])
            at = len(self.before)
            embedded = torch.cat([words[:, :at], seen.to(words.dtype), words[:, at + seen.shape[1] :]], dim=1)
            hidden = self.model.model.language_model(
                inputs_embeds=embedded, attention_mask=packed["mask"], position_ids=packed["positions"]
            ).last_hidden_state
            answers = packed["targets"] >= 0
            logits = self.model.lm_head(hidden[answers])
        return F.cross_entropy(logits.float(), packed["targets"][answers])


def _optimizers(model: nn.Module, phase: Phase) -> list[torch.optim.Optimizer]:
    """Muon for hidden matrices, AdamW for the rest; the vision tower at its share of the rate."""
    hidden: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    rest: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        tower = "vision_tower" in name
        parameter.requires_grad_(not tower or phase.tower > 0)
        if parameter.requires_grad:
            (hidden if parameter.ndim == 2 and "layers." in name else rest)[tower].append(parameter)
    rates = {False: phase.rate, True: phase.rate * phase.tower}
    muon = [{"params": group, "lr": rates[tower]} for tower, group in hidden.items() if group]
    adam = [{"params": group, "lr": rates[tower] * 0.7} for tower, group in rest.items() if group]
    return [
        torch.optim.Muon(muon, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(adam, weight_decay=0.01, betas=(0.9, 0.98)),
    ]


Batch = tuple[list[View], list[list[tuple[str, str]]]]


def _batches(views: SceneViews, phase: Phase, seed: int) -> Iterator[Batch]:
    """Endless batches, the next one prepared while this one trains."""
    rng = np.random.default_rng(seed)

    def prepare(seed: int) -> Batch:
        own = np.random.default_rng(seed)
        chosen = own.choice(len(views), phase.batch, replace=False).tolist()
        drawn = [views.random(i, phase.size, PATCH, own, phase.views) for i in chosen]
        return drawn, [draw(view, phase.questions, own) for view in drawn]

    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(prepare, int(rng.integers(2**62)))
        while True:
            following = pool.submit(prepare, int(rng.integers(2**62)))
            yield pending.result()
            pending = following


def train_phase(
    reader: Reader, views: SceneViews, phase: Phase, seconds: float, seed: int, progress: Progress, file: Path
) -> None:
    """Train for `seconds`, warming up over 3% of them, annealing along a cosine.

    Every 4% the weights go to `file`; a run that finds them goes on from there (with fresh optimizer moments).
    """
    before = resume(reader.model.model, file)
    optimizers = _optimizers(reader.model, phase)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    reader.model.train()
    progress.start(phase.name, None)
    began, saved, mean = time.monotonic(), before, 0.0
    for step, (drawn, dialogues) in enumerate(_batches(views, phase, seed)):
        part = before + (time.monotonic() - began) / seconds
        if part >= 1:
            break
        floor = 0.3 if phase is not PHASES[-1] else 0.0
        factor = max(min((part - before) / 0.03, floor + (1 - floor) * 0.5 * (1 + np.cos(np.pi * part))), 1e-3)
        for optimizer, base in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = rate * factor
        loss = reader.loss(drawn, dialogues, phase.tower > 0)
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in reader.model.parameters() if p.requires_grad], 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        mean = float(loss.detach()) if not step else 0.97 * mean + 0.03 * float(loss.detach())
        progress.advance(len(drawn))
        if part - saved >= 0.04:
            saved = part
            save_weights(reader.model.model, file, {"part": repr(part)})  # the output layer is the embedding
            progress.note(f"{part:.0%} step {step + 1} loss {mean:.4f}")
    save_weights(reader.model.model, file, {"part": "1.0"})
    progress.finish()


def main() -> None:
    """Render, train and save checkpoints; `adapt.pretrain_vlm_export` turns the last into the shipped folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="work folder: scenes, tokenizer, checkpoints")
    parser.add_argument("--scenes", type=int, default=20000, help="base scenes to render")
    parser.add_argument("--minutes", type=float, default=60, help="training time over all phases")
    parser.add_argument("--workers", type=int, default=2, help="rendering processes")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    progress, device = RichProgress(), pick_device(None)
    seed_everything(args.seed)
    folder = render_scenes(
        args.out / "scenes", "base", args.scenes, seed=args.seed, size=224, workers=args.workers, progress=progress
    )
    views, out = SceneViews(folder), args.out / "vlm"
    out.mkdir(exist_ok=True)
    rng = np.random.default_rng(args.seed)
    texts = [
        QUESTION.format(question) + ANSWER + f" {answer}"
        for i in rng.choice(len(views), 3000).tolist()
        for question, answer in draw(views.plain(i, 32, PATCH), 12, rng)
    ]
    tokenizer = build_tokenizer(texts, out / "tokenizer")
    recipe = {
        "scenes": args.scenes,
        "minutes": args.minutes,
        "seed": args.seed,
        "data_fingerprint": views.fingerprint(),
    }
    recipe["machine"] = describe_machine()["cpu"] if device == "cpu" else device
    (out / "recipe.json").write_text(json.dumps(recipe, indent=2))
    ids = (tokenizer.convert_tokens_to_ids(word) for word in (IMAGE, PAD, BEGIN, END))
    reader = Reader(build_model(len(tokenizer), *ids), tokenizer, device)
    for number, phase in enumerate(PHASES):
        file = out / f"{phase.name}.safetensors"
        train_phase(reader, views, phase, args.minutes * 60 * phase.share, args.seed + number, progress, file)


if __name__ == "__main__":
    main()
