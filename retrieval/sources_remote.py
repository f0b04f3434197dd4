"""Images in object stores and other file systems that `fsspec` knows: one file, a folder or a glob."""

from __future__ import annotations

import io
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, BinaryIO

from foveal.errors import BadInput, Unavailable, UnknownName
from foveal.images import SUFFIXES
from retrieval.sources_item import MAX_BYTES, Blob, Item, check_size
from retrieval.sources_local import JUNK, TEXTS, glob_filter
from retrieval.sources_sidecar import Sidecars

# scheme -> the package that fsspec needs for it. Others may be added here; http is not one of them (`sources_web`), and
# neither are fsspec's wrappers (`simplecache::http://...`), which would fetch from any host.
STORES: dict[str, str | None] = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "memory": None,
}
TAGS = ("ETag", "etag", "md5Hash", "content_md5", "generation", "mtime", "LastModified", "last_modified", "created")


class Store:
    """One fsspec file system, its files named by whole URIs."""

    def __init__(self, uri: str) -> None:
        """Opens the file system of `uri`.

        Raises:
            UnknownName: a scheme that is not in `STORES`.
            Unavailable: the package for it is not installed, or it cannot be reached.
        """
        import fsspec

        self.scheme, _, rest = uri.partition("://")
        if self.scheme not in STORES or "::" in uri or not rest:
            raise UnknownName("file system", self.scheme, [*STORES, "http", "https"])
        try:
            self._fs: Any = fsspec.filesystem(self.scheme)
        except ImportError as error:
            package = STORES[self.scheme]
            raise Unavailable(
                f"{self.scheme}:// needs the package {package}", remedy=f"Install it: pip install {package}"
            ) from error

    def uri(self, name: str) -> str:
        """The URI of a file by the name that fsspec lists it under."""
        return f"{self.scheme}://{name.lstrip('/')}"

    def find(self, uri: str) -> dict[str, Mapping[str, Any]]:
        """URI -> fsspec's description of every file that `uri` names: itself, those below it, or those of a glob.

        Raises:
            BadInput: nothing is there, or it cannot be listed; names the reason.
        """
        try:
            if any(sign in uri for sign in "*?["):
                found = self._fs.glob(uri, detail=True)
                found = {name: info for name, info in found.items() if info["type"] == "file"}
            else:
                found = self._fs.find(uri, detail=True, withdirs=False)
        except Exception as error:  # each store raises errors of its own library
            raise BadInput(
                f"{uri} cannot be listed: {_reason(error)}", remedy="Check its name and your rights."
            ) from error
        if not found:
            raise BadInput(f"{uri} does not exist", expected="a file, a folder or a glob")
        return {self.uri(name): info for name, info in sorted(found.items())}

    def read(self, uri: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of a file from `start` to `end`; OSError when that fails."""
        try:
            return self._fs.cat_file(uri, start=start, end=end)
        except Exception as error:
            raise OSError(f"{uri} cannot be read: {_reason(error)}") from error

    def image(self, uri: str) -> bytes:
        """The bytes of an encoded image.

        Raises:
            OSError: it cannot be read.
            BadImage: it is too large.
        """
        data = self.read(uri, 0, MAX_BYTES + 1)
        check_size(len(data), uri)
        return data

    def open(self, uri: str) -> BinaryIO:
        """A file to read and seek in; OSError when that fails."""
        try:
            return io.BufferedReader(self._fs.open(uri, "rb"))
        except Exception as error:
            raise OSError(f"{uri} cannot be read: {_reason(error)}") from error

    def blob(self, uri: str, info: Mapping[str, Any]) -> Blob:
        """A file that other images are inside of."""
        return Blob(
            uri,
            stamp_of(info),
            opener=partial(self.open, uri),
            reader=lambda start, length: self.read(uri, start, start + length),
        )


class RemoteFiles:
    """An `Origin`: the images among the files that a URI named."""

    def __init__(self, store: Store, uri: str, found: Mapping[str, Mapping[str, Any]]) -> None:
        self._store, self._uri, self._found = store, uri.rstrip("/"), found
        self._images = [name for name in found if name == uri or _is_image(name)]
        others = (_ending(name) for name in found if name != uri and not _is_image(name) and not _is_junk(name))
        self.passed_over = Counter(ending for ending in others if ending not in TEXTS)
        self._pattern = glob_filter(_as_path(uri)) if any(sign in uri for sign in "*?[") else None
        self.total: int | None = len(self._images)
        self.notes: list[str] = []

    def items(self) -> Iterator[Item]:
        sidecars = Sidecars(self.notes, lambda path: path in self._found, lambda path, n: self._head(path, n))
        for uri in self._images:
            info = self._found[uri]
            yield Item(uri, sidecars.beside(uri, self._uri), stamp_of(info), partial(self._store.image, uri))

    def covers(self, uri: str) -> bool:
        if self._pattern is not None:
            return uri.startswith(self._store.scheme + "://") and self._pattern(_as_path(uri))
        return uri == self._uri or (uri.startswith(self._uri + "/") and "!/" not in uri and _is_image(uri))

    def _head(self, uri: str, count: int) -> bytes:
        return self._store.read(uri, 0, None if count < 0 else count)


def stamp_of(info: Mapping[str, Any]) -> str | None:
    """The stamp of a stored file from fsspec's description; None when that holds nothing that tells versions apart."""
    tag = next((info[name] for name in TAGS if info.get(name)), None)
    return None if tag is None else f"{info.get('size')};{tag}"


def _is_image(uri: str) -> bool:
    return _ending(uri) in SUFFIXES and not _is_junk(uri)


def _is_junk(uri: str) -> bool:
    return posixpath.basename(uri).startswith(JUNK)


def _ending(uri: str) -> str:
    return posixpath.splitext(uri)[1].lower()


def _as_path(uri: str) -> str:
    return "/" + uri.partition("://")[2].lstrip("/")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
