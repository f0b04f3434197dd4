"""`foveal gate`: results held against release gates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.printing import Json, emit

if TYPE_CHECKING:
    from evals.gates import GateReport

DEFAULT_RESULTS = Path("runs/quickstart/report.json")
Incumbent = Annotated[
    list[Path] | None,
    typer.Option(
        "--incumbent", metavar="FILE", help="Result of what is to be replaced, or a folder of them; repeatable."
    ),
]


def gate(
    gates: Annotated[Path, typer.Argument(metavar="FILE", help="YAML list of gates.")],
    results: Annotated[
        list[Path] | None,
        typer.Option(
            "--results",
            metavar="FILE",
            help=f"Result of `foveal eval ... --out`, found under its name, a JSON report that holds the figures, or a "
            f"folder of them; repeatable. {DEFAULT_RESULTS} if none.",
        ),
    ] = None,
    incumbent: Incumbent = None,
    artifact: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The candidate itself, for gates on licence and provenance.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write JUnit XML.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page to look at.")] = None,
    json_: Json = False,
) -> None:
    """Check results against release gates; the exit code says yes (0), or no or cannot tell (1).

    Example: foveal gate gates.yaml --results runs/quickstart/report.json --junit runs/gate.xml
    """
    from evals.evidence import gather
    from evals.gates import check, load

    parsed = load(gates)
    evidence = gather(results or [DEFAULT_RESULTS], incumbent or (), artifact)
    report = check(parsed, evidence)
    if junit is not None:
        report.write_junit(junit)
    if html is not None:
        from evals.gate_page import page

        page(report, evidence, gates.name).write(html)
    if json_:
        emit(report.as_dict(), True)
    else:
        show(report)
    if not report.passed:
        raise typer.Exit(report.exit_code)


def show(report: GateReport, *, stderr: bool = False) -> None:
    """The table of reasons."""
    from rich.console import Console

    Console(stderr=stderr).print(report.table())
