"""Timing: what is counted, what is not, that a machine is named; energy and cost worked out by hand."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evals import prices
from evals.energy import Meter
from evals.measures import MEASURES, quantile_of
from evals.pages import page
from evals.results import read
from evals.speed import detector_latency, kind_of, latency, measure, over_items
from evals.speed_probe import Request, Timed, run
from foveal.detections import Detections
from foveal.errors import BadInput, ConfigError, UnknownName
from foveal.runtime import peak_memory_mb
from tests.command import foveal
from tests.foveal.test_detectors import folder


def test_warm_calls_only_are_counted() -> None:
    calls: list[float] = []

    def slow_start() -> None:
        calls.append(time.perf_counter())
        time.sleep(0.2 if len(calls) <= 2 else 0.001)

    measured = latency(slow_start, warmup=2, runs=10)
    assert len(calls) == 12
    assert 1 <= measured["p50_ms"] <= measured["p95_ms"] <= measured["p99_ms"]
    assert measured["p50_ms"] < 100
    assert measured["runs"] == 10


def test_items_take_turns() -> None:
    seen: list[str] = []
    over_items(seen.append, ["a", "b", "c"], warmup=1, runs=5)
    assert seen == ["a", "b", "c", "a", "b", "c"]
    with pytest.raises(BadInput, match="nothing to time"):
        over_items(seen.append, [])
    with pytest.raises(BadInput, match="runs >= 1"):
        latency(lambda: None, runs=0)


class Empty:
    """A detector that finds nothing, one image at a time."""

    name, fingerprint, classes = "empty", "0", ("thing",)

    def detect(self, images: Sequence[Any], threshold: float = 0.05) -> list[Detections]:
        assert len(images) == 1
        return [Detections.empty(self.classes)]


def test_a_detector_is_timed_at_batch_one_on_a_named_machine() -> None:
    measured = detector_latency(Empty(), [Image.new("RGB", (8, 8))], warmup=1, runs=3)
    assert measured["batch"] == 1
    assert measured["detector"] == "empty"
    assert measured["machine"]
    assert measured["images_per_second"] == pytest.approx(1000 / measured["mean_ms"])


def test_batches_are_full_the_warmup_is_not_counted_and_pictures_take_turns() -> None:
    pictures = [Image.new("L", (1, 1), shade) for shade in range(3)]
    seen: list[list[int]] = []
    request = Request(
        reference="x",
        kind="encoder",
        images=["a/0.png", "a/1.png", "a/2.png"],
        batches=[4, 2],
        calls=4,
        warmup=2,
        seconds=0,
    )
    timed = run(request, pictures, lambda batch: seen.append([image.getpixel((0, 0)) for image in batch]))
    assert seen[:6] == [[0], [1], [0], [1], [2], [0]]
    assert [len(batch) for batch in seen[6:]] == [2, 2, 2, 2, 4, 4, 4, 4]  # one of each size is not counted
    assert seen[7:9] == [[0, 1], [1, 2]]
    assert timed.images == ["0.png", "1.png", "2.png", "0.png"]
    assert list(timed.images_per_second) == list(timed.peak_mb) == [2, 4]


def timed(**more: Any) -> Timed:
    told: dict[str, Any] = {
        "ms": [float(v) for v in range(1, 101)],
        "images": [f"{i % 5}.png" for i in range(100)],
        "images_per_second": {1: 20.0, 8: 50.0},
        "joules_per_image": {},
        "peak_mb": {1: 300.0, 8: 400.0},
        "name": "x",
        **more,
    }
    return Timed.model_validate(told)


def test_figures_are_those_of_the_calls_and_the_best_batch() -> None:
    figures = measure(timed()).figures
    assert (figures["p50_ms"], figures["p95_ms"], figures["mean_ms"]) == (50.5, pytest.approx(95.05), 50.5)
    assert (figures["images_per_second"], figures["best_batch"], figures["peak_memory_mb"]) == (50.0, 8, 400.0)
    assert "cost_per_1000" not in figures


def test_quantiles_of_the_items_are_numpys_for_any_weights() -> None:
    rng = np.random.default_rng(0)
    ms = rng.lognormal(3, 1, 57)
    counts = rng.integers(0, 4, (5, 57))
    for share in (0.5, 0.95, 0.99):
        found = quantile_of("ms", share)({"ms": ms.tolist()}, counts.astype(float))
        expected = [np.percentile(np.repeat(ms, row), share * 100) for row in counts]
        np.testing.assert_allclose(found, expected)
    measured = measure(timed())
    for name, one in MEASURES["speed"].items():
        assert one.of(measured.items, np.ones((1, 100)))[0] == pytest.approx(measured.figures[name])
    assert np.isnan(quantile_of("ms", 0.5)({"ms": [1.0]}, np.zeros((1, 1)))[0])


PRICES = """
currency: EUR
machines:
  rented: {per_hour: 0.36}
  own: {per_hour: 0.036, per_kwh: 0.25, watts: 72}
  unmetered: {per_hour: 0.036, per_kwh: 0.25}
"""


def table(folder: Path, text: str = PRICES) -> Path:
    (folder / "prices.yaml").write_text(text)
    return folder / "prices.yaml"


@pytest.mark.parametrize(
    ("machine", "joules", "total", "note"),
    [
        ("rented", None, 0.36 / 180, None),  # 50 a second: a thousand in 20 s, 180 times an hour
        ("own", None, 0.036 / 180 + 0.072 * 20 / 3600 * 0.25, "not measured"),
        ("own", 3.6, 0.036 / 180 + 0.001 * 0.25, None),  # 3.6 J each: 1 Wh a thousand
        ("unmetered", None, 0.036 / 180, "left out"),
    ],
)
def test_the_cost_of_a_thousand(tmp_path: Path, machine: str, joules: float | None, total: float, note: str) -> None:
    name, price = prices.read(table(tmp_path)).machine(machine)
    assert name == machine
    told = timed(joules_per_image={} if joules is None else {8: joules}, energy=None if joules is None else "RAPL")
    figures = measure(told, price, "EUR").figures
    assert figures["cost_per_1000"] == pytest.approx(total)
    assert (note or "") in (figures["cost"]["note"] or "")
    assert (figures["cost"]["note"] is None) == (note is None)


def test_a_price_table_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--machine with one of rented, own, unmetered"):
        prices.read(table(tmp_path)).machine(None)
    with pytest.raises(UnknownName, match="no machine in the price table 'mine'"):
        prices.read(table(tmp_path)).machine("mine")
    with pytest.raises(ConfigError, match="per_hou"):
        prices.read(table(tmp_path, "currency: EUR\nmachines: {a: {per_hou: 1}}"))
    with pytest.raises(ConfigError, match="greater than or equal to 0"):
        prices.read(table(tmp_path, "currency: EUR\nmachines: {a: {per_hour: -1}}"))
    assert prices.read(table(tmp_path, "currency: EUR\nmachines: {a: {per_hour: 1}}")).machine(None)[0] == "a"


def zone(folder: Path, name: str, package: str, microjoules: int) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "name").write_text(f"{package}\n")
    (folder / name / "max_energy_range_uj").write_text("1000000000\n")
    (folder / name / "energy_uj").write_text(f"{microjoules}\n")
    return folder / name / "energy_uj"


def test_energy_counts_packages_once_and_goes_on_when_a_counter_wraps(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 990_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 5_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 1)  # part of the first
    meter = Meter.of_machine(tmp_path, "libnone.so")
    assert meter.source == "RAPL package-0, RAPL package-1"
    assert meter.joules() is None
    meter.start()
    first.write_text("10000000")  # 20 J over the end of the counter
    second.write_text("7500000")
    assert meter.joules() == pytest.approx(22.5)


def test_energy_that_cannot_be_read_is_said_to_be_so(tmp_path: Path) -> None:
    none = Meter.of_machine(tmp_path, "libnone.so")
    none.start()
    assert none.joules() is None
    assert none.why_not == "not readable: the system shows no RAPL counters; there is no NVIDIA driver"
    zone(tmp_path, "intel-rapl:0", "package-0", 1).unlink()
    told = Meter.of_machine(tmp_path, "libnone.so").why_not
    assert told is not None
    assert "No such file" in told


def test_a_reference_that_may_be_several_things_must_say_which() -> None:
    assert kind_of("bundled:clip+runs/adapter") == "encoder"
    assert (kind_of("bundled:owl"), kind_of("onnx:./x"), kind_of("artifact:a@b")) == (
        "open-detector",
        "detector",
        "detector",
    )
    with pytest.raises(BadInput, match="--as with one of encoder, detector, open-detector, vlm"):
        kind_of("hf:org/model")


def test_the_command_times_a_real_model_in_a_process_of_its_own(tmp_path: Path) -> None:
    folder(tmp_path / "detector")
    (tmp_path / "data").mkdir()
    for shade in range(3):
        Image.new("RGB", (40, 40), (shade, 0, 0)).save(tmp_path / "data" / f"{shade}.png")
    line = ["eval", "speed", f"onnx:{tmp_path / 'detector'}", "--data", str(tmp_path / "data"), "--seconds", "0"]
    more = ["--calls", "7", "--prices", str(table(tmp_path)), "--machine", "rented", "--out", str(tmp_path / "s.json")]
    shown = foveal(*line, *more, "--json")
    assert shown.code == 0, shown.err
    kept = read(tmp_path / "s.json")
    assert kept.figures == shown.json
    assert (kept.task, len(kept), kept.data.images) == ("speed", 7, 3)
    assert kept.items["image"] == [f"{i % 3}.png" for i in range(7)]
    assert kept.figures["before_mb"] < kept.figures["peak_memory_mb"] < peak_memory_mb()  # not this process's own
    assert kept.subject.megabytes is not None
    assert kept.figures["cost_per_1000"] == pytest.approx(0.1 / kept.figures["images_per_second"])
    assert kept.subject.fingerprint
    assert kept.settings["machine"] == "rented"
    assert "Throughput by batch size" in page(kept).html()
    wrong = foveal("eval", "speed", "onnx:/nowhere", "--data", str(tmp_path / "data"))
    assert "/nowhere does not exist" in wrong.error
