"""What work costs, from a table of prices; nothing is assumed that the table does not say."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from foveal.config import load
from foveal.errors import BadInput, UnknownName


class Machine(BaseModel):
    """One kind of machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    per_hour: float = Field(ge=0)  # of the whole machine
    per_kwh: float | None = Field(None, ge=0)  # of electricity, where it is paid apart
    watts: float | None = Field(None, gt=0)  # that it draws under load, for where its energy cannot be read


class Prices(BaseModel):
    """A price table, as its YAML file states it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    currency: str = Field(min_length=1)
    as_of: date | None = None  # prices age
    machines: dict[str, Machine] = Field(min_length=1)

    def machine(self, name: str | None) -> tuple[str, Machine]:
        """The machine called `name`; the only one when None.

        Raises:
            UnknownName: there is none of that name.
            BadInput: no name was given, and there are several.
        """
        if name is None:
            if len(self.machines) > 1:
                raise BadInput(
                    "the price table has several machines",
                    expected=f"--machine with one of {', '.join(self.machines)}",
                )
            name = next(iter(self.machines))
        if name not in self.machines:
            raise UnknownName("machine in the price table", name, self.machines)
        return name, self.machines[name]


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a thousand images."""

    machine: float
    electricity: float | None  # None where it is not paid apart, or not known
    note: str | None = None  # what is left out

    @property
    def total(self) -> float:
        """All that is known."""
        return self.machine + (self.electricity or 0.0)


def read(path: Path) -> Prices:
    """The table in a YAML file; raises `ConfigError` naming what is wrong with it."""
    return load(Prices, path)


def cost(price: Machine, images_per_second: float, joules_per_image: float | None) -> Cost:
    """What a thousand images cost on a machine that does `images_per_second`.

    Electricity is what was measured, else what the table says that the machine draws, else left out and said to be.
    """
    hours = 1000 / images_per_second / 3600
    rent = price.per_hour * hours
    if price.per_kwh is None:
        return Cost(rent, None)
    if joules_per_image is not None:
        return Cost(rent, joules_per_image * 1000 / 3.6e6 * price.per_kwh)
    if price.watts is not None:
        return Cost(rent, price.watts / 1000 * hours * price.per_kwh, "electricity by the table's watts, not measured")
    return Cost(rent, None, "electricity left out: its use cannot be read, and the table states no watts")
