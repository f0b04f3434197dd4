"""Where a page of hits ended, so that the next one goes on there.

Guaranteed for the pages of one query while others add and delete: no image comes twice, and none that was there at the
first page and still is gets lost between two pages. An image added or embedded anew since the first page (its seq is
larger) is left out, one deleted since is gone. On an approximate index "there" means what the index finds.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from dataclasses import dataclass

from foveal.errors import BadInput

_MOST = 64 * 1024  # bytes of a cursor


@dataclass(frozen=True, slots=True)
class Cursor:
    """The end of a page; `shown` is only set where hits are not in order of similarity."""

    digest: str  # of the query and the archive
    bound: int  # no later seq takes part
    similarity: float = 2.0  # of the last hit, and its seq: hits are ordered by falling similarity, then by seq
    seq: int = -1
    seen: int = 0  # candidates up to there, which is where to begin fetching
    shown: tuple[int, ...] = ()  # seqs, ascending

    def text(self) -> str:
        """An opaque string, safe in a URL."""
        steps = [after - before for before, after in zip((0, *self.shown), self.shown, strict=False)]
        record = [self.digest, self.bound, self.similarity, self.seq, self.seen, steps]
        return base64.urlsafe_b64encode(zlib.compress(json.dumps(record).encode())).decode().rstrip("=")

    @classmethod
    def read(cls, text: str, digest: str) -> Cursor:
        """The cursor that `text` gives, for the query and archive of `digest`.

        Raises:
            BadInput: it is none, or that of another query or archive.
        """
        try:
            if len(text) > _MOST:
                raise ValueError("too long")
            packed = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
            unpacker = zlib.decompressobj()
            plain = unpacker.decompress(packed, 4 * _MOST)
            if unpacker.unconsumed_tail or unpacker.unused_data or not unpacker.eof:
                raise ValueError("cut short, or more than a cursor")
            owner, bound, similarity, seq, seen, steps = json.loads(plain)
            shown: list[int] = []
            for step in steps:
                shown.append(int(step) + (shown[-1] if shown else 0))
            found = cls(str(owner), int(bound), float(similarity), int(seq), int(seen), tuple(shown))
        except (ValueError, TypeError, binascii.Error, zlib.error, RecursionError, OverflowError) as error:
            raise BadInput(
                "the cursor cannot be read",
                expected="the `cursor` of the page before, unchanged",
                received=repr(text[:40]),
                remedy="Leave it out to begin with the first page.",
            ) from error
        if found.digest != digest:
            raise BadInput(
                "the cursor belongs to another query or archive",
                expected="that of the page before, with the same query, filter and archive",
                remedy="Leave it out to begin with the first page.",
            )
        return found
