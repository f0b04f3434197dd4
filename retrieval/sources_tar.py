"""Images inside tar files, as WebDataset writes them: members of one sample share the name before the first dot."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

from foveal.errors import BadImage, BadInput
from foveal.images import SUFFIXES
from retrieval.sources_item import MAX_TEXT, Blob, Item, Value, check_size, clean
from retrieval.sources_local import JUNK
from retrieval.sources_sidecar import MAX_JSON, parse_json


class Tar:
    """An `Origin`: the images of one tar, found by walking its headers once, each read by its place in the file.

    `.json` becomes metadata, `.txt` the `caption`, `.cls` the `label` of the images of the same sample.
    """

    total: int | None = None

    def __init__(self, blob: Blob) -> None:
        """Opens the file.

        Raises:
            BadInput: it is no tar, or a compressed one, whose members cannot be read one by one.
        """
        self._blob, self._whole = blob, True
        self.notes: list[str] = []
        try:
            with blob.opener() as stream, tarfile.open(fileobj=stream, mode="r:"):
                pass
        except (tarfile.TarError, OSError) as error:
            raise BadInput(f"{blob.uri} cannot be read as a tar: {error}", expected="an uncompressed .tar") from error

    def items(self) -> Iterator[Item]:
        images = 0
        for members in self._samples():
            pictures = [one for one in members if posixpath.splitext(one.name)[1].lower() in SUFFIXES]
            metadata = self._metadata(members) if pictures else {}
            for one in pictures:
                images += 1
                yield Item(self._blob.member(one.name), metadata, self._blob.stamp, partial(self._read, one))
        if not images:
            self.notes.append(f"{self._blob.uri} holds no image")

    def covers(self, uri: str) -> bool:
        return self._whole and uri.startswith(self._blob.member(""))

    def _samples(self) -> Iterator[list[tarfile.TarInfo]]:
        """Runs of consecutive members with the same key."""
        key, members = "", list[tarfile.TarInfo]()
        try:
            with self._blob.opener() as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
                remembered: list[tarfile.TarInfo] = cast("Any", tar).members
                while (member := tar.next()) is not None:
                    remembered.clear()  # of a large file they would fill the memory
                    folder, name = posixpath.split(member.name)
                    if not member.isreg() or member.issparse() or name.startswith(JUNK):
                        continue
                    found = posixpath.join(folder, name.partition(".")[0])
                    if found != key and members:
                        yield members
                        members = []
                    key = found
                    members.append(member)
        except (tarfile.TarError, OSError) as error:
            self._whole = False  # what is behind the damage has not gone
            self.notes.append(
                clean(f"{self._blob.uri} is damaged or cut short behind {key or 'its beginning'}: {error}")
            )
        if members:
            yield members

    def _metadata(self, members: list[tarfile.TarInfo]) -> dict[str, Value]:
        result: dict[str, Value] = {}
        for member in members:
            ending = posixpath.splitext(member.name)[1].lower()
            if ending not in (".json", ".txt", ".cls") or member.size > MAX_JSON:
                continue
            try:
                data = self._read(member)
                if ending == ".json":
                    result = parse_json(data, self._blob.member(member.name)) | result
                elif text := data.decode("utf-8", "replace").strip()[:MAX_TEXT]:
                    result["caption" if ending == ".txt" else "label"] = text
            except (BadInput, OSError) as error:
                self.notes.append(clean(str(error)))
        return result

    def _read(self, member: tarfile.TarInfo) -> bytes:
        name = self._blob.member(member.name)
        check_size(member.size, name)
        data = self._blob.reader(member.offset_data, member.size)
        if len(data) < member.size:
            raise BadImage(f"{name} is cut short", expected=f"{member.size:,} bytes", received=f"{len(data):,}")
        return data
