"""Where images come from: files, folders, globs, stores, web addresses, tars, parquet and datasets, as one stream.

Each kind is an `Origin` in a module of its own (`sources_*.py`); this one tells them apart.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from foveal.dataset import Dataset
from foveal.errors import BadInput
from retrieval.sources_item import Blob, Item, Origin, Value, clean, local_path, local_uri, read_file, stamp_of
from retrieval.sources_local import Files, Folder, endings
from retrieval.sources_remote import RemoteFiles, Store
from retrieval.sources_web import Web

if TYPE_CHECKING:
    import datasets

__all__ = ["Item", "Source", "Sources", "Value", "local_path"]

Source: TypeAlias = "Dataset | datasets.Dataset | datasets.DatasetDict | Path | str"
SHARDS = (".tar", ".parquet")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
ASIDE = (".json", ".jsonl", ".csv", ".txt", ".cls")  # what lies among images and a glob may take along
WILD = "*?["


class Sources:
    """The images named by any mix of sources, each once, in the order given; iterate to get them."""

    def __init__(self, origins: Sequence[Origin]) -> None:
        self._origins = origins

    @classmethod
    def resolve(
        cls, sources: Source | Sequence[Source], *, allow: Collection[str] = (), web: Web | None = None
    ) -> Sources:
        """Whatever the sources name.

        A source is a `foveal.dataset.Dataset`, a Hugging Face dataset, a folder, file or glob, a `.tar` (WebDataset) or
        `.parquet`, a URI of a store (`s3://`, `gs://`, `az://`), the web address of an image, or `hf:NAME[:SPLIT]`.

        Args:
            allow: hosts and buckets that may be fetched from where a web address, or a row of a parquet file, asks.
            web: fetches web addresses, instead of one for `allow`.

        Raises:
            BadInput: a source does not exist, holds no image, or may not be fetched.
            Unavailable: it needs a package that is not installed, or does not answer.
        """
        web = web or Web(allow)
        return cls([origin for source in _listed(sources) for origin in _origins(source, web)])

    @property
    def total(self) -> int | None:
        """How many images there are, duplicates included; None when only reading tells."""
        counts = [origin.total for origin in self._origins]
        return None if None in counts else sum(cast("list[int]", counts))

    @property
    def notes(self) -> list[str]:
        """Metadata and parts of sources that could not be used; complete once every image has been taken."""
        return [note for origin in self._origins for note in origin.notes]

    @property
    def passed_over(self) -> dict[str, int]:
        """How many files of folders are none of images, by the ending of their name; never those with metadata."""
        listed = (origin for origin in self._origins if isinstance(origin, (Folder, RemoteFiles)))
        return dict(sum((origin.passed_over for origin in listed), Counter[str]()).most_common())

    def __iter__(self) -> Iterator[Item]:
        seen: set[str] = set()
        for origin in self._origins:
            for item in origin.items():
                if item.uri not in seen:
                    seen.add(item.uri)
                    yield item

    def covers(self, uri: str) -> bool:
        """Whether an image at `uri` would be among these if it were still there.

        True for what has been deleted from a folder, never for what lies in a folder that could not be listed.
        """
        return any(origin.covers(uri) for origin in self._origins)


def _listed(sources: Source | Sequence[Source]) -> Sequence[Source]:
    of_hugging_face = type(sources).__module__.partition(".")[0] == "datasets"
    one = of_hugging_face or isinstance(sources, (Dataset, Path, str))
    return cast("Sequence[Source]", [sources] if one else sources)


def _origins(source: Source, web: Web) -> Sequence[Origin]:
    """What one source is, as one or more origins that hold an image."""
    if isinstance(source, Dataset):
        found: Sequence[Origin] = [Samples(source)]
    elif not isinstance(source, (str, Path)):
        from retrieval.sources_hub import in_memory

        found = in_memory(source)
    else:
        found = _named(str(source), web)
    if all(origin.total == 0 for origin in found):
        raise BadInput(
            f"no images in {source}",
            expected="image files, or a folder or glob of them",
            received="; ".join(note for origin in found for note in origin.notes)
            or endings(Sources(found).passed_over)
            or "none",
            remedy="Check it; tar and parquet files in a folder are named by a glob, e.g. 'shards/*.tar'.",
        )
    return found


def _named(name: str, web: Web) -> Sequence[Origin]:
    if name.startswith(("http://", "https://")):
        if web.check(name).path.lower().endswith((*SHARDS, *COMPRESSED)):
            raise BadInput(
                f"{name} is not read over HTTP",
                expected="the address of one image",
                remedy="Download it and name the file, or read it from a store such as s3://.",
            )
        return [Address(name, web)]
    if name.lower().endswith(COMPRESSED):
        raise BadInput(
            f"{name} is compressed, so its members cannot be read one by one",
            expected="a .tar",
            remedy="Decompress it; images inside are compressed already.",
        )
    if name.startswith("hf://"):
        from retrieval.sources_hub import open_uri

        return open_uri(name)
    if name.startswith("hf:"):
        from retrieval.sources_hub import open_hub, open_saved

        place = Path(name.removeprefix("hf:")).expanduser()
        return open_saved(place) if place.is_dir() else open_hub(name.removeprefix("hf:"))
    if "://" in name and not name.startswith("file://"):
        return _remote(name, web)
    return _local(os.path.expanduser(local_path(name) or name), web)


def _local(name: str, web: Web) -> Sequence[Origin]:
    if os.path.isdir(name):
        from retrieval.sources_hub import is_saved, open_saved

        return open_saved(Path(name)) if is_saved(Path(name)) else [Folder(Path(name))]
    wild = not os.path.lexists(name)
    files = sorted(glob.glob(name, recursive=True)) if wild else [name]
    files = [f for f in files if not wild or (not os.path.isdir(f) and not f.lower().endswith(ASIDE))]
    if not files:
        raise BadInput(f"{name} does not exist", expected="a folder, an image file or a glob")
    shards: list[Origin] = [_shard(Blob.local(f), web) for f in files if f.lower().endswith(SHARDS)]
    images = [f for f in files if not f.lower().endswith(SHARDS)]
    return [*shards, Files(images, name)] if wild else shards or [Files(images)]


def _remote(uri: str, web: Web) -> Sequence[Origin]:
    store = Store(uri)
    found = store.find(uri)
    if uri in found or any(sign in uri for sign in WILD):
        shards = [name for name in found if name.lower().endswith(SHARDS)]
        opened: list[Origin] = [_shard(store.blob(name, found[name]), web) for name in shards]
        if uri in shards:
            return opened
        return [*opened, RemoteFiles(store, uri, {name: found[name] for name in found if name not in shards})]
    return [RemoteFiles(store, uri, found)]


def _shard(blob: Blob, web: Web) -> Origin:
    if blob.uri.lower().endswith(".tar"):
        from retrieval.sources_tar import Tar

        return Tar(blob)
    from retrieval.sources_parquet import Parquet

    return Parquet(blob, partial(_located, blob.uri, web))


def _located(table: str, web: Web, name: str) -> Item:
    """The image that a row of the file `table` names.

    Relative names are of files beside the table. A table on this machine may name any file of it, one in a store what
    lies in the same bucket; everything else only by the allow-list.

    Raises:
        BadInput: the table may not send us there.
        UnknownName: a kind of store that is not known.
        Unavailable: the package for it is not installed.
    """
    if name.startswith(("http://", "https://")):
        web.check(name)
        return Item(name, {}, None, partial(web.read, name))
    folder = local_path(os.path.dirname(table))
    if folder is not None and (path := local_path(name) or ("://" not in name and folder / name)):
        return Item(local_uri(path), {}, stamp_of(str(path)), partial(read_file, str(path)))
    uri = name if "://" in name else f"{os.path.dirname(table)}/{name.lstrip('/')}"
    scheme, _, rest = uri.partition("://")
    bucket = rest.partition("/")[0]
    if bucket not in web.allow and not table.startswith(f"{scheme}://{bucket}/"):
        raise BadInput(
            f"{name} is not fetched only because {table} names it",
            expected="something in its own store, or on the allow-list",
            remedy=f"If you trust it: --allow-host {bucket}",
        )
    return Item(uri, {}, None, partial(Store(uri).image, uri))


class Samples:
    """An `Origin`: the images of a `foveal.dataset.Dataset`, with its labels and metadata."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.total: int | None = len(dataset)
        self.notes: list[str] = []

    def items(self) -> Iterator[Item]:
        for sample in self._dataset:
            path = os.path.abspath(sample.path)
            label: dict[str, Value] = {} if sample.label is None else {"label": sample.label}
            metadata = {"sample_id": clean(sample.id), **label, **sample.metadata}
            yield Item(local_uri(path), metadata, stamp_of(path), partial(read_file, path))

    def covers(self, uri: str) -> bool:
        return False  # what a dataset no longer lists may still be wanted


class Address:
    """An `Origin`: one image on the web."""

    def __init__(self, url: str, web: Web) -> None:
        self._url, self._web = url, web
        self.total: int | None = 1
        self.notes: list[str] = []

    def items(self) -> Iterator[Item]:
        yield Item(self._url, {}, None, partial(self._web.read, self._url))

    def covers(self, uri: str) -> bool:
        return uri == self._url
