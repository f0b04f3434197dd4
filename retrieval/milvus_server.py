"""A Milvus server, or the file of a Milvus Lite that stands in for one: where it is, and one collection of it.

pymilvus is imported when a server is first asked, not with this module.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from foveal.errors import BadInput, FovealError, Unavailable
from retrieval.filter_engines import Column
from retrieval.filter_tree import In
from retrieval.table import batched

FORMS = "milvus://HOST:PORT/[DATABASE/]COLLECTION, milvus+tls://..., or milvus:///FOLDER/FILE.db/COLLECTION"
LOOK_UP = 1024  # ids an expression, and rows a call
TOKEN = "MILVUS_TOKEN"  # the variable for a token that should not stand in a command line


@dataclass(frozen=True, slots=True)
class Place:
    """Where a collection is. The last part of a URI's path is the collection; what is before it, the server."""

    server: str  # http(s)://host:port, or the path of a Milvus Lite file
    database: str
    collection: str
    token: str = field(default="", repr=False)

    @classmethod
    def parse(cls, uri: str, environment: Mapping[str, str]) -> Place:
        """The place that a `milvus:` URI names; its token is that of `?token=`, or else of `MILVUS_TOKEN`.

        Raises:
            BadInput: it is none of the `FORMS`, or the collection's name is none that Milvus takes.
        """
        parts = urlsplit(uri)
        before, _, collection = unquote(parts.path).rstrip("/").rpartition("/")
        database = before.strip("/")
        server = before if not parts.netloc else f"{'https' if '+' in parts.scheme else 'http'}://{parts.netloc}"
        fits = "/" not in database and "@" not in parts.netloc if parts.netloc else before.endswith(".db")
        if not fits:
            raise BadInput(f"{uri.partition('?')[0]} is no place in Milvus", expected=FORMS)
        if not (collection.isidentifier() and collection.isascii() and len(collection) < 200):
            raise BadInput(
                f"{collection!r} cannot be the name of a collection", expected="letters, digits and _, no digit first"
            )
        token = parse_qs(parts.query).get("token", [environment.get(TOKEN, "")])[0]
        return cls(server, database if parts.netloc else "", collection, token)

    @property
    def vacant(self) -> bool:
        """Whether it would be a file of Milvus Lite that is not there."""
        return self.server.endswith(".db") and not os.path.exists(self.server)

    def __str__(self) -> str:
        return "/".join(part for part in (self.server, self.database, self.collection) if part)


def connect(place: Place) -> Any:
    """A client of pymilvus.

    Raises:
        Unavailable: the package is not installed, or the server does not answer.
    """
    try:
        from pymilvus import MilvusClient
    except ImportError as error:
        raise Unavailable(
            "archives in Milvus need the package pymilvus", remedy="Install it: pip install 'foveal[milvus]'"
        ) from error
    if place.server.endswith(".db"):
        os.makedirs(os.path.dirname(os.path.abspath(place.server)), exist_ok=True)
    try:
        return MilvusClient(uri=place.server, token=place.token, db_name=place.database)
    except Exception as error:  # pymilvus lets through whatever gRPC and Milvus Lite raise
        remedy = "Start it, and check the URI and the token."
        if place.server.endswith(".db"):
            remedy = "It needs the package milvus-lite, and is for one process at a time."
        raise Unavailable(f"Milvus at {place.server} does not answer: {_said(error)}", remedy=remedy) from error


class Collection:
    """One collection, its primary key a text `id`.

    What is written is there for every later call, as its consistency level is `Strong`.
    """

    def __init__(self, client: Any, name: str) -> None:
        self.client, self.name = client, name

    def ask(self, method: str, **arguments: Any) -> Any:
        """What the method of `MilvusClient` answers for this collection.

        Raises:
            Unavailable: the server does not answer.
            FovealError: it refuses.
        """
        from pymilvus.exceptions import ConnectError, MilvusException, MilvusUnavailableException

        try:
            return getattr(self.client, method)(collection_name=self.name, **arguments)
        except (ConnectError, MilvusUnavailableException) as error:
            raise Unavailable(f"Milvus does not answer: {_said(error)}", remedy="Check the server.") from error
        except MilvusException as error:
            raise FovealError(f"Milvus refuses to {method.replace('_', ' ')} in {self.name}: {_said(error)}") from error

    def create(self, fields: Mapping[str, Mapping[str, Any]], dimension: int) -> None:
        """Makes it, with `fields` (name -> arguments of `add_field`, `type` the name of a DataType) and a `vector`."""
        from pymilvus import DataType, MilvusClient

        schema: Any = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        for name, arguments in fields.items():
            options = dict(arguments)
            schema.add_field(name, getattr(DataType, options.pop("type")), **options)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimension)
        index = self.client.prepare_index_params()
        index.add_index("vector", index_type="AUTOINDEX", metric_type="IP")
        self.ask("create_collection", schema=schema, consistency_level="Strong")
        self.ask("create_index", index_params=index, sync=False)  # of nothing yet: half a second saved
        self.ask("load_collection")

    def exists(self) -> bool:
        return bool(self.ask("has_collection"))

    def load(self) -> bool:
        """Whether it is there; a server that was started anew then has it in memory once this returns."""
        if not self.exists():
            return False
        self.ask("load_collection")
        return True

    def count(self, expression: str = "") -> int:
        """How many rows it has, or an expression keeps."""
        return int(self.ask("query", filter=expression, output_fields=["count(*)"])[0]["count(*)"])

    def find(self, ids: Sequence[str], fields: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The named fields of those rows that are there, by id."""
        found: dict[str, dict[str, Any]] = {}
        for part in batched(ids, LOOK_UP):
            for row in self.ask("query", filter=among(part), output_fields=["id", *fields], limit=LOOK_UP):
                found[str(row["id"])] = dict(row)
        return found

    def scan(self, expression: str, fields: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
        """The named fields of every row that an expression keeps, some at a time."""
        rows: Any = self.ask("query_iterator", filter=expression, output_fields=list(fields), batch_size=LOOK_UP)
        try:
            while piece := rows.next():
                yield list(piece)
        finally:
            rows.close()

    def upsert(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes whole rows, in the place of those with the same id."""
        for part in batched(rows, LOOK_UP):
            self.ask("upsert", data=list(part))

    def delete(self, ids: Sequence[str]) -> None:
        for part in batched(ids, LOOK_UP):
            self.ask("delete", filter=among(part))


def among(ids: Sequence[str]) -> str:
    """The expression that `id` is one of these."""
    return In(Column("id", "text"), tuple(ids)).milvus()


def _said(error: Exception) -> str:
    """A message of Milvus in one line."""
    text = str(getattr(error, "message", "") or error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
