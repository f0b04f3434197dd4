"""Results as tests need them: two columns of outcomes over named items."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from evals.results import SCHEMA, Data, Result, Subject


def made(
    right: Sequence[int],
    *,
    name: str = "zero-shot",
    task: str = "zero-shot",
    reference: str = "bundled:clip",
    fingerprint: str | None = "f1",
    licence: str | None = "Apache-2.0",
    data: str = "d1",
    ids: Sequence[str] | None = None,
    images: Sequence[str] | None = None,
    slices: dict[str, list[str | None]] | None = None,
    **figures: Any,
) -> Result:
    """A zero-shot result whose items are right (1) or wrong (0)."""
    names = list(ids) if ids is not None else [f"item-{i}" for i in range(len(right))]
    items: dict[str, list[Any]] = {
        "id": names,
        "right": list(right),
        "rank": [1 if r else 7 for r in right],
        "class": ["ab"[i % 2] for i in range(len(right))],
        "said": ["ab"[i % 2] if r else "c" for i, r in enumerate(right)],
        "confidence": [0.5] * len(right),
    }
    if images is not None:
        items["image"] = list(images)
    share = sum(right) / len(right)
    halves = [[r for i, r in enumerate(right) if i % 2 == k] for k in (0, 1)]
    balanced = sum(sum(half) / len(half) for half in halves if half) / sum(bool(half) for half in halves)
    return Result(
        schema=SCHEMA,
        task=task,
        name=name,
        subject=Subject(reference=reference, fingerprint=fingerprint, licence=licence),
        data=Data(source="site", fingerprint=data, images=len(set(images or names))),
        figures={"top1": share, "top5": share, "mean_class_accuracy": balanced, "count": len(right), **figures},
        items=items,
        slices=slices or {},
        machine={"cpu": "one", "cores": 1},
        seconds=1.5,
        created=datetime(2026, 1, 2, tzinfo=UTC),
    )
