"""What an archive in Milvus knows beside its images: its settings, the kinds of its columns, and its quarantine.

They are rows of a small second collection, so that several processes may add columns at once; Milvus Lite keeps neither
a collection's description nor a field's, and servers differ in the properties they take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from foveal.errors import BadInput
from retrieval.ingest import Rejected, identity
from retrieval.milvus_server import LOOK_UP, Collection
from retrieval.table import batched

FORMAT = 1
SETTINGS = "settings"
FIELDS: dict[str, dict[str, Any]] = {
    "id": {"type": "VARCHAR", "is_primary": True, "max_length": 4096},
    "kind": {"type": "VARCHAR", "max_length": 16},  # settings, column or rejected
    "value": {"type": "JSON"},
}
UNUSED = [1.0, 0.0]  # Milvus has no collection without a vector


@dataclass(frozen=True, slots=True)
class Settings:
    """What an archive was made for."""

    encoder: str  # model reference
    fingerprint: str
    dimension: int


class Records:
    """The collection beside the one of `images`."""

    def __init__(self, images: Collection) -> None:
        self._rows = Collection(images.client, f"{images.name}_foveal")
        self._columns: dict[str, str] = {}

    def create(self) -> None:
        if not self._rows.load():  # else a creation that was stopped has left it
            self._rows.create(FIELDS, len(UNUSED))

    # Settings.

    def settings(self) -> Settings | None:
        """What `settle` was told; None when it never was.

        Raises:
            BadInput: by a newer Foveal.
        """
        if not self._rows.load():
            return None
        found = self._rows.find([SETTINGS], ["value"]).get(SETTINGS)
        if found is None:
            return None
        version = found["value"]["format"]
        if version != FORMAT:
            raise BadInput(
                f"the archive in {self._rows.name} has format {version}",
                expected=f"format {FORMAT}",
                remedy="Update foveal.",
            )
        return Settings(**{name: value for name, value in found["value"].items() if name != "format"})

    def settle(self, settings: Settings) -> None:
        """Makes the collection an archive; the last step of creating one."""
        self._put(SETTINGS, {SETTINGS: {"format": FORMAT, **asdict(settings)}})

    # Columns.

    def columns(self, *, fresh: bool = True) -> dict[str, str]:
        """Promoted column -> its kind; as last read when not `fresh`, for columns only come."""
        if fresh or not self._columns:
            rows = self._rows.ask("query", filter='kind == "column"', output_fields=["id", "value"], limit=LOOK_UP)
            found = {row["id"].removeprefix("column/"): str(row["value"]["kind"]) for row in rows}
            self._columns = dict(sorted(found.items()))
        return self._columns

    def add_columns(self, kinds: Mapping[str, str]) -> None:
        self._put("column", {f"column/{name}": {"kind": kind} for name, kind in kinds.items()})
        self.columns()

    # Quarantine.

    def rejected(self) -> list[Rejected]:
        """Every file in quarantine, in the order of their URIs."""
        pieces = self._rows.scan('kind == "rejected"', ["value"])
        return sorted((Rejected(**row["value"]) for piece in pieces for row in piece), key=lambda entry: entry.uri)

    def update(self, rejected: Sequence[Rejected], seen: Sequence[str]) -> None:
        """Replaces what is known about the files `seen` (URIs) by `rejected`."""
        now = {identity(entry.uri): {"uri": entry.uri, "reason": entry.reason} for entry in rejected}
        self.forget([id for uri in seen if (id := identity(uri)) not in now])
        self._put("rejected", {_key(id): entry for id, entry in now.items()})

    def forget(self, ids: Sequence[str]) -> None:
        """Takes the files of these ids out of quarantine."""
        for part in batched([_key(id) for id in ids], LOOK_UP):
            self._rows.delete(sorted(self._rows.find(part, [])))

    def _put(self, kind: str, values: Mapping[str, Mapping[str, Any]]) -> None:
        rows = [{"id": id, "kind": kind, "value": dict(of), "vector": UNUSED} for id, of in values.items()]
        self._rows.upsert(rows)


def _key(id: str) -> str:
    return f"rejected/{id}"
