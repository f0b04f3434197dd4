"""`foveal registry`: versions of what was made, and which one is in production."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    registry: RegistryDir = DEFAULT_REGISTRY,
    json_: Json = False,
) -> None:
    """Copy an artifact into the registry as a new version.

    Example: foveal registry register runs/student-int8 --name depot
    """
    from foveal.artifacts import read
    from foveal.registry import Registry

    version = Registry(registry).register(folder, name)
    emit({"name": name or read(folder).name, "version": version}, json_)


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
        Path | None, typer.Option(metavar="FILE", help="JSON report with the figures; beside those in its manifest.")
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
        from foveal.artifacts import read

        figures = read(store.resolve(f"{name}@{version}")).metrics | _figures(results)
        _held(gates, figures)
    elif results is not None:
        raise BadInput("there are results but no gates to hold them against", remedy="Add --gates FILE.")
    store.promote(name, version, alias, gate=gates and gates.name)
    emit({"name": name, "version": version, "alias": alias}, json_)


def _figures(results: Path | None) -> dict[str, Any]:
    from evals.coco_boxes import read_json

    return {} if results is None else read_json(results)


def _held(gates: Path, figures: dict[str, Any]) -> None:
    """Ends the command where a gate says no."""
    from rich.console import Console

    from evals.gates import check

    verdict = check(gates, figures)
    if not verdict.passed:
        Console(stderr=True).print(verdict.table())
        raise typer.Exit(verdict.exit_code)


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
