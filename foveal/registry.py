"""A local folder of model versions that never change, and aliases that move between them.

Layout: `ROOT/NAME/1/`, `ROOT/NAME/2/`, ... and `ROOT/NAME/aliases.json`, the log of every promotion and roll-back.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from foveal import artifacts
from foveal.errors import BadInput, IntegrityError, Unavailable, UnknownName

PRODUCTION: Final = "production"
CANARY: Final = "canary"  # gets a share of a server's requests
SHADOW: Final = "shadow"  # is compared with production, unseen
GATED = (PRODUCTION, CANARY)  # whoever holds one of these answers requests, so it must have passed a gate
LATEST = "latest"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LOG = "aliases.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered version."""

    name: str
    version: int
    aliases: tuple[str, ...]
    kind: str
    created: datetime
    metrics: dict[str, Any] = field(default_factory=dict)


class Event(BaseModel):
    """One change of an alias."""

    model_config = ConfigDict(extra="forbid")

    at: datetime
    alias: str
    action: Literal["promote", "rollback", "withdraw"]
    version: int  # the holder from then on; of a withdrawal, who held it
    reason: str | None = None  # of a withdrawal or roll-back; of a promotion, the gate that let it through


class Registry:
    """Versions and aliases below `root`; every change is whole or not at all, one process at a time."""

    def __init__(self, root: Path | str, *, lock_seconds: float = 30.0) -> None:
        self.root = Path(root).expanduser()
        self._lock_seconds = lock_seconds

    def register(self, folder: Path, name: str | None = None) -> int:
        """Copy a sealed folder in and return its version; the newest version again if its content is the same.

        Raises:
            BadInput: no manifest, or a name that cannot be one.
            IntegrityError: a file differs from its manifest.
        """
        folder = Path(folder)
        manifest = artifacts.read(folder)
        name = _checked(name or manifest.name)
        with self._locked():
            home = self.root / name
            version = max(self._versions(name), default=0)
            if version:
                newest = artifacts.read(home / str(version), verify=False)
                if newest.fingerprint == manifest.fingerprint and newest.metrics == manifest.metrics:
                    return version
            version += 1
            with artifacts.staged(home / str(version), folder=True, durable=True) as target:
                for relative in [*manifest.files, artifacts.MANIFEST]:
                    copy = target / relative
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(folder / relative, copy)
                    copy.chmod(0o444)
                artifacts.read(target)  # the source may have changed while it was copied
        return version

    def resolve(self, reference: str) -> Path:
        """The folder of `name@production`, `name@3`, or the newest version for `name` and `name@latest`.

        Raises:
            UnknownName: no such name, version or alias; lists those there are.
        """
        name, _, which = reference.partition("@")
        versions = self._known(name)
        if which in ("", LATEST):
            return self.root / name / str(versions[-1])
        if which.isdecimal():
            return self.root / name / str(self._version(name, int(which)))
        holders = self._holders(name)
        if which not in holders:
            choices = [*holders, LATEST, *map(str, versions)]
            remedy = f"Run `foveal registry promote {name} {versions[-1]}` to give it one."
            raise UnknownName(f"alias of {name}", which, choices, remedy=remedy)
        return self.root / name / str(holders[which][-1])

    def promote(self, name: str, version: int, alias: str = PRODUCTION, *, gate: str | None = None) -> None:
        """Give `alias` to a version; nothing changes when it has it already. What is in production is on trial no more.

        Args:
            gate: what let it through, e.g. the name of the file of gates that its figures were just held against; None:
                its manifest must say that its gate passed, for an alias whose holder answers requests.

        Raises:
            UnknownName: no such name or version.
            BadInput: a word that cannot be an alias, or no gate has let the version through.
        """
        if not _NAME.fullmatch(alias) or alias.isdecimal() or alias == LATEST:
            raise BadInput(f"{alias!r} cannot be an alias", expected=f"a word other than {LATEST}, e.g. {PRODUCTION}")
        with self._locked():
            self._version(name, version)
            passed = artifacts.read(self.root / name / str(version), verify=False).metrics.get("gate_passed")
            if alias in GATED and gate is None and passed is not True:
                what = "has passed no gate" if passed is None else "did not pass its gate"
                raise BadInput(
                    f"version {version} of {name} {what}",
                    expected=f"a gate that passed, for whatever is to be {alias}",
                    remedy=f"foveal registry promote {name} {version} --gates gates.yaml --results report.json",
                )
            held = holders(self.history(name))
            if held.get(alias) != version:
                self._log(name, alias, "promote", version, gate or ("its manifest" if passed else None))
            for trial in (CANARY, SHADOW) if alias == PRODUCTION else ():
                if held.get(trial) == version:  # or a roll-back would make it one again
                    self._log(name, trial, "withdraw", version, "it is in production")

    def rollback(self, name: str, alias: str = PRODUCTION, *, of: int | None = None, reason: str | None = None) -> int:
        """Give `alias` back to the version that held it before, and return that version; the log keeps both steps.

        Args:
            of: the version that is to lose it; when another holds it by now, nothing changes, and that one is returned.

        Raises:
            UnknownName: no such name, or nobody holds the alias.
            BadInput: nobody held the alias before.
        """
        with self._locked():
            self._known(name)
            holders = self._holders(name)
            if alias not in holders:
                raise UnknownName(f"alias of {name}", alias, holders)
            if of not in (None, holders[alias][-1]):
                return holders[alias][-1]
            if len(holders[alias]) < 2:
                raise BadInput(
                    f"{name}@{alias} has only ever been version {holders[alias][-1]}",
                    expected="an earlier holder to go back to",
                    remedy="Promote another version instead.",
                )
            previous = holders[alias][-2]
            self._log(name, alias, "rollback", previous, reason)
        return previous

    def withdraw(self, name: str, alias: str, *, of: int | None = None, reason: str | None = None) -> int:
        """Take `alias` from the version that holds it, so that nobody does, and return that version.

        Args:
            of: as in `rollback`.

        Raises:
            UnknownName: no such name, or nobody holds the alias.
        """
        with self._locked():
            self._known(name)
            holders = self._holders(name)
            if alias not in holders:
                raise UnknownName(f"alias of {name}", alias, holders)
            version = holders[alias][-1]
            if of in (None, version):
                self._log(name, alias, "withdraw", version, reason)
        return version

    def list(self) -> tuple[Entry, ...]:
        """Every version, by name and number."""
        entries: list[Entry] = []
        for name in self._names():
            holders = self._holders(name)
            for version in self._versions(name):
                manifest = artifacts.read(self.root / name / str(version), verify=False)
                aliases = tuple(sorted(alias for alias, stack in holders.items() if stack[-1] == version))
                entries.append(Entry(name, version, aliases, manifest.kind, manifest.created, manifest.metrics))
        return tuple(entries)

    def history(self, name: str) -> tuple[Event, ...]:
        """Every change of an alias of `name`, oldest first.

        Raises:
            IntegrityError: the log is not readable.
        """
        path = self.root / name / _LOG
        if not path.is_file():
            return ()
        try:
            return tuple(Event.model_validate(event) for event in json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, ValidationError) as error:
            raise IntegrityError(f"{path} is damaged: {str(error).splitlines()[0]}", remedy="Restore it.") from error

    def _holders(self, name: str) -> dict[str, list[int]]:
        return _stacks(self.history(name))

    def _log(
        self,
        name: str,
        alias: str,
        action: Literal["promote", "rollback", "withdraw"],
        version: int,
        reason: str | None,
    ) -> None:
        event = Event(at=datetime.now(UTC), alias=alias, action=action, version=version, reason=reason)
        events = [e.model_dump(mode="json") for e in (*self.history(name), event)]
        artifacts.write_text(self.root / name / _LOG, json.dumps(events, indent=1) + "\n")

    def _names(self) -> list[str]:
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if p.is_dir() and _NAME.fullmatch(p.name))

    def _versions(self, name: str) -> list[int]:
        home = self.root / name
        return sorted(int(p.name) for p in home.iterdir() if p.name.isdecimal()) if home.is_dir() else []

    def _known(self, name: str) -> list[int]:
        versions = self._versions(_checked(name))
        if not versions:
            raise UnknownName(f"model in registry {self.root}", name, self._names() or ["(it is empty)"])
        return versions

    def _version(self, name: str, version: int) -> int:
        versions = self._known(name)
        if version not in versions:
            raise UnknownName(f"version of {name}", str(version), map(str, versions))
        return version

    @contextmanager
    def _locked(self) -> Generator[None]:
        from filelock import FileLock, Timeout

        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / ".lock", timeout=self._lock_seconds)
        except OSError as error:
            raise BadInput(f"registry {self.root} cannot be written: {error.strerror}") from error
        try:
            with lock:
                yield
        except Timeout as error:
            raise Unavailable(
                f"registry {self.root} is busy", expected=f"a turn within {self._lock_seconds:g} s", remedy="Try again."
            ) from error


def holders(events: Iterable[Event]) -> dict[str, int]:
    """Alias -> the version that holds it after all these changes, oldest first."""
    return {alias: stack[-1] for alias, stack in _stacks(events).items()}


def _stacks(events: Iterable[Event]) -> dict[str, list[int]]:
    """Alias -> its holders, the present one last; a roll-back takes one off, a withdrawal all."""
    stacks: dict[str, list[int]] = {}
    for event in events:
        stack = stacks.setdefault(event.alias, [])
        if event.action == "promote":
            stack.append(event.version)
        elif event.action == "rollback":
            stack.pop()
        else:
            del stacks[event.alias]
    return stacks


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise BadInput(f"{name!r} cannot name a model", expected="letters, digits, dots, dashes and underscores")
    return name
