"""Images as files on this machine or a mounted drive: folders, single files and globs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from foveal.images import SUFFIXES
from retrieval.sources_item import Item, clean, local_path, local_uri, outer, read_file, stamp_of
from retrieval.sources_sidecar import Sidecars

JUNK = (".", "__MACOSX")  # beginnings of names that nobody means
TEXTS = (".json", ".jsonl", ".csv")  # endings of what may say something about images
HEIC = (".heic", ".heif")  # what phones write and no decoder here reads
SHOWN = 5  # endings that are named


@dataclass(slots=True)
class Listing:
    """What lies below a folder."""

    images: list[tuple[str, str | None]] = field(default_factory=list[tuple[str, str | None]])  # path, stamp
    texts: set[str] = field(default_factory=set[str])  # paths of what may say something about images
    passed_over: Counter[str] = field(default_factory=Counter[str])  # ending -> other files that are not hidden
    denied: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # folder, reason


def list_folder(folder: str) -> Listing:
    """Every image below `folder`, by the ending of its name; links are followed, but not round in circles.

    Hidden files and folders are passed over; a folder that cannot be read is in `denied`.
    """
    found = Listing()
    waiting, visited = [folder], set[str]()
    while waiting:
        current = waiting.pop()
        real = os.path.realpath(current)
        if real in visited:
            continue
        visited.add(real)
        try:
            with os.scandir(current) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            found.denied.append((current, error.strerror or str(error)))
            continue
        folders: list[str] = []
        for entry in ordered:
            ending = os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith(JUNK):
                continue
            if _is_folder(entry):
                folders.append(entry.path)
            elif ending in SUFFIXES:
                found.images.append((entry.path, stamp_of(entry.path)))
            elif ending in TEXTS:
                found.texts.add(entry.path)
            else:
                found.passed_over[ending] += 1
        waiting += reversed(folders)
    return found


class Folder:
    """An `Origin`: the images below a folder, or of them only those named in `only`."""

    def __init__(self, path: Path, only: Collection[Path] | None = None) -> None:
        self.path = os.path.abspath(path)
        self._listing = list_folder(self.path)
        if only is not None:
            wanted = set(map(os.path.abspath, only))
            self._listing.images = [(file, stamp) for file, stamp in self._listing.images if file in wanted]
            self._listing.passed_over.clear()
        self.total: int | None = len(self._listing.images)
        self.passed_over = self._listing.passed_over
        self.notes = [clean(f"{folder} cannot be listed: {reason}") for folder, reason in self._listing.denied]

    def items(self) -> Iterator[Item]:
        inside, texts = self.path.rstrip(os.sep) + os.sep, self._listing.texts
        sidecars = Sidecars(self.notes, lambda p: p in texts if p.startswith(inside) else os.path.isfile(p), _head)
        for path, stamp in self._listing.images:
            yield Item(local_uri(path), sidecars.beside(path, self.path), stamp, partial(read_file, path))

    def covers(self, uri: str) -> bool:
        path = local_path(uri)
        if path is None or path.suffix.lower() not in SUFFIXES or not path.is_relative_to(self.path):
            return False
        hidden = any(part.startswith(JUNK) for part in path.relative_to(self.path).parts)
        return not hidden and not any(path.is_relative_to(folder) for folder, _ in self._listing.denied)


class Files:
    """An `Origin`: files by name, `pattern` being the glob that named them."""

    def __init__(self, paths: list[str], pattern: str | None = None) -> None:
        self._paths = [os.path.abspath(path) for path in paths]
        self._covers = glob_filter(pattern) if pattern else set(self._paths).__contains__
        self.total: int | None = len(paths)
        self.notes: list[str] = []

    def items(self) -> Iterator[Item]:
        sidecars = Sidecars(self.notes, os.path.isfile, _head)
        for path in self._paths:
            metadata = sidecars.beside(path, os.path.dirname(path))
            yield Item(local_uri(path), metadata, stamp_of(path), partial(read_file, path))

    def covers(self, uri: str) -> bool:
        path = local_path(outer(uri))  # of a tar that has gone, its members have too
        return path is not None and self._covers(str(path))


def endings(counts: Mapping[str, int]) -> str:
    """Files by the ending of their name, counted, e.g. `2 .dat, 1 without an ending`; HEIC with its remedy."""
    most = Counter(counts).most_common()
    named = [f"{count:,} {ending or 'without an ending'}" for ending, count in most[:SHOWN]]
    others = sum(count for _, count in most[SHOWN:])
    heic = any(counts.get(ending) for ending in HEIC)
    text = ", ".join(named) + (f" and {others:,} others" if others else "")
    return text + (" (HEIC is not read: convert it to JPEG)" if heic else "")


def glob_filter(pattern: str) -> Callable[[str], bool]:
    """Whether an absolute path is one that `glob.glob(pattern, recursive=True)` would name; also of deleted files."""
    parts = os.path.abspath(pattern).split(os.sep)
    return lambda path: _matches(path.split(os.sep), parts)


def _matches(parts: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[i:], pattern[1:] or ["*"]) for i in range(max(len(parts), 1)))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _head(path: str, count: int) -> bytes:
    with open(path, "rb") as stream:
        return stream.read(count)
