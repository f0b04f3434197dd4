"""Pieces on every core: the same results in the same order, and PyTorch's own setting left alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from foveal.cores import at_once, pieces


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("count", "most", "device", "expected"),
    [
        (0, 64, "cpu", []),
        (1, 64, "cpu", [1]),
        (5, 64, "cpu", [3, 2]),
        (200, 64, "cpu", [64, 64, 64, 8]),
        (5, 64, "cuda", [5]),
        (70, 64, "cuda", [64, 6]),
    ],
)
def test_pieces_are_enough_for_every_core(count: int, most: int, device: str, expected: list[int]) -> None:
    assert [len(piece) for piece in pieces(range(count), most, device)] == expected


def test_each_piece_is_computed_alone_and_in_order() -> None:
    together = threading.Barrier(2)  # passes only when two pieces are under way at a time

    def work(number: int) -> tuple[int, int, str]:
        together.wait(10)
        return number, torch.get_num_threads(), threading.current_thread().name.rpartition("_")[0]

    assert at_once(work, range(6), "cpu") == [(i, 1, "encode") for i in range(6)]
    assert torch.get_num_threads() == 2
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [2]


def test_what_goes_wrong_in_a_piece_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        at_once(lambda number: 1 / number, [1, 0], "cpu")


def test_one_thread_or_another_device_needs_no_pieces() -> None:
    names = at_once(lambda _: threading.current_thread().name, range(3), "cuda")
    torch.set_num_threads(1)
    names += at_once(lambda _: threading.current_thread().name, range(3), "cpu")
    assert set(names) == {threading.current_thread().name}
