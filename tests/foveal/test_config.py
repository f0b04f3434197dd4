from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, Field

from foveal.config import load, read_yaml
from foveal.errors import ConfigError


class Lora(BaseModel):
    rank: int = Field(default=8, ge=1)
    alpha: float = 16.0
    targets: list[str] = ["q", "v"]


class Stage(BaseModel):
    epochs: int = 1


class Settings(BaseModel):
    lr: float = 1e-4
    device: str | None = None
    schedule: Literal["cosine", "linear"] = "cosine"
    lora: Lora = Lora()
    head: Lora | None = None
    stages: list[Stage] = []
    named: dict[str, Stage] = {}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return path


def test_defaults_file_and_overrides_in_that_order(tmp_path: Path) -> None:
    assert load(Settings) == Settings()
    path = written(tmp_path, "lr: 1e-3\nlora: {rank: 4}\nstages: [{epochs: 2}]\nnamed: {a: {epochs: 3}}\n")
    settings = load(Settings, path, ["lora.rank=2", "lora.rank=3", "lora.targets=[k]", "device=null", "head.rank=1"])
    assert (settings.lr, settings.lora.rank, settings.lora.targets) == (1e-3, 3, ["k"])
    assert (settings.device, settings.head and settings.head.rank) == (None, 1)
    assert (settings.stages[0].epochs, settings.named["a"].epochs) == (2, 3)
    assert load(Settings, written(tmp_path, "")) == Settings()
    assert load(Settings, None, ["lr=5e-5", "device=cuda:1"]).device == "cuda:1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lrr: 1\n", r"no key 'lrr'; expected one of device, head, .*Did you mean lr\?"),
        ("lora: {ranks: 1}\n", r"no key 'lora.ranks'; expected one of alpha, rank, targets. Did you mean lora.rank\?"),
        ("head: {ranks: 1}\n", r"no key 'head.ranks'"),
        ("stages: [{epoch: 1}]\n", r"no key 'stages.epoch'"),
        ("named: {a: {epoch: 1}}\n", r"no key 'named.epoch'"),
        ("lora: {rank: many}\n", r"lora.rank does not fit; expected a valid integer.*received 'many'"),
        ("lora: {rank: 0}\n", r"lora.rank does not fit; expected greater than or equal to 1; received 0"),
        ("schedule: cosin\n", r"schedule does not fit; expected 'cosine' or 'linear'.*Did you mean cosine\?"),
        ("lr: 1\nlr: 2\n", r"names 'lr' twice, at lines 1 and 2"),
        ("lora: {rank: 1, rank: 2}\n", r"names 'rank' twice"),
        ("lr: [1\n", r"settings.yaml is not YAML.*line 2"),
        ("- 1\n", r"holds no settings"),
        ("lr: !!python/object/apply:os.getcwd []\n", r"is not YAML.*line 1"),
    ],
)
def test_misfits_name_the_field_and_the_choices(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(Settings, written(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.rank", "is no override; expected key=value"),
        ("=3", "is no override"),
        ("lora.rnk=3", r"no key 'lora.rnk'.*Did you mean lora.rank\?"),
        ("lr.x=3", "lr does not fit"),
        ("lora.rank=x", "lora.rank does not fit"),
    ],
)
def test_wrong_overrides(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(Settings, None, [override])


def test_an_override_below_a_plain_value(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="goes below lr"):
        load(Settings, written(tmp_path, "lr: 1\n"), ["lr.x=3"])


def test_required_fields_and_missing_files(tmp_path: Path) -> None:
    class Needs(BaseModel):
        out: str

    with pytest.raises(ConfigError, match=r"the settings lacks? out|lacks out"):
        load(Needs)
    with pytest.raises(ConfigError, match=r"gone\.yaml cannot be read"):
        read_yaml(tmp_path / "gone.yaml")


def test_yaml_merge_keys_still_work(tmp_path: Path) -> None:
    path = written(tmp_path, "base: &b {x: 1, y: 2}\nother: {<<: *b, y: 3}\n")
    assert read_yaml(path)["other"] == {"x": 1, "y": 3}
