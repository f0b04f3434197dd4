"""What a quickstart is asked for, and where its run keeps things."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from adapt.clip import ClipSettings
from adapt.vlm import VlmSettings
from distill.prelabel import PrelabelSettings
from distill.train import TrainSettings
from foveal.dataset import Dataset
from foveal.progress import Progress


class QuickstartSettings(BaseModel):
    """Sizes and budgets of the run; the defaults are those of `make quickstart`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(default=3, ge=0)
    size: int = Field(default=224, ge=64)
    unlabelled: int = Field(default=400, ge=8)
    gold: int = Field(default=40, ge=4)
    test: int = Field(default=200, ge=4)
    archive: int = Field(default=2000, ge=16)
    encoder: str = "bundled:clip"
    teacher: str = "bundled:owl"
    vlm: str = "bundled:vlm"
    student: str = "fcos-resnet"
    adapt: ClipSettings = ClipSettings(max_seconds=55)
    teach: VlmSettings = VlmSettings(max_seconds=40, quantise=True, pack=12, batch=8, learning_rate=3e-3)
    questions: int = Field(default=200, ge=8)  # of the hidden test set, put to the vision-language model
    prelabel: PrelabelSettings = PrelabelSettings()
    distill: TrainSettings = TrainSettings(max_seconds=145)

    @field_validator("adapt", "teach", "prelabel", "distill", mode="before")
    @classmethod
    def _over_defaults(cls, value: Any, info: ValidationInfo) -> Any:
        """One setting given leaves the quickstart's other choices of that stage as they are."""
        if not isinstance(value, dict):
            return value
        return {**cls.model_fields[str(info.field_name)].default.model_dump(), **value}


@dataclass(frozen=True, slots=True)
class Run:
    """Where things lie, and what earlier stages said."""

    out: Path
    settings: QuickstartSettings
    progress: Progress
    results: dict[str, Any]

    @property
    def adapter(self) -> Path:
        """The LoRA adapter."""
        return self.out / "adapter"

    @property
    def vlm(self) -> str:
        """The adapted vision-language model."""
        return f"{self.settings.vlm}+{self.out / 'vlm-adapter'}"

    @property
    def encoder(self) -> str:
        """The adapted encoder."""
        return f"{self.settings.encoder}+{self.adapter}"

    def world(self, split: str) -> Path:
        """A rendered split."""
        return self.out / "world" / split

    def truth(self, split: str) -> Dataset:
        """A split with its truth: the gold set's to learn from, any other only to measure."""
        return Dataset.open(self.world(split))
