"""Errors that say what was expected, what came instead, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable


class FovealError(Exception):
    """Base of every error a user can cause and mend; the command line prints it as one line.

    Args:
        message: what went wrong, naming the thing (file, reference, key).
        expected: what would have been accepted.
        received: what came instead.
        remedy: the next thing to type or change.
    """

    def __init__(
        self, message: str, *, expected: str | None = None, received: str | None = None, remedy: str | None = None
    ) -> None:
        self.message, self.expected, self.received, self.remedy = message, expected, received, remedy
        parts = [message]
        if expected is not None:
            parts.append(f"expected {expected}")
        if received is not None:
            parts.append(f"received {received}")
        line = "; ".join(parts)
        super().__init__(f"{line}. {remedy}" if remedy else line)


class UnknownName(FovealError):
    """A name that no registry knows; the message lists the choices."""

    def __init__(self, what: str, name: str, choices: Iterable[str], *, remedy: str | None = None) -> None:
        super().__init__(f"no {what} {name!r}", expected=f"one of {', '.join(sorted(choices))}", remedy=remedy)


class BadInput(FovealError):
    """A file, folder, number or request that cannot be used as given."""


class BadImage(BadInput):
    """An image file that cannot be decoded safely."""


class ConfigError(FovealError):
    """A configuration file or `key=value` override that does not fit its schema."""


class IntegrityError(FovealError):
    """Stored bytes do not match what their manifest promised."""


class FingerprintMismatch(FovealError):
    """Vectors or queries made by another encoder, adapter or preprocessing than the archive's."""


class AdapterMismatch(FovealError):
    """An adapter that does not fit its base model whole."""


class Unavailable(FovealError):
    """An optional dependency, device or port that is not there."""
