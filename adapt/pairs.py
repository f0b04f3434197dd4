"""Image-caption pairs for contrastive training: decoded once, augmented as tensors, in an order that can be resumed.

Shape letters: N images, M captions, B pairs in a batch, S side of the square the model sees, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.utils.data
from torch import Tensor
from torch.nn import functional

from foveal.dataset import Dataset, Sample
from foveal.encoders import TorchEncoder
from foveal.errors import BadImage, BadInput
from foveal.progress import Progress, track

BATCH = 64


@dataclass
class Pairs:
    """Pixels and captions in memory, ready for batches."""

    pixels: Tensor  # (N, 3, S, S) uint8, resized as the encoder does
    tokens: dict[str, Tensor]  # each (M, L)
    first: Tensor  # (N + 1,) captions of image i are first[i] .. first[i + 1] - 1
    wording: Tensor  # (M,) equal for captions that are equal word for word
    mean: Tensor  # (3,)
    deviation: Tensor  # (3,)
    image_key: str  # the name under which the model takes its pixels
    skipped: list[tuple[Path, str]]

    def __len__(self) -> int:
        return len(self.pixels)


def load_pairs(
    encoder: TorchEncoder, dataset: Dataset, max_skipped: float = 0.1, progress: Progress | None = None
) -> Pairs:
    """Decode, resize and tokenise every captioned image of `dataset` once; a class label serves where captions lack.

    An image takes 3·S·S bytes: 77 kB at 160 px, 150 kB at 224 px.

    Raises:
        BadInput: nothing is captioned, more than the share `max_skipped` cannot be read, or the model takes images of
            no fixed size.
    """
    pixels: list[Tensor] = []
    captions: list[tuple[str, ...]] = []
    skipped: list[tuple[Path, str]] = []
    key = ""
    mean, deviation = (x.view(3, 1, 1) for x in encoder.pixel_statistics)
    worded = [(sample, texts) for sample in dataset if (texts := _captions(sample))]
    if not worded:
        raise BadInput("nothing to learn from", expected="images with captions or labels", received="none of either")
    chunks = [worded[i : i + BATCH] for i in range(0, len(worded), BATCH)]
    for chunk in track(progress, chunks, "decode images"):
        images = []
        for sample, texts in chunk:
            try:
                images.append(sample.image())
                captions.append(texts)
            except BadImage as error:
                skipped.append((sample.path, str(error)))
        if images:
            key, batch = next(iter(encoder.image_inputs(images).items()))
            if batch.ndim != 4:
                raise BadInput(
                    f"{encoder.name} takes images of any size, which adaptation does not support",
                    expected="a model with a fixed input size",
                )
            pixels.append(((batch * deviation + mean) * 255).round().clamp(0, 255).to(torch.uint8))
    if len(skipped) > max_skipped * len(worded):
        path, reason = skipped[0]
        raise BadInput(
            f"{len(skipped)} of {len(worded)} images cannot be read, the first {path}: {reason}",
            expected=f"at most {max_skipped:.0%}",
            remedy="Mend or remove them, or raise max_skipped.",
        )
    texts = [text for group in captions for text in group]
    known = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    counts = torch.tensor([0, *(len(group) for group in captions)])
    return Pairs(
        pixels=torch.cat(pixels),
        tokens=encoder.text_inputs(texts),
        first=counts.cumsum(0),
        wording=torch.tensor([known[text] for text in texts]),
        mean=mean,
        deviation=deviation,
        image_key=key,
        skipped=skipped,
    )


def _captions(sample: Sample) -> tuple[str, ...]:
    texts = tuple(text for text in sample.captions if text.strip())
    return texts or ((f"a photo of a {sample.label}",) if sample.label else ())


class Order(torch.utils.data.Dataset[tuple[int, int]]):
    """Positions of an endless-looking training run: item k is (k, index of the image shown k-th).

    Every epoch is its own shuffle by seed, cut to whole batches so that no batch shows an image twice. A run that is
    resumed at position k therefore sees exactly what an uninterrupted one would have seen.
    """

    def __init__(self, count: int, batch: int, epochs: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self.per_epoch = max(batch, count - count % batch) if count >= batch else count
        self.epochs = epochs
        self._shuffled: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return self.per_epoch * self.epochs

    def __getitem__(self, position: int) -> tuple[int, int]:
        epoch, offset = divmod(position, self.per_epoch)
        if self._shuffled[0] != epoch:
            self._shuffled = (epoch, np.random.default_rng((self.seed, epoch)).permutation(self.count).tolist())
        return position, self._shuffled[1][offset]


class Collator:
    """Positions -> a batch: one caption an image at random, light augmentation, all drawn from seed and position."""

    def __init__(self, pairs: Pairs, seed: int, augment: bool) -> None:
        self.pairs, self.seed, self.augment = pairs, seed, augment

    def __call__(self, items: Sequence[tuple[int, int]]) -> dict[str, Tensor | dict[str, Tensor]]:
        pairs = self.pairs
        random = torch.Generator().manual_seed((self.seed << 40) + items[0][0])
        index = torch.tensor([image for _, image in items])
        lowest, beyond = pairs.first[index], pairs.first[index + 1]
        drawn = torch.rand(len(index), generator=random)
        caption = (lowest + (drawn * (beyond - lowest)).long()).clamp(max=beyond - 1)
        pixels = pairs.pixels[index].float() / 255
        if self.augment:
            pixels = augmented(pixels, random)
        wording = pairs.wording[caption]
        return {
            "image": {pairs.image_key: (pixels - pairs.mean) / pairs.deviation},
            "text": {name: tokens[caption] for name, tokens in pairs.tokens.items()},
            "same": wording[:, None] == wording[None, :],
        }


def augmented(pixels: Tensor, random: torch.Generator) -> Tensor:
    """Pixels (B, 3, S, S) in [0, 1], each cropped to 85-100% a side and shifted in brightness, contrast and colour.

    Nothing is mirrored: captions say left and right.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(pixels), *shape, generator=random)

    zoom = uniform(0.85, 1.0)
    move = uniform(-1.0, 1.0, 2) * (1 - zoom)[:, None]
    affine = torch.zeros(len(pixels), 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = zoom
    affine[:, :, 2] = move
    grid = functional.affine_grid(affine, list(pixels.shape), align_corners=False)
    pixels = functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    grey = pixels.mean(dim=(1, 2, 3), keepdim=True)
    pixels = (pixels - grey) * uniform(0.8, 1.2, 1, 1, 1) + grey * uniform(0.8, 1.2, 1, 1, 1)
    return (pixels * uniform(0.95, 1.05, 3, 1, 1)).clamp_(0, 1)
