"""What a request may ask for, and what is said of one that asks for more, or for what is not here."""

from __future__ import annotations

from dataclasses import dataclass

from foveal.errors import BadInput


class NotFound(BadInput):
    """A model, archive or item that is not here."""


class TooLarge(BadInput):
    """An image or request beyond the server's limits."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for."""

    body_bytes: int = 32 * 2**20
    pixels: int = 50_000_000  # of one image, checked in its header before a pixel is decoded
    texts: int = 256  # inputs of one embedding request
    prompts: int = 64  # of one open-vocabulary detection
    question: int = 2000  # characters
    tokens: int = 1024  # of one answer
    k: int = 1000  # hits of one search
    seconds: float = 30.0  # until a request must be answered, from its first byte
    at_once: int = 256  # requests that are worked on; more are refused
