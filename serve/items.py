"""Images of an archive as the server knows them, and their pixels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foveal.errors import BadImage
from foveal.images import decode
from retrieval.blur import Blur, open_file
from retrieval.facts import THUMBNAIL_SIDE
from retrieval.sources import local_path
from retrieval.stores import AnyArchive
from serve.limits import NotFound, TooLarge

if TYPE_CHECKING:
    from PIL.Image import Image

COLUMNS = ("uri", "content_hash", "width", "height", "metadata")


@dataclass(frozen=True, slots=True)
class Item:
    """One image of an archive."""

    id: str
    uri: str
    content_hash: str
    width: int
    height: int
    metadata: Mapping[str, str | int | float]
    archive: str


def item_of(archive: str, id: str, row: Mapping[str, Any]) -> Item:
    """The item of a row of its archive's table, with `COLUMNS`."""
    told: dict[str, Any] = {**row, "id": id, "metadata": json.loads(row["metadata"]), "archive": archive}
    return Item(**told)


def spread(name: str, store: AnyArchive, count: int) -> list[Item]:
    """Up to `count` items of the archive of this name, see `AnyArchive.some`."""
    chosen = store.some(count)
    found = store.items(chosen, COLUMNS)
    return [item_of(name, id, found[id]) for id in chosen if id in found]


def pixels(store: AnyArchive, item: Item, min_side: int | None, blur: Blur | None) -> Image:
    """See `Engine.picture`."""
    path = local_path(item.uri)
    if path is not None and path.is_file():
        if open_file(path, item.metadata) is not None:
            return decode(path, min_side=min_side)
        if blur is not None and blur.made(item.metadata) and (min_side is None or min_side > THUMBNAIL_SIDE):
            return blur(decode(path))[0]
        if min_side is None:
            raise NotFound(
                f"the file of item {item.id} shows what was blurred when it was taken in",
                remedy="Start the server with the same --blur.",
            )
    row = {} if min_side is None else store.items([item.id], ("thumbnail",)).get(item.id, {})
    if (thumbnail := row.get("thumbnail")) is None:
        raise NotFound(f"the file of item {item.id} is no longer where it was", remedy="Run `foveal archive check`.")
    return decode(thumbnail)


def decoded(data: bytes, max_pixels: int) -> Image:
    """See `Engine.decode`."""
    try:
        return decode(data, max_pixels=max_pixels)
    except BadImage as error:
        if error.expected is None or "pixels" not in error.expected:
            raise
        raise TooLarge(
            "the image has too many pixels", expected=error.expected, received=error.received,
            remedy="Send a smaller image.",
        ) from error  # fmt: skip
