"""Is an archive in Milvus what it claims to be? Looked at without reading all of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from foveal.progress import Progress
from retrieval.check import CheckReport
from retrieval.milvus_server import Collection, among

UNIT_TOLERANCE = 1e-3  # of a vector's length
SAMPLE = 1000  # rows


def inspect(rows: Collection, dimension: int, progress: Progress) -> CheckReport:
    """Checks the description of a collection of D-dimensional vectors, and a sample of its rows."""
    described: Any = rows.ask("describe_collection")
    problems: list[str] = []
    width = next(field["params"]["dim"] for field in described["fields"] if field["name"] == "vector")
    if int(width) != dimension:
        problems.append(f"the collection's vectors have {width} dimensions, its settings say {dimension}")
    if described["consistency_level_name"] != "Strong":
        problems.append("the collection's consistency level is not Strong: a deleted image may still be found")
    sample: list[Any] = list(rows.ask("query", filter='id != ""', output_fields=["id", "vector"], limit=SAMPLE))
    progress.start("check", len(sample))
    try:
        if sample:
            problems += _crooked(sample)
            names = sorted({str(row["id"]) for row in sample})
            if twice := rows.count(among(names)) - len(names):  # milvus-lite 3.2 brought some back after a kill
                problems.append(f"{twice} rows share their id with another")
        progress.advance(len(sample))
    finally:
        progress.finish()
    return CheckReport(not problems, problems, [], rows.count())


def _crooked(sample: list[Any]) -> list[str]:
    length = np.linalg.norm(np.array([row["vector"] for row in sample], np.float32), axis=1)
    wrong = np.flatnonzero(~(np.abs(length - 1) <= UNIT_TOLERANCE))  # also those that are NaN
    if not len(wrong):
        return []
    example = sample[int(wrong[0])]["id"]
    return [f"{len(wrong)} of {len(sample)} vectors looked at are not of length 1, e.g. that of {example}"]
