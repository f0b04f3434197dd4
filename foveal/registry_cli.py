"""`foveal registry`: versions of what was made, and which one is in production."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foveal.printing import Json, emit, emit_rows, plain

DEFAULT_REGISTRY = Path("runs/registry")
RegistryDir = Annotated[Path, typer.Option("--registry", metavar="DIR", help="Folder of registered artifacts.")]
Name = Annotated[str, typer.Argument(help="Registered name.")]

registry_app = typer.Typer(no_args_is_help=True, help="Versions of what was made, and which one is in production.")


@registry_app.command("list")
def registry_list(registry: RegistryDir = DEFAULT_REGISTRY, json_: Json = False) -> None:
    """Every version, with its aliases.

    Example: foveal registry list --registry runs/registry
    """
    from foveal.registry import Registry

    entries = [plain(entry) for entry in Registry(registry).list()]
    if json_:
        emit({"entries": entries}, True)
    else:
        emit_rows(entries)


@registry_app.command("register")
def registry_register(
    folder: Annotated[Path, typer.Argument(help="A sealed artifact folder.")],
    name: Annotated[str | None, typer.Option(help="Name to register it under.")] = None,
    results: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Result of `foveal eval` to file with it; repeatable.")
    ] = None,
    registry: RegistryDir = DEFAULT_REGISTRY,
    json_: Json = False,
) -> None:
    """Copy an artifact into the registry as a new version.

    Example: foveal registry register runs/student-int8 --name depot
    """
    from foveal.artifacts import read
    from foveal.registry import Registry

    store = Registry(registry)
    name = name or read(folder).name
    if results:
        from evals.filing import file_results
        from evals.results import read as read_result

        for path in results:
            read_result(path)  # before anything is registered
        version = store.register(folder, name)
        file_results(store, name, version, results)
    else:
        version = store.register(folder, name)
    emit({"name": name, "version": version}, json_)


@registry_app.command("file")
def registry_file(
    name: Name,
    version: Annotated[int, typer.Argument(help="Version that was measured.")],
    results: Annotated[list[Path], typer.Argument(metavar="RESULT...", help="Results of `foveal eval ... --out`.")],
    registry: RegistryDir = DEFAULT_REGISTRY,
    json_: Json = False,
) -> None:
    """Keep results beside a registered version, for the leaderboard.

    Example: foveal registry file depot 2 runs/eval/detection.json
    """
    from evals.filing import file_results
    from foveal.registry import Registry

    kept = file_results(Registry(registry), name, version, results)
    emit({"name": name, "version": version, "filed": [str(path) for path in kept]}, json_)


@registry_app.command("leaderboard")
def registry_leaderboard(
    results: Annotated[
        list[Path] | None, typer.Argument(metavar="[RESULT...]", help="Results of models that are not registered.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.html", help="Write a page to look at.")] = None,
    registry: RegistryDir = DEFAULT_REGISTRY,
    json_: Json = False,
) -> None:
    """Rank registered versions by their filed results: intervals, licences, sizes and gate verdicts.

    Example: foveal registry leaderboard --registry runs/registry --out runs/leaderboard.html
    """
    from rich.console import Console

    from evals import leaderboard
    from evals.compare_page import labels
    from evals.filing import filed
    from evals.results import read
    from foveal.registry import Registry

    versions, paths = filed(Registry(registry)), results or []
    others = list(zip(labels([str(path) for path in paths]), map(read, paths), strict=True)) if paths else []
    found = leaderboard.boards(leaderboard.rows_of(versions, others))
    if out is not None:
        leaderboard.page(found, versions).write(out)
        typer.echo(f"look at {out}", err=True)
    if json_:
        emit(leaderboard.as_dict(found), True)
    else:
        for table in leaderboard.tables(found):
            Console().print(table, "")


@registry_app.command("promote")
def registry_promote(
    name: Name,
    version: Annotated[int, typer.Argument(help="Version to promote.")],
    alias: Annotated[str, typer.Option(help="Alias to move; a server follows production, canary, shadow.")] = (
        "production"
    ),
    gates: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML list of gates that it must pass now.")
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Result, or JSON report with the figures; beside those in its manifest; repeatable."
        ),
    ] = None,
    incumbent: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Result of what it replaces; repeatable.")
    ] = None,
    registry: RegistryDir = DEFAULT_REGISTRY,
    json_: Json = False,
) -> None:
    """Point an alias at a version that passed its gate.

    Example: foveal registry promote depot 2 --gates gates.yaml --results runs/student.json
    """
    from foveal.errors import BadInput
    from foveal.registry import Registry

    store = Registry(registry)
    if gates is not None:
        from evals.evidence import gather
        from evals.filing import file_verdict
        from evals.gates import check
        from foveal.artifacts import read
        from foveal.gate_cli import show

        folder = store.resolve(f"{name}@{version}")
        verdict = check(gates, gather(results or (), incumbent or (), folder, read(folder).metrics))
        file_verdict(store, name, version, gates.name, verdict)
        if not verdict.passed:
            show(verdict, stderr=True)
            raise typer.Exit(verdict.exit_code)
    elif results or incumbent:
        raise BadInput("there are results but no gates to hold them against", remedy="Add --gates FILE.")
    store.promote(name, version, alias, gate=gates and gates.name)
    emit({"name": name, "version": version, "alias": alias}, json_)


@registry_app.command("rollback")
def registry_rollback(
    name: Name,
    alias: Annotated[str, typer.Option(help="Alias to move back.")] = "production",
    registry: RegistryDir = DEFAULT_REGISTRY,
    json_: Json = False,
) -> None:
    """Point an alias at the version it pointed at before.

    Example: foveal registry rollback depot
    """
    from foveal.registry import Registry

    version = Registry(registry).rollback(name, alias)
    emit({"name": name, "version": version, "alias": alias}, json_)


@registry_app.command("withdraw")
def registry_withdraw(
    name: Name,
    alias: Annotated[str, typer.Option(help="Alias to take away.")] = "canary",
    reason: Annotated[str | None, typer.Option(help="Kept in the log.")] = None,
    registry: RegistryDir = DEFAULT_REGISTRY,
    json_: Json = False,
) -> None:
    """Take an alias away: no version holds it any more.

    Example: foveal registry withdraw depot --alias canary
    """
    from foveal.registry import Registry

    version = Registry(registry).withdraw(name, alias, reason=reason)
    emit({"name": name, "version": version, "alias": alias}, json_)
