"""`foveal eval compare`: results of several models over the same items."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from foveal.errors import BadInput
from foveal.printing import Json, emit


def eval_compare(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULT...", help="Files that `--out` wrote, baseline first.")
    ],
    baseline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Compare with this one instead of the first.")
    ] = None,
    figure: Annotated[
        list[str] | None,
        typer.Option("--figure", help="Compare this figure; repeatable; the first leads. All if none."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="SOURCE", help="What they were measured on, to show what flipped.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.json", help="Keep the comparison, and a page beside it.")
    ] = None,
    json_: Json = False,
) -> None:
    """Compare results over the same items: each figure's change with its 95% interval, slices, and what flipped.

    Example: foveal eval compare runs/eval/before.json runs/eval/after.json --out runs/eval/compared.json
    """
    import json

    from rich.console import Console

    from evals import compare_page
    from evals.compare import compare
    from evals.results import read, result_path
    from foveal.artifacts import write_text
    from foveal.dataset import Dataset
    from foveal.printing import plain

    paths = ([baseline] if baseline is not None else []) + [path for path in results if path != baseline]
    if len(paths) < 2:
        raise BadInput("one result alone cannot be compared", expected="two result files or more")
    path = result_path(out) if out is not None else None
    first, *others = compare_page.labels([str(p) for p in paths])
    before = read(paths[0])
    found = {name: compare(before, read(p), figure) for name, p in zip(others, paths[1:], strict=True)}
    told: dict[str, Any] = {"baseline": first, "comparisons": {name: c.as_dict() for name, c in found.items()}}
    if path is not None:
        dataset = Dataset.open(data) if data is not None else None
        if dataset is not None and dataset.fingerprint != before.data.fingerprint:
            raise BadInput(
                f"--data {data} is not what the results were measured on",
                expected=f"{before.data.source}, fingerprint {before.data.fingerprint[:12]}",
                received=dataset.fingerprint[:12],
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(plain(told)) + "\n")
        compare_page.page(first, found, dataset).write(path.with_suffix(".html"))
        typer.echo(f"kept in {path}; look at {path.with_suffix('.html')}", err=True)
    elif data is not None:
        raise BadInput("--data shows pictures on a page, and no page was asked for", remedy="Add --out FILE.json.")
    if json_:
        emit(told, True)
    else:
        Console().print(compare_page.table(first, found))
