"""The ontology: which classes to label, how to ask a teacher for each, and how sure a label must be."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from foveal.errors import ConfigError

Text = Annotated[str, Field(min_length=1)]
Attributes = dict[Text, tuple[Text, ...]]
Schema = dict[str, Attributes]  # class -> its attributes


class OntologyClass(BaseModel):
    """One class: its name in the data, and how to recognise it."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    name: Text = Field(description="The label as it stands in the data.")
    prompts: tuple[Text, ...] = Field(
        default=(), description="What the teacher is asked for; the name itself when empty."
    )
    negative_prompts: tuple[Text, ...] = Field(
        (), description="Look-alikes: a box that fits one of these better loses."
    )
    min_size: float = Field(default=0.0, ge=0, description="Shorter side in pixels below which a box is not labelled.")
    target_precision: float | None = Field(default=None, gt=0, lt=1, description="In place of the job's own target.")
    guideline: str = Field(default="", description="What annotators are told; travels with the labels.")
    attributes: Attributes = Field(default={}, description="Name -> values: what else is to be said of each box.")

    @field_validator("attributes")
    @classmethod
    def _choices(cls, attributes: Attributes) -> Attributes:
        return _checked_choices(attributes)

    @property
    def asked(self) -> tuple[str, ...]:
        """The prompts, or the name where there are none."""
        return self.prompts or (self.name,)


class Ontology(BaseModel):
    """Classes in a fixed order; raises `ConfigError` on duplicates, empty or unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: tuple[OntologyClass, ...] = Field(min_length=1)
    negative_prompts: tuple[Text, ...] = Field(
        default=(), description="Things that are no class at all, for every class."
    )
    attributes: Attributes = Field(default={}, description="Attributes of every class.")

    @field_validator("attributes")
    @classmethod
    def _choices(cls, attributes: Attributes) -> Attributes:
        return _checked_choices(attributes)

    @field_validator("classes", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """`- barrel` means `- name: barrel`."""
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError("expected a list of class names or of {name, prompts, ...}")
        return [{"name": item} if isinstance(item, str) else item for item in cast("Sequence[Any]", value)]

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: tuple[OntologyClass, ...]) -> tuple[OntologyClass, ...]:
        names: dict[str, str] = {}
        prompts: dict[str, str] = {}
        for item in classes:
            key = item.name.casefold()
            if key in names:
                raise ValueError(
                    f"class {item.name!r} is listed twice (as {names[key]!r} before); names are compared without case"
                )
            names[key] = item.name
            for prompt in dict.fromkeys(p.casefold() for p in item.asked):
                if prompt in prompts:
                    raise ValueError(f"prompt {prompt!r} is asked for both {prompts[prompt]!r} and {item.name!r}")
                prompts[prompt] = item.name
        for item in classes:
            clash = [p for p in item.negative_prompts if p.casefold() in {q.casefold() for q in item.asked}]
            if clash:
                raise ValueError(f"class {item.name!r} has {clash[0]!r} both as prompt and as negative prompt")
        return classes

    @property
    def names(self) -> tuple[str, ...]:
        """Class names, in order."""
        return tuple(item.name for item in self.classes)

    @property
    def schema_of_attributes(self) -> Schema:
        """Class -> name -> values, of the classes that have attributes; its own go before those of every class."""
        found = {c.name: {**self.attributes, **c.attributes} for c in self.classes}
        return {name: attributes for name, attributes in found.items() if attributes}

    @property
    def prompts(self) -> tuple[str, ...]:
        """Every text a teacher is asked for, classes first, each once (compared without case)."""
        listed = [p for c in self.classes for p in c.asked]
        listed += [p for c in self.classes for p in c.negative_prompts] + list(self.negative_prompts)
        return tuple(
            {p.casefold(): p for p in reversed(listed)}[k] for k in dict.fromkeys(p.casefold() for p in listed)
        )

    def classes_of_prompts(self) -> list[int | None]:
        """For each of `prompts` the index of its class; None for one that is only a negative prompt."""
        owner = {p.casefold(): k for k, c in enumerate(self.classes) for p in c.asked}
        return [owner.get(p.casefold()) for p in self.prompts]

    @classmethod
    def of(cls, names: Sequence[str]) -> Ontology:
        """The ontology of bare class names."""
        return cls._checked({"classes": list(names)}, "class list")

    @classmethod
    def load(cls, path: str | Path) -> Ontology:
        """The ontology in a YAML file.

        Raises:
            ConfigError: no such file, not YAML, an unknown field (with the closest known one), an empty or repeated
                class.
        """
        path = Path(path)
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"ontology {path} cannot be read", received=error.strerror or str(error)) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"ontology {path} is not YAML", received=" ".join(str(error).split())) from error
        if isinstance(data, list):
            data = {"classes": cast("list[Any]", data)}
        if not isinstance(data, dict):
            raise ConfigError(
                f"ontology {path} holds no classes", expected="`classes:` with a list of names", received=repr(data)
            )
        return cls._checked(cast("dict[Any, Any]", data), f"ontology {path}")

    @classmethod
    def _checked(cls, data: dict[Any, Any], where: str) -> Ontology:
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            # A class that fails also leaves the list too short: the first says it all.
            said = [e for e in error.errors() if not (e["type"] == "too_short" and error.error_count() > 1)]
            raise ConfigError(f"{where}: {'; '.join(map(_say, said))}") from error


def _checked_choices(attributes: Attributes) -> Attributes:
    for name, values in attributes.items():
        if "." in name:
            raise ValueError(f"attribute {name!r} has a full stop in its name, which annotation tools take apart")
        if len(values) < 2 or len({v.casefold() for v in values}) < len(values):
            raise ValueError(
                f"attribute {name!r} needs two or more different values, received {', '.join(values) or 'none'}"
            )
    return attributes


def _say(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = list((OntologyClass if len(error["loc"]) > 1 else Ontology).model_fields)
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        return f"unknown field {place}{hint}; expected one of {', '.join(known)}"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] in ("string_too_short", "too_short"):
        return f"{place} is empty"
    if error["type"] == "missing":
        return f"{place} is missing"
    return f"{place}: {error['msg']}, received {error['input']!r}"
