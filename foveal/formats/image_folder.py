"""A folder a class: `cat/1.jpg`, `dog/2.jpg`."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from foveal.artifacts import staged
from foveal.dataset import Dataset
from foveal.errors import BadInput
from foveal.formats.images import check_any, scan
from foveal.formats.places import copy_images, file_names
from foveal.images import find_images


def recognises(path: Path) -> bool:
    """A folder with two or more subfolders of images, and no image beside them."""
    if not path.is_dir():
        return False
    return len(_class_folders(path)) > 1 and not any(image.parent == path for image in find_images(path))


def read(path: Path) -> Dataset:
    """Images labelled by the subfolder they lie in, however deep; unreadable ones are listed in `.skipped`.

    Raises:
        BadInput: there are no subfolders with images, or not one image can be read.
    """
    folders = _class_folders(path)
    if not folders:
        raise BadInput(f"{path} has no class folders", expected=f"{path / 'CLASS' / 'image.jpg'}")
    skipped: list[tuple[Path, str]] = []
    samples = chain.from_iterable(scan(find_images(f), path, skipped, label=f.name) for f in folders)
    dataset = Dataset.build(samples, [folder.name for folder in folders])
    dataset.skipped = tuple(skipped)
    check_any(dataset, path)
    return dataset


def write(dataset: Dataset, path: Path) -> None:
    """Copy each image into the folder of its label.

    Raises:
        BadInput: a sample has no label, or one that cannot name a folder.
    """
    labels: list[str | None] = dataset.arrow.column("label").to_pylist()
    for sample_id, label in zip(dataset.ids, labels, strict=True):
        if label is None:
            raise BadInput(
                f"sample {sample_id!r} has no label", expected="one label an image", remedy="Choose another format."
            )
        if "/" in label or "\\" in label or label.startswith("."):
            raise BadInput(f"class {label!r} cannot name a folder", remedy="Rename the class.")
    names = [
        name if name.startswith(f"{label}/") else f"{label}/{name}"
        for label, name in zip(labels, file_names(dataset), strict=True)
    ]
    with staged(path, folder=True) as folder:
        copy_images(dataset, names, folder)


def _class_folders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    subfolders = [entry for entry in sorted(path.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    return [folder for folder in subfolders if find_images(folder)]
