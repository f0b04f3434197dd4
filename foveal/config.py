"""Settings from YAML and `key=value` overrides into a pydantic schema; a misfit names the field and the choices."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from foveal.errors import ConfigError

Schema = TypeVar("Schema", bound=BaseModel)


class _UniqueKeys(yaml.SafeLoader):
    """YAML whose mappings may not repeat a key: plain YAML keeps the last one and says nothing."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *base`
            continue
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if isinstance(key, str | int | float) and key in seen:
            raise ConfigError(
                f"{loader.name} names {key!r} twice, at lines {seen[key]} and {line}",
                remedy="Rename or remove one of them.",
            )
        if isinstance(key, str | int | float):
            seen[key] = line
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: Path) -> Any:
    """Parsed YAML of plain types only.

    Raises:
        ConfigError: unreadable, not YAML (names the line), or a key occurs twice in one mapping.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as stream:
            return _UniqueKeys(stream).get_single_data()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", remedy="Check the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path} is not YAML: {getattr(error, 'problem', None) or error}{where}") from error


def load(schema: type[Schema], path: Path | None = None, overrides: Sequence[str] = ()) -> Schema:
    """A validated `schema` from a YAML file (optional) with dotted `key=value` overrides on top, the last one winning.

    Values are read as YAML, so `rank=8`, `layers=[1, 2]` and `device=null` mean what they say.

    Raises:
        ConfigError: an unknown key, a value that does not fit, or an override without `=`.
    """
    source = str(path) if path is not None else "the settings"
    values: Any = read_yaml(path) if path is not None else {}
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(f"{source} holds no settings", expected="a mapping of keys to values", received=repr(values))
    check_keys(schema, values, source)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"{override!r} is no override", expected="key=value, e.g. lora.rank=8")
        nested: dict[str, Any] = {}
        _set(nested, key.strip().split("."), _parse(text), override)
        check_keys(schema, nested, f"override {override!r}")
        _set(values, key.strip().split("."), _parse(text), override)
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise _explain(error, source) from error


def check_keys(schema: type[BaseModel], values: Mapping[str, Any], source: str, prefix: str = "") -> None:
    """Raise ConfigError at the first key that the schema, or a schema nested in it, does not have."""
    fields = {info.alias or name: info for name, info in schema.model_fields.items()}
    for key, value in values.items():
        if key not in fields:
            if schema.model_config.get("extra") == "allow":
                continue
            raise _unknown(f"{source} has no key", f"{prefix}{key}", str(key), fields)
        for inner, item in _nested(fields[key].annotation, value):
            check_keys(inner, item, source, f"{prefix}{key}.")


def _nested(annotation: Any, value: Any) -> Iterable[tuple[type[BaseModel], Mapping[str, Any]]]:
    """The mappings in `value` that one pydantic model in `annotation` describes; unions of several are left to it."""
    models = list(_models(annotation))
    if len(models) != 1:
        return
    if isinstance(value, Mapping):
        if get_origin(_bare(annotation)) is dict:
            yield from ((models[0], item) for item in value.values() if isinstance(item, Mapping))
        else:
            yield models[0], value
    elif isinstance(value, list):
        yield from ((models[0], item) for item in value if isinstance(item, Mapping))


def _bare(annotation: Any) -> Any:
    """`X` of `X | None`."""
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [arm for arm in get_args(annotation) if arm is not type(None)]
        return rest[0] if len(rest) == 1 else annotation
    return annotation


def _models(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for argument in get_args(annotation):
        yield from _models(argument)


def _set(values: dict[str, Any], path: list[str], value: Any, override: str) -> None:
    for key in path[:-1]:
        inner = values.setdefault(key, {})
        if not isinstance(inner, dict):
            if inner is not None:
                raise ConfigError(f"override {override!r} goes below {key}, which is {inner!r} and has no keys")
            inner = values[key] = {}
        values = inner
    values[path[-1]] = value


def _parse(text: str) -> Any:
    try:
        return yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        return text


def _unknown(what: str, full: str, key: str, choices: Iterable[str]) -> ConfigError:
    names = sorted(choices)
    near = difflib.get_close_matches(key, names, n=1)
    return ConfigError(
        f"{what} {full!r}",
        expected=f"one of {', '.join(names)}",
        remedy=f"Did you mean {full.removesuffix(key)}{near[0]}?" if near else None,
    )


def _explain(error: ValidationError, source: str) -> ConfigError:
    """The first misfit as one line."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "the settings"
    received = first.get("input")
    if first["type"] == "missing":
        return ConfigError(f"{source} lacks {field}", remedy=f"Set it: {field}=...")
    if first["type"] == "extra_forbidden":
        return ConfigError(f"{source} has no key {field!r}", remedy="Remove it.")
    expected = str(first.get("ctx", {}).get("expected") or first["msg"])
    expected = expected.removeprefix("Input should be ").removeprefix("Value error, ")
    choices = [part.strip("' ") for part in expected.replace(" or ", ",").split(",")]
    near = difflib.get_close_matches(str(received), choices, n=1) if first["type"] in ("literal_error", "enum") else []
    return ConfigError(
        f"{field} does not fit",
        expected=expected,
        received=repr(received),
        remedy=f"Did you mean {near[0]}?" if near else None,
    )
