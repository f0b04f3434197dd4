"""Settings that every adaptation shares; each kind adds its own (`adapt.clip`, `adapt.detector`, `adapt.vlm`)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Tracker = Literal["tensorboard", "mlflow", "wandb"]


class Settings(BaseModel):
    """What a run is made of; every field can be set as `key=value` on the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["lora", "rslora", "dora"] = "lora"  # arXiv 2106.09685, 2312.03732, 2402.09353
    rank: int = Field(default=4, ge=1)
    alpha: float = Field(default=8.0, gt=0)  # the update is scaled by alpha / rank (rslora: alpha / sqrt(rank))
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | None = None  # last names of modules, e.g. in_proj; None: all linear layers
    learning_rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)  # share of the run
    batch: int = Field(default=64, ge=2)  # examples a step, over all processes
    micro_batch: int | None = Field(default=None, ge=1)  # of these, how many a process holds activations of at a time
    checkpointing: bool = False  # recompute activations in the backward pass: less memory, about a third more time
    compile: bool = False  # torch.compile the model: minutes to start, then faster steps on GPUs
    epochs: int | None = Field(default=None, ge=1)  # None: 20, or as many as `max_seconds` allows
    max_seconds: float | None = Field(default=None, gt=0)  # of training steps; the rate anneals to zero by then
    validate_every: int | None = Field(default=None, ge=1)  # steps between looks at the validation set
    patience: int | None = Field(default=None, ge=1)  # looks without a better figure before the run stops
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 where that is faster
    max_skipped: float = Field(default=0.1, ge=0, le=1)  # share of images that may be unreadable
    checkpoint_seconds: float = Field(default=15.0, gt=0)
    trackers: tuple[Tracker, ...] = ("tensorboard",)  # where losses and validation figures go while it runs
    data_licence: str = "unknown"  # written into the adapter's manifest
    seed: int = Field(default=0, ge=0)
