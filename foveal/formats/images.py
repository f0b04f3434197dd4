"""A folder of images without labels, or a single image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from foveal.artifacts import staged
from foveal.dataset import Dataset, Sample
from foveal.errors import BadImage, BadInput
from foveal.formats.places import copy_images, file_names
from foveal.images import SUFFIXES, find_images, size


def recognises(path: Path) -> bool:
    """An image file, or any folder with images below it."""
    if path.is_file():
        return path.suffix.lower() in SUFFIXES
    return bool(find_images(path))


def read(path: Path) -> Dataset:
    """Every readable image below `path`; its id is its relative path. Others are listed in `.skipped`.

    Raises:
        BadInput: not one can be read.
    """
    base = path if path.is_dir() else path.parent
    skipped: list[tuple[Path, str]] = []
    found = find_images(path)
    dataset = Dataset.build(scan(found, base, skipped), ())
    dataset.skipped = tuple(skipped)
    check_any(dataset, path)
    return dataset


def write(dataset: Dataset, path: Path) -> None:
    """Copy the images into one folder; everything else is left behind."""
    with staged(path, folder=True) as folder:
        copy_images(dataset, file_names(dataset), folder)


def scan(
    paths: Iterable[Path], base: Path, skipped: list[tuple[Path, str]], label: str | None = None
) -> Iterator[Sample]:
    """A sample for each image whose header reads; the others go to `skipped` with the reason."""
    for path in paths:
        try:
            width, height = size(path)
        except BadImage as error:
            skipped.append((path, str(error)))
            continue
        yield Sample(id=path.relative_to(base).as_posix(), path=path, width=width, height=height, label=label)


def check_any(dataset: Dataset, path: Path) -> None:
    """Raise BadInput when a folder gave no image at all."""
    if len(dataset):
        return
    count = len(dataset.skipped)
    received = f"{count} that cannot be read, the first: {dataset.skipped[0][1]}" if count else "none"
    raise BadInput(f"{path} has no usable image", expected="JPEG, PNG, WebP, TIFF, ...", received=received)
