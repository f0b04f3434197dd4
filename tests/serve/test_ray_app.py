"""The application on Ray Serve: several replicas are one server, and registered detectors are held apart from them."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml

from distill.export import export
from distill.train import train
from foveal.errors import BadInput
from foveal.models import load_encoder
from foveal.registry import Registry
from retrieval.archive import Archive
from serve.keys import Keys
from tests.distill.tiny_student import SETTINGS, painted
from tests.serve.test_keys import bearer
from tests.serve.test_workers import eventually

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs ray: pip install 'foveal[ray]'", allow_module_level=True)

from serve.ray_app import RayLaunch, build, merged


def test_figures_of_replicas_are_told_apart() -> None:
    one = '# HELP a_total A.\n# TYPE a_total counter\na_total{x="1"} 2.0\n'
    text = merged([("r1", one), ("r2", one.replace("2.0", "3.0"))]).decode()
    assert text.count("# TYPE a_total counter") == 1
    assert 'a_total{replica="r1",x="1"} 2.0' in text
    assert 'a_total{replica="r2",x="1"} 3.0' in text


@pytest.mark.parametrize("ref", ["onnx:./folder", "artifact:depot", "artifact:depot@3"])
def test_only_what_a_registry_names_by_an_alias_is_shared(ref: str) -> None:
    with pytest.raises(BadInput, match="artifact:NAME@ALIAS"):
        build(RayLaunch(shared=(ref,)))


def test_fewer_replicas_at_most_than_at_least_are_refused() -> None:
    with pytest.raises(BadInput, match="most >= least"):
        build(RayLaunch(least=3, most=2))


def test_the_shipped_configuration_is_what_is_built() -> None:
    told = yaml.safe_load((Path(__file__).parents[2] / "deploy/ray/serve.yaml").read_text())
    (application,) = told["applications"]
    module, _, name = application["import_path"].partition(":")
    assert getattr(importlib.import_module(module), name) is build
    launch = RayLaunch.model_validate(application["args"])
    assert launch.keys is not None, "others reach it: never without keys"
    assert build(launch) is not None


SITES = ("artifact:yard@production", "artifact:hall@production")
PORT = 8457


@pytest.fixture(scope="module")
def cluster(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Keys, Registry]]:
    """Two replicas over an archive, and one that holds the newest detector of one site or the other."""
    import ray
    from ray import serve

    home = tmp_path_factory.mktemp("ray")
    encoder = load_encoder("bundled:clip")
    Archive.create(home / "depot", encoder).add(pictures, encoder)
    registry = Registry(home / "registry")
    student = home / "student"
    train(painted(), "fcos-resnet", student, SETTINGS.model_copy(update={"epochs": 1}))
    forms = [home / "all", home / "disc"]
    for form in forms:
        export(student, form, check=painted(), classes=None if form.name == "all" else ["disc"])
    for name in ("yard", "hall"):
        assert [registry.register(form, name) for form in forms] == [1, 2]
        registry.promote(name, 1, gate="a test's")
    keys = Keys(home / "keys.sqlite")
    ray.init(num_cpus=6, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        launch = RayLaunch(
            archives=(str(home / "depot"),), keys=home / "keys.sqlite", registry=home / "registry", least=2, most=2,
            shared=SITES, versions=1,
        )  # fmt: skip
        serve.run(build(launch))
        yield f"http://127.0.0.1:{PORT}", keys, registry
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.mark.slow
def test_replicas_are_one_server(cluster: tuple[str, Keys, Registry]) -> None:
    url, keys, _ = cluster
    key = bearer(keys.add("operator", ["search", "metrics", "detect"]))
    assert httpx.post(f"{url}/v1/search", json={"text": "red"}, timeout=60).status_code == 401

    def search(_: int) -> int:
        answer = httpx.post(f"{url}/v1/search", json={"text": "red", "k": 3}, headers=key, timeout=60)
        assert len(answer.json()["hits"]) == 3
        return answer.status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(search, range(40))) == {200}
    figures = httpx.get(f"{url}/metrics", headers=key, timeout=60).text
    lines = [
        x for x in figures.splitlines() if x.startswith("foveal_requests_total") and '"200"' in x and "search" in x
    ]
    assert len(lines) == 2, "both replicas were asked"
    assert sum(float(line.split()[-1]) for line in lines) == 40
    few = bearer(keys.add("few", ["search"], quota=5))
    with ThreadPoolExecutor(8) as pool:
        status = list(
            pool.map(lambda _: httpx.get(f"{url}/v1/archives", headers=few, timeout=60).status_code, range(12))
        )
    assert sorted(status) == [200] * 5 + [429] * 7


@pytest.mark.slow
def test_shared_detectors_take_turns_and_follow_the_registry(cluster: tuple[str, Keys, Registry]) -> None:
    url, keys, registry = cluster
    key = bearer(keys.add("looker", ["detect", "metrics"]))
    data = painted()[0].path.read_bytes()

    def detect(site: str) -> dict[str, object]:
        files = {"image": ("a.png", data)}
        answer = httpx.post(
            f"{url}/v1/detect", files=files, data={"model": site, "threshold": "0.3"}, headers=key, timeout=60
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    for _ in range(3):  # with room for one version, each turn loads the other
        for site in SITES:
            assert detect(site)["version"] == 1
    registry.promote("yard", 2, gate="a test's")
    assert eventually(lambda: all(detect(SITES[0])["version"] == 2 for _ in range(6)))
    assert detect(SITES[1])["version"] == 1
