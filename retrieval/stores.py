"""Archives wherever they are: in a folder, or in a database server. The URI decides; the calls are the same.

    runs/archive                                    a folder: Lance and FAISS, see `retrieval.archive`
    milvus://HOST:19530/[DATABASE/]COLLECTION       a Milvus server, see `retrieval.milvus`
    milvus:///FOLDER/FILE.db/COLLECTION             Milvus Lite in this process, for trying that out

Shape letters: N images, Q queries, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from foveal.detections import FloatArray
from foveal.errors import UnknownName
from foveal.models import Encoder
from foveal.progress import Progress
from retrieval.ingest import Embedding, embed
from retrieval.query import EncodedQuery, SearchQuery
from retrieval.results import Hit, Results
from retrieval.settings import NoArchive

if TYPE_CHECKING:
    from retrieval.adding import AddReport
    from retrieval.archive import Archive
    from retrieval.check import CheckReport
    from retrieval.index import IndexSettings
    from retrieval.milvus import MilvusArchive
    from retrieval.sources import Source, Sources

# scheme -> the class for it, imported when first asked for; anything without a scheme is a folder.
ENGINES: dict[str, str] = {
    "milvus": "retrieval.milvus:MilvusArchive",
    "milvus+tls": "retrieval.milvus:MilvusArchive",
}
FOLDER = "retrieval.archive:Archive"


class AnyArchive(Protocol):
    """What every archive can do. `retrieval.archive.Archive` says what is raised, and when."""

    @property
    def name(self) -> str:
        """What a server calls it."""
        ...

    @property
    def encoder(self) -> str:
        """The model reference of the encoder."""
        ...

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the encoder."""
        ...

    @property
    def columns(self) -> dict[str, str]:
        """What a filter may name -> "number", "text" or "time"."""
        ...

    def __len__(self) -> int: ...

    def require(self, encoder: Encoder) -> None:
        """FingerprintMismatch unless `encoder` made the vectors here."""
        ...

    def add(
        self,
        sources: Source | Sequence[Source] | Sources,
        encoder: Encoder,
        progress: Progress | None = None,
        *,
        sync: bool = False,
        allow: Collection[str] = (),
        through: Embedding = embed,
    ) -> AddReport:
        """Embeds the images of the sources; those already there and unchanged are passed over."""
        ...

    def add_vectors(
        self,
        uris: Sequence[str],
        vectors: FloatArray,
        *,
        fingerprint: str,
        sizes: Sequence[tuple[int, int]] | None = None,
        metadata: Sequence[Mapping[str, str | int | float]] | None = None,
    ) -> list[str]:
        """Commits embeddings (N, D) computed elsewhere; returns the ids."""
        ...

    def delete(self, ids: Sequence[str]) -> int:
        """Removes images; from the moment this returns no search returns them. Returns how many there were."""
        ...

    def search(self, query: SearchQuery, encoder: Encoder) -> Results:
        """A page of the best `query.k` images, best first."""
        ...

    def answer(self, asked: EncodedQuery) -> Results:
        """`search` for a query that has met the encoder already."""
        ...

    def nearest(self, queries: FloatArray, k: int = 10, filter: str | None = None) -> list[list[Hit]]:
        """The best k images for each unit vector of `queries` (Q, D), best first."""
        ...

    def matching(self, filter: str) -> list[str]:
        """Ids of the images that a filter keeps."""
        ...

    def items(self, ids: Sequence[str], columns: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The named columns of those of `ids` that are here, by id."""
        ...

    def some(self, count: int) -> list[str]:
        """Ids of up to `count` images, the same ones as long as nothing changes."""
        ...

    def quarantined(self) -> list[tuple[str, str]]:
        """Every file that could not be added so far, with the reason."""
        ...

    def stats(self) -> dict[str, Any]:
        """Sizes, and how the archive is searched."""
        ...

    def check(self, progress: Progress | None = None, *, repair: bool = True) -> CheckReport:
        """Is the archive what it claims to be?"""
        ...


if TYPE_CHECKING:  # the type checker's own test that they do
    _THEY: tuple[type[AnyArchive], ...] = (Archive, MilvusArchive)


def open_archive(uri: Path | str) -> AnyArchive:
    """The archive at `uri`.

    Raises:
        UnknownName: no engine has that scheme.
        BadInput: there is no archive, or a newer Foveal wrote it.
        Unavailable: the engine's package is not installed, or its server does not answer.
    """
    return _engine(uri).open(uri)


def find_archive(uri: Path | str) -> AnyArchive | None:
    """`open_archive`, or None where there is no archive yet; raises as that otherwise."""
    try:
        return open_archive(uri)
    except NoArchive:
        return None


def create_archive(
    uri: Path | str, encoder: Encoder, *, reference: str | None = None, index: IndexSettings | None = None
) -> AnyArchive:
    """A new, empty archive for `encoder`, which later commands find by `reference` (its name when None).

    Raises:
        BadInput: something is there already, or the engine takes no `index` settings.
        Otherwise as `open_archive`.
    """
    return _engine(uri).create(uri, encoder, reference=reference, index=index)


def _engine(uri: Path | str) -> Any:
    scheme, colon, rest = str(uri).partition(":")
    if not colon or (scheme not in ENGINES and not rest.startswith("//")):
        target = FOLDER
    elif scheme in ENGINES:
        target = ENGINES[scheme]
    else:
        raise UnknownName("archive engine", scheme, ENGINES, remedy="A folder is named without a scheme.")
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)
