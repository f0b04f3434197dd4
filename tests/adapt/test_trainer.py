"""Training that survives: several processes, small memory, kills, losses that are not finite, early stops."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from adapt import clip, losses, pairs
from adapt.clip import ClipSettings, adapt
from adapt.job import Order, Validation
from adapt.pairs import look_alikes
from adapt.run import AdaptReport
from foveal.dataset import Dataset, Sample
from foveal.errors import BadInput, FovealError
from foveal.models import load_encoder
from foveal.progress import SilentProgress
from tests.tiny import tiny_clip

ROOT = Path(__file__).parents[2]
COLOURS = ("red", "green", "blue", "yellow")
QUICK = ClipSettings(rank=2, batch=8, epochs=4, augment=False, precision="float32", trackers=())
SCRIPT = """
import json, sys, torch
from pathlib import Path
from adapt.clip import ClipSettings, adapt
from foveal.dataset import Dataset
torch.set_num_threads(1)
base, data, out, settings = sys.argv[1:]
adapt(base, Dataset.open(data), Path(out), ClipSettings.model_validate_json(settings), device="cpu")
"""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"open_clip:{tiny_clip(tmp_path_factory.mktemp('base'))}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders: 16 pictures of four colours."""
    folder = tmp_path_factory.mktemp("data")
    for colour in COLOURS:
        (folder / colour).mkdir()
        for i in range(4):
            image = Image.new("RGB", (32, 32), "grey")
            ImageDraw.Draw(image).rectangle((2 + 5 * i, 8, 12 + 5 * i, 20), fill=colour)
            image.save(folder / colour / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def data(source: Path) -> Dataset:
    return Dataset.open(source)


class Told(SilentProgress):
    """What a run says meanwhile."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module", params=["labels", "captions"])
def either(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures with labels, or with two captions each."""
    if request.param == "labels":
        return source
    folder = tmp_path_factory.mktemp("captions")
    lines = [
        {"image": str(path), "captions": [f"a {path.parent.name} crate {path.stem}", f"crate {path.parent.name}"]}
        for path in sorted(source.glob("*/*.png"))
    ]
    (folder / "captions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def captioned(data: Dataset) -> Dataset:
    return samples(data, lambda i: f"a crate numbered {i}")


def arguments(base: str, source: Path, out: Path, settings: ClipSettings) -> list[str]:
    return [base, str(source), str(out), settings.model_dump_json()]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(base: str, either: Path, tmp_path: Path) -> None:
    alone = adapt(base, Dataset.open(either), tmp_path / "one", QUICK, device="cpu")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    command = [*launcher, *arguments(base, either, tmp_path / "two", QUICK)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    both = AdaptReport.model_validate_json((tmp_path / "two" / "report.json").read_text())
    assert both.steps == alone.steps
    np.testing.assert_allclose(both.losses, alone.losses, rtol=1e-4)


@pytest.mark.parametrize(
    "changed", [{"micro_batch": 2}, {"micro_batch": 3}, {"checkpointing": True}], ids=["cache", "uneven", "checkpoint"]
)
def test_less_memory_gives_the_same_losses(base: str, either: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    data = Dataset.open(either)
    plain = adapt(base, data, tmp_path / "plain", QUICK)
    small = adapt(base, data, tmp_path / "small", QUICK.model_copy(update=changed))
    np.testing.assert_allclose(small.losses, plain.losses, rtol=1e-4)


def test_an_early_stop_keeps_the_best_adapter(
    base: str, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([0.0, 0.3, 0.9, 0.5, 0.4, 0.4, 0.9])  # before; looks at steps 1, 2, 3, 4; nothing better since 2
    marks: list[float] = []

    def judged(encoder: Any, model: Any, validation: Any) -> Validation:
        marks.append(sum(float(p.detach().double().sum()) for p in model.parameters() if p.requires_grad))
        return Validation({"top1": next(figures)})

    monkeypatch.setattr(clip, "_validate", judged)
    monkeypatch.setattr(clip, "_baselines", lambda *_: None)
    settings = QUICK.model_copy(update={"validate_every": 1, "patience": 2, "epochs": 20})
    report = adapt(base, data, tmp_path / "a", settings, validation=data)
    assert report.steps == 4
    assert [step for step, _ in report.watched] == [1, 2, 3, 4]
    assert marks[-1] == pytest.approx(marks[2], abs=1e-9)  # the adapter of step 2 is back
    assert marks[-1] != pytest.approx(marks[4], abs=1e-9)


def test_an_early_stop_that_was_interrupted_stops_where_it_would_have(
    base: str, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[float | None] = []  # what the looks find; None is Ctrl-C

    def judged(*_: Any) -> Validation:
        found = figures.pop(0)
        if found is None:
            raise KeyboardInterrupt
        return Validation({"top1": found})

    monkeypatch.setattr(clip, "_validate", judged)
    monkeypatch.setattr(clip, "_baselines", lambda *_: None)
    changed = {"validate_every": 1, "patience": 3, "epochs": 20, "checkpoint_seconds": 1e-6}
    settings = QUICK.model_copy(update=changed)
    figures[:] = [0.0, 0.3, 0.9, 0.5, 0.4, 0.4, 0.9]  # before; steps 1 to 5; the best one again
    whole = adapt(base, data, tmp_path / "whole", settings, validation=data)
    assert whole.steps == 5
    figures[:] = [0.0, 0.3, 0.9, None]
    with pytest.raises(KeyboardInterrupt):
        adapt(base, data, tmp_path / "cut", settings, validation=data)
    figures[:] = [0.5, 0.4, 0.4, 0.9]  # steps 3 to 5; the look before training is remembered
    told = Told()
    cut = adapt(base, data, tmp_path / "cut", settings, told, validation=data)
    assert "resumed at step 2" in told.lines
    assert "kept the adapter of step 2: validation top1 0.9000" in told.lines
    assert (cut.watched, cut.steps, cut.before, cut.after) == (whole.watched, 5, {"top1": 0.0}, {"top1": 0.9})
    np.testing.assert_allclose(cut.losses, whole.losses, rtol=1e-5)


def test_a_loss_that_is_not_finite_names_its_images(
    base: str, captioned: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, steps = losses.info_nce, iter(range(100))

    def breaking(*args: Any) -> Any:
        return usual(*args) * (float("nan") if next(steps) == 3 else 1.0)

    monkeypatch.setattr(losses, "info_nce", breaking)
    with pytest.raises(FovealError, match=r"nan at step 4, in the batch of .*\.png and 4 more"):
        adapt(base, captioned, tmp_path / "a", QUICK.model_copy(update={"checkpoint_seconds": 1e-6}))
    kept = {path.name for path in (tmp_path / ".a.run").glob("checkpoint-*")}
    assert "checkpoint-3" in kept


def test_labelled_images_are_told_apart_by_all_classes(base: str, data: Dataset) -> None:
    encoder: Any = load_encoder(base, "cpu")
    loaded = pairs.load_pairs(encoder, data)
    order = Order(16, 8, 4, 0)
    collate = pairs.Collator(loaded, order, augment=False)
    texts: set[bytes] = set()
    for step in range(4):
        items = [order[step * 8 + i] for i in range(8)]
        batch, half = collate(items), collate(items[4:])
        tokens = batch["text"]["text"]
        assert batch["same"].shape == (8, 4)  # every class, though a batch may hold but three of them
        assert torch.equal(batch["same"].sum(dim=1), torch.ones(8, dtype=torch.long))
        assert torch.equal(half["text"]["text"], tokens)  # another process's share: the same texts
        assert torch.equal(half["same"], batch["same"][4:])
        for row, (_, i) in zip(batch["same"], items, strict=True):
            (place,) = row.nonzero()[0].tolist()
            said = {t.replace("{}", str(data[i].label)) for t in pairs.TEMPLATES}
            known = encoder.text_inputs(sorted(said))["text"]
            assert bool((known == tokens[place]).all(dim=1).any())
        texts |= {row.numpy().tobytes() for row in tokens}
    assert len(texts) > 4  # templates change


def test_more_classes_than_a_batch_are_sampled(base: str, data: Dataset) -> None:
    encoder: Any = load_encoder(base, "cpu")
    order = Order(16, 2, 8, 0)
    collate = pairs.Collator(pairs.load_pairs(encoder, data), order, augment=False)
    for step in range(8):
        batch = collate([order[2 * step], order[2 * step + 1]])
        assert batch["same"].shape == (2, 2)
        assert torch.equal(batch["same"].sum(dim=1), torch.ones(2, dtype=torch.long))


def test_cross_entropy_over_classes_by_hand() -> None:
    images, texts = torch.eye(3)[:2], torch.eye(3)
    same = torch.tensor([[True, False, False], [False, False, True]])
    right, wrong = (math.log(math.e**2 + 2) - x for x in (2, 0))
    assert losses.classify(images, texts, 2.0, same).item() == pytest.approx((right + wrong) / 2)


def test_the_sigmoid_loss_by_hand() -> None:
    images = texts = torch.eye(2)
    # logits: 2 * 1 - 1 = 1 on the diagonal, -1 beside it; each of the four costs log(1 + exp(-1)); mean over 2 images
    assert float(losses.sigmoid(images, texts, 2.0, -1.0)) == pytest.approx(4 * np.log1p(np.exp(-1)) / 2)
    same = torch.ones(2, 2, dtype=torch.bool)
    expected = (2 * np.log1p(np.exp(-1)) + 2 * np.log1p(np.exp(1))) / 2
    assert float(losses.sigmoid(images, texts, 2.0, -1.0, same)) == pytest.approx(expected)


def test_the_fitted_bias_expects_as_many_matches_as_there_are() -> None:
    cosines = torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
    bias = losses.fitted_bias(cosines, 10.0, torch.eye(16, dtype=torch.bool))
    assert float(torch.sigmoid(10 * cosines + bias).sum()) == pytest.approx(16, rel=1e-3)


def test_look_alikes_stand_together_and_every_image_is_shown_once() -> None:
    rng = np.random.default_rng(0)
    kinds = np.repeat(np.arange(8), 4)
    vectors = np.eye(8)[kinds] + 0.05 * rng.standard_normal((32, 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    order = Order(32, 8, 2, seed=0, arrange=look_alikes(vectors, group=4))
    for epoch in range(2):
        shown = [order[epoch * 32 + i][1] for i in range(32)]
        assert sorted(shown) == list(range(32))
        assert all(len({kinds[i] for i in shown[at : at + 4]}) == 1 for at in range(0, 32, 4))


def test_cached_embeddings_are_the_computed_ones(base: str, data: Dataset) -> None:
    encoder: Any = load_encoder(base, "cpu")
    job = clip.make_job(base, encoder, data, QUICK.model_copy(update={"towers": ("image",)}))
    batch = job.collate([(i, i) for i in range(4)])
    cached = batch["text"][pairs.FEATURES]
    texts = {t.replace("{}", colour) for colour in COLOURS for t in pairs.TEMPLATES}
    computed = torch.from_numpy(encoder.encode_texts(sorted(texts)))
    assert torch.allclose((cached @ computed.T).max(dim=1).values, torch.ones(4), atol=1e-5)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_losses(base: str, source: Path, data: Dataset, tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"epochs": 60, "checkpoint_seconds": 0.05})
    command = [sys.executable, "-c", SCRIPT, *arguments(base, source, tmp_path / "cut", settings)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not list((tmp_path / ".cut.run").glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut").exists()
    told = Told()
    cut = adapt(base, data, tmp_path / "cut", settings, told, device="cpu")
    assert any(line.startswith("resumed at step ") for line in told.lines)
    whole = adapt(base, data, tmp_path / "whole", settings, device="cpu")
    np.testing.assert_allclose(cut.losses, whole.losses, rtol=1e-5)


def samples(data: Dataset, caption: Callable[[int], str]) -> Dataset:
    made = [Sample(id=s.id, path=s.path, width=32, height=32, captions=(caption(i),)) for i, s in enumerate(data)]
    return Dataset.build(made, [])


def test_captions_over_the_context_are_counted(base: str, data: Dataset, tmp_path: Path) -> None:
    long = samples(data, lambda i: f"a red crate {i} " + ("on a shelf " * 40 if i < 3 else ""))
    report = adapt(base, long, tmp_path / "a", QUICK.model_copy(update={"epochs": 1}))
    assert report.notes == ["3 of 16 captions are longer than the context and were cut"]


def test_one_class_is_refused(base: str, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nothing to tell apart"):
        adapt(base, samples(data, lambda _: "a red crate"), tmp_path / "a", QUICK)
