"""How remembered crops vote, by similarity, on what another crop shows, and which way of voting judges them best.

Shape letters: N crops asked about, K neighbours, C classes, of which the last column of votes, C, is background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foveal.detections import BoolArray, FloatArray, IntArray

K_CHOICES = (3, 5, 10, 20)
TEMPERATURES = (0.01, 0.02, 0.05, 0.1)
SAME = 0.9999  # cosine from which on two crops are the same pixels, up to rounding


@dataclass(frozen=True, slots=True)
class Voting:
    """How many neighbours vote, and how fast a vote fades with the neighbour's distance from the nearest one."""

    k: int
    temperature: float  # of cosine similarity: a neighbour this much further off has 1/e of the vote


@dataclass(frozen=True, slots=True)
class Fit:
    """What the voting gives on the memory's own crops, each judged by the crops of other images only."""

    accuracy: float
    log_loss: float
    crops: int


@dataclass(frozen=True, slots=True)
class Near:
    """The nearest boxes of each crop, best first; a box counts once, by its best crop."""

    rows: IntArray  # (N, K) of the remembered crop; -1 where there are fewer
    similarity: FloatArray  # (N, K) cosine; 0 where there are fewer

    @classmethod
    def of(cls, rows: IntArray, similarity: FloatArray, boxes: IntArray, k: int) -> Near:
        """The first `k` different boxes among crops (N, S), best first; `boxes` (M,) says which box a crop is of."""
        chosen, values = np.full((len(rows), k), -1, dtype=np.int64), np.zeros((len(rows), k), dtype=np.float32)
        owners = boxes[rows]
        for i in range(len(rows)):
            first = np.sort(np.unique(owners[i], return_index=True)[1])[:k]
            chosen[i, : len(first)], values[i, : len(first)] = rows[i, first], similarity[i, first]
        return cls(chosen, values)

    def __len__(self) -> int:
        return len(self.rows)

    def first(self, k: int) -> Near:
        """The k nearest of them."""
        return Near(self.rows[:, :k], self.similarity[:, :k])

    def pairs(self, i: int) -> list[tuple[int, float]]:
        """(row, similarity) of the neighbours of crop `i`."""
        there = self.rows[i] >= 0
        return list(zip(self.rows[i, there].tolist(), self.similarity[i, there].tolist(), strict=True))

    def votes(self, voting: Voting, columns: IntArray, classes: int, final: BoolArray | None = None) -> FloatArray:
        """Shares of the vote (N, C + 1); rows sum to 1, and are all background where nobody votes.

        Args:
            columns: (M,) what each remembered crop votes for.
            final: (M,) crops whose word stands for the very same crop, whatever others say.
        """
        near = self.first(voting.k)
        there = near.rows >= 0
        if final is not None and final.any():
            decided = there & final[near.rows] & (near.similarity >= SAME)
            there = np.where(decided.any(axis=1, keepdims=True), decided, there)
        top = np.where(there, near.similarity, -np.inf).max(axis=1, initial=-2.0, keepdims=True)
        weight = np.where(there, np.exp((near.similarity - top) / voting.temperature), 0.0)
        total = weight.sum(axis=1, keepdims=True)
        votes = np.zeros((len(near), classes + 1), dtype=np.float32)
        np.add.at(votes, (np.arange(len(near))[:, None], columns[near.rows]), weight / np.maximum(total, 1e-12))
        votes[total[:, 0] == 0, -1] = 1
        return votes


def smoothed(votes: FloatArray, k: int) -> FloatArray:
    """Laplace's one vote in k + 1, shared by all columns, so that a crop without any friend costs finitely much."""
    return (votes * k + 1 / votes.shape[1]) / (k + 1)


def tuned(
    near: Near, own: IntArray, columns: IntArray, classes: int, ks: Sequence[int] = K_CHOICES
) -> tuple[Voting, Fit]:
    """The voting under which crops with the columns `own` (N,) are least surprising to their neighbours."""
    best: tuple[Voting, Fit] | None = None
    for k in ks:
        for temperature in TEMPERATURES:
            voting = Voting(k, temperature)
            votes = near.votes(voting, columns, classes)
            likely = smoothed(votes, k)[np.arange(len(own)), own]
            right = votes.argmax(axis=1) == own
            fit = Fit(float(right.mean()), float(-np.log(likely).mean()), len(own))
            if best is None or fit.log_loss < best[1].log_loss:
                best = voting, fit
    assert best is not None
    return best
