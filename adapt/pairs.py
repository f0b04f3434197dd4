"""Image-caption pairs for contrastive training: decoded once, augmented as tensors, in an order that can be resumed.

Shape letters: N images, M captions, B pairs in a batch, S side of the square the model sees, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from adapt.job import Order
from adapt.run import check_share
from adapt.targets import Tower
from evals.zero_shot import TEMPLATES
from foveal.dataset import Dataset, Sample
from foveal.detections import FloatArray
from foveal.encoders import TorchEncoder
from foveal.errors import BadImage, BadInput
from foveal.progress import Progress, track

BATCH = 64
DRAWS = 9  # random numbers an example takes: its caption, and eight for `augmented`
LABEL, CAPTION = "label ", "caption "  # how a meaning begins
FEATURES = "features"  # stands in a batch for the inputs of a tower that does not learn


@dataclass
class Pairs:
    """Pixels and captions in memory, ready for batches."""

    pixels: Tensor  # (N, 3, S, S) uint8, resized as the encoder does
    tokens: dict[str, Tensor]  # each (M, L)
    first: Tensor  # (N + 1,) captions of image i are first[i] .. first[i + 1] - 1
    meaning: Tensor  # (M,) equal for captions that are equal word for word or name the same class
    mean: Tensor  # (3,)
    deviation: Tensor  # (3,)
    image_key: str  # the name under which the model takes its pixels
    paths: list[Path]  # of the images
    overlong: int  # captions that were cut at the model's context
    skipped: list[tuple[Path, str]]
    labelled: bool  # every caption is a template around a class name

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
    paths: list[Path] = []
    captions: list[tuple[str, ...]] = []
    meanings: list[str] = []
    skipped: list[tuple[Path, str]] = []
    key = ""
    mean, deviation = (x.view(3, 1, 1) for x in encoder.pixel_statistics)
    worded = [(sample, *said) for sample in dataset if (said := _captions(sample))[0]]
    if not worded:
        raise BadInput("nothing to learn from", expected="images with captions or labels", received="none of either")
    chunks = [worded[i : i + BATCH] for i in range(0, len(worded), BATCH)]
    for chunk in track(progress, chunks, "decode images"):
        images = []
        for sample, texts, says in chunk:
            try:
                images.append(sample.image())
                paths.append(sample.path)
                captions.append(texts)
                meanings.extend(says)
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
    check_share(skipped, len(worded), max_skipped)
    texts = [text for group in captions for text in group]
    known = {what: i for i, what in enumerate(dict.fromkeys(meanings))}
    if len(known) < 2:
        raise BadInput(
            "nothing to tell apart: every image has the same caption or label",
            expected="at least two different ones",
            received=repr(texts[0]),
        )
    counts = torch.tensor([0, *(len(group) for group in captions)])
    return Pairs(
        pixels=torch.cat(pixels),
        tokens=encoder.text_inputs(texts),
        first=counts.cumsum(0),
        meaning=torch.tensor([known[what] for what in meanings]),
        mean=mean,
        deviation=deviation,
        image_key=key,
        paths=paths,
        overlong=encoder.overlong(texts),
        skipped=skipped,
        labelled=all(what.startswith(LABEL) for what in known),
    )


def _captions(sample: Sample) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts of a sample and, for each, what it says: equal for texts that are no negatives of each other."""
    texts = tuple(text for text in sample.captions if text.strip())
    if not texts and sample.label:
        return tuple(t.replace("{}", sample.label) for t in TEMPLATES), (f"{LABEL}{sample.label}",) * len(TEMPLATES)
    return texts, tuple(f"{CAPTION}{text}" for text in texts)


class Collator:
    """Items -> a batch: one caption an image at random, light augmentation, drawn from seed and position alone.

    Where all images are labelled, texts are not those of the images but of classes, one template each at random: those
    of the whole batch, and others up to its size. `same` (B, M) says which text belongs to which image; for captions it
    is left to the loss, which sees all processes' rows, to compare `meaning` (B,).

    Args:
        order: of the run, which tells what the whole batch is that these items are part of.
        frozen: features (N, D) of all images or (M, D) of all captions where that tower does not learn; they stand in
            for its inputs.
    """

    def __init__(self, pairs: Pairs, order: Order, augment: bool, frozen: dict[Tower, Tensor] | None = None) -> None:
        self.pairs, self.order, self.seed = pairs, order, order.seed
        self.augment, self.frozen = augment, frozen or {}
        # Of each class, the first of its captions: they stand together, one a template.
        _, places = np.unique(pairs.meaning.numpy(), return_index=True)
        self._captions = torch.from_numpy(places)

    def __call__(self, items: Sequence[tuple[int, int]]) -> dict[str, Tensor | dict[str, Tensor]]:
        pairs = self.pairs
        draws = np.stack([np.random.default_rng((self.seed, position)).random(DRAWS) for position, _ in items])
        random = torch.from_numpy(draws).float()  # (B, DRAWS) in [0, 1)
        index = torch.tensor([image for _, image in items])
        image = self._image(index, random[:, 1:])
        if self.pairs.labelled:
            classes, caption = self._classes(items[0][0] // self.order.batch)
            own = self.pairs.meaning[self.pairs.first[index]]
            return {"image": image, "text": self._text(caption), "same": own[:, None] == classes[None, :]}
        lowest, beyond = pairs.first[index], pairs.first[index + 1]
        caption = (lowest + (random[:, 0] * (beyond - lowest)).long()).clamp(max=beyond - 1)
        return {
            "image": image,
            "text": self._text(caption),
            "meaning": pairs.meaning[caption],
        }

    def _classes(self, step: int) -> tuple[Tensor, Tensor]:
        """The classes that the batch of a step is told apart by, and a caption of each."""
        batch, rng = self.order.batch, np.random.default_rng((self.seed, step, 0))
        shown = [self.order[step * batch + i][1] for i in range(batch)]
        present = self.pairs.meaning[self.pairs.first[torch.tensor(shown)]].unique()
        shuffled = torch.from_numpy(rng.permutation(len(self._captions)))
        others = shuffled[~torch.isin(shuffled, present)][: max(0, batch - len(present))]
        classes = torch.cat([present, others])
        return classes, self._captions[classes] + torch.from_numpy(rng.integers(len(TEMPLATES), size=len(classes)))

    def _image(self, index: Tensor, random: Tensor) -> dict[str, Tensor]:
        if "image" in self.frozen:
            return {FEATURES: self.frozen["image"][index]}
        pixels = self.pairs.pixels[index].float() / 255
        if self.augment:
            pixels = augmented(pixels, random)
        return {self.pairs.image_key: (pixels - self.pairs.mean) / self.pairs.deviation}

    def _text(self, caption: Tensor) -> dict[str, Tensor]:
        if "text" in self.frozen:
            return {FEATURES: self.frozen["text"][caption]}
        return {name: tokens[caption] for name, tokens in self.pairs.tokens.items()}


def augmented(pixels: Tensor, random: Tensor) -> Tensor:
    """Pixels (B, 3, S, S) in [0, 1], each cropped to 85-100% a side and shifted in brightness, contrast and colour by
    random numbers (B, 8) in [0, 1).

    Nothing is mirrored: captions say left and right.
    """
    zoom = 0.85 + 0.15 * random[:, 0]
    move = (2 * random[:, 1:3] - 1) * (1 - zoom)[:, None]
    affine = torch.zeros(len(pixels), 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = zoom
    affine[:, :, 2] = move
    grid = functional.affine_grid(affine, list(pixels.shape), align_corners=False)
    pixels = functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    contrast, brightness = (0.8 + 0.4 * random[:, 3:5]).T[:, :, None, None, None]
    tint = 0.95 + 0.1 * random[:, 5:8, None, None]
    grey = pixels.mean(dim=(1, 2, 3), keepdim=True)
    return (((pixels - grey) * contrast + grey * brightness) * tint).clamp_(0, 1)


def look_alikes(vectors: FloatArray, group: int, candidates: int = 32) -> Callable[[list[int]], list[int]]:
    """An arrangement for `adapt.job.Order` that shows each image next to `group` - 1 of its nearest neighbours.

    In a contrastive batch these are the negatives worth telling apart (arXiv 2007.00808 draws them from an index too).

    Args:
        vectors: (N, D) unit-length image embeddings.
        candidates: neighbours looked at for ones not yet placed.
    """
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)  # pyright: ignore
    _, near = index.search(vectors, min(candidates + 1, len(vectors)))  # pyright: ignore

    def arrange(order: list[int]) -> list[int]:
        placed: set[int] = set()
        arranged: list[int] = []
        for image in order:
            if image in placed:
                continue
            fellows = [int(n) for n in near[image] if n != image and n not in placed][: group - 1]
            arranged += [image, *fellows]
            placed.update((image, *fellows))
        return arranged

    return arrange
