"""The archives of one server by name: which of them the caller may see, and what each of them can do."""

from __future__ import annotations

from collections.abc import Mapping

from foveal.errors import BadInput, FingerprintMismatch
from retrieval.archive import Archive
from retrieval.stores import AnyArchive
from serve.calls import Model, kind_of
from serve.keys import caller
from serve.limits import NotFound


class Archives(dict[str, AnyArchive]):
    """By name; the first is the default.

    Each stays with its generation until the next one's encoder is here, see `serve.generations`.
    """

    def __init__(self, archives: Mapping[str, AnyArchive]) -> None:
        super().__init__({name: _pinned(store) for name, store in archives.items()})

    @property
    def folders(self) -> dict[str, Archive]:
        """Those that lie in folders of this machine."""
        return {name: store for name, store in self.items() if isinstance(store, Archive)}

    def visible(self) -> dict[str, AnyArchive]:
        """Those that the caller's key may see."""
        key = caller.get()
        allowed = None if key is None else key.archives
        return {name: store for name, store in self.items() if allowed is None or name in allowed}

    def named(self, name: str | None = None) -> tuple[str, AnyArchive]:
        """(name, archive): the named one, else the default, of those that the caller's key may see; NotFound else."""
        seen = self.visible()
        if name is None and seen:
            return next(iter(seen.items()))
        if name in seen:
            return name, seen[name]
        if not seen:
            raise NotFound("this server has no archive", remedy="Start it with one: foveal serve --archive DIR")
        raise NotFound(f"no archive {name!r}", expected=f"one of {', '.join(seen)}")

    def folder(self, name: str | None = None) -> tuple[str, Archive]:
        """`named`, for what only those in folders can do.

        Raises:
            BadInput: it lies in a database.
            NotFound: as `named`.
        """
        found, store = self.named(name)
        if not isinstance(store, Archive):
            raise BadInput(
                f"archive {found!r} lies in a database, where that cannot be done",
                expected="an archive in a folder",
                remedy="Such archives are searched here, and filled with: foveal archive add IMAGES --archive URI",
            )
        return found, store


def maker_of(name: str, archive: AnyArchive, models: Mapping[str, Model]) -> str:
    """Name of the encoder that made an archive's vectors.

    Raises:
        FingerprintMismatch: none of the models did.
    """
    encoders = {key: model for key, model in models.items() if kind_of(model) == "encoder"}
    for key, model in encoders.items():
        if model.fingerprint == archive.fingerprint:
            return key
    raise FingerprintMismatch(
        f"archive {name!r} was built with another encoder than the server has",
        expected=f"{archive.encoder}, fingerprint {archive.fingerprint[:12]}",
        received=", ".join(f"{key}, {model.fingerprint[:12]}" for key, model in encoders.items()) or "no encoder",
        remedy=f"Load {archive.encoder} as it was, or embed the images anew.",
    )


def _pinned(store: AnyArchive) -> AnyArchive:
    return store.at(store.settings) if isinstance(store, Archive) else store
