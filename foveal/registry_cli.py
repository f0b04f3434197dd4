"""`foveal registry`: versions of what was made, and which one is in production."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foveal.printing import Json, emit, emit_rows, plain

DEFAULT_REGISTRY = Path("runs/registry")
RegistryDir = Annotated[Path, typer.Option("--registry", metavar="DIR", help="Folder of registered artifacts.")]

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
    name: Annotated[str, typer.Argument(help="Registered name.")],
    version: Annotated[int, typer.Argument(help="Version to promote.")],
    alias: Annotated[str, typer.Option(help="Alias to move.")] = "production",
    registry: RegistryDir = DEFAULT_REGISTRY,
    json_: Json = False,
) -> None:
    """Point an alias at a version.

    Example: foveal registry promote depot 2
    """
    from foveal.registry import Registry

    Registry(registry).promote(name, version, alias)
    emit({"name": name, "version": version, "alias": alias}, json_)


@registry_app.command("rollback")
def registry_rollback(
    name: Annotated[str, typer.Argument(help="Registered name.")],
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
