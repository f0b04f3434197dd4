"""Every core busy with a piece of its own, instead of all of them with one operation at a time.

PyTorch splits each operation over a team of threads that wait for each other at its end. Where anything else runs on
those cores (here: decoding) the team waits for its slowest member, operation after operation, and burns the time in
doing so. Whole pieces in threads that compute alone never wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def pieces(items: Sequence[T], most: int, device: str) -> list[Sequence[T]]:
    """`items` in runs of at most `most`; on the CPU short enough for every core to get one."""
    length = most if device != "cpu" else min(most, -(-len(items) // torch.get_num_threads()))
    return [items[start : start + length] for start in range(0, len(items), max(length, 1))]


def at_once(work: Callable[[T], R], parts: Sequence[T], device: str) -> list[R]:
    """`work` on each of the parts, in order: on the CPU side by side, elsewhere one after the other."""
    if device != "cpu" or len(parts) < 2 or torch.get_num_threads() < 2:
        return [work(part) for part in parts]
    return list(_encoders(torch.get_num_threads()).map(work, parts))


def soloists(count: int, name: str) -> ThreadPoolExecutor:
    """A pool of `count` threads, in each of which PyTorch computes alone."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, name, initializer=_alone)
    together = threading.Barrier(count)
    list(pool.map(lambda _: together.wait(), range(count)))  # all of them start now,
    torch.set_num_threads(before)  # for what was set last, in any thread, is what new threads begin with
    return pool


_encoders = cache(partial(soloists, name="encode"))


def _alone() -> None:
    torch.get_num_threads()  # a thread takes over the common setting when it first asks, and would do so later
    torch.set_num_threads(1)
