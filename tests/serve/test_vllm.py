"""Models in vLLM: what goes to it and how; and, where it is installed, a real one over the bundled model.

The slow part runs with `make test-vllm`, which installs vLLM into an environment of its own.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from foveal import adapters, artifacts
from foveal.errors import BadInput, Unavailable
from foveal.models import load_vlm, parse_ref
from foveal.vlms import TransformersVLM, linear_layers
from serve import vllm_models
from serve.app import create_app
from serve.server import running
from serve.vllm import VllmServer
from serve.vllm_models import AnswersDiffer, agreement, plan, python_of, rides, start
from tests.tiny_vlm import tiny_vlm

OPTIONS = ("--dtype", "bfloat16", "--max-model-len", "1024", "--enforce-eager")
needs_vllm = pytest.mark.skipif(vllm_models.PYTHON not in os.environ, reason="run with make test-vllm")


def adapter_for(base: str, folder: Path, parts: tuple[str, ...], size: float = 0.02, nf4: bool = False) -> Path:
    """An adapter over some parts of a model, with random updates, sealed as training seals one."""
    from peft import LoraConfig

    loaded = load_vlm(base, "cpu")
    assert isinstance(loaded, TransformersVLM)
    names = linear_layers(loaded.model, *parts)  # type: ignore[arg-type]
    model = adapters.fresh(loaded.model, LoraConfig(r=4, lora_alpha=8, target_modules=names), 0, base)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, size, generator=torch.Generator().manual_seed(len(name)))
    folder.mkdir()
    adapters.save(model, folder)
    config = {"base_fingerprint": loaded.base_fingerprint, "conditions": {"nf4": nf4, "image_side": None}}
    artifacts.seal(folder, name="a", kind="adapter", config=config)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"hf:{tiny_vlm(tmp_path_factory.mktemp('llava'), 'llava')}"


def test_only_what_vllm_can_add_is_handed_over(tiny: str, tmp_path: Path) -> None:
    language = adapter_for(tiny, tmp_path / "language", ("language",))
    vision = adapter_for(tiny, tmp_path / "vision", ("language", "vision"))
    quantised = adapter_for(tiny, tmp_path / "quantised", ("language",), nf4=True)
    assert rides(language)
    assert not rides(vision)
    assert not rides(quantised)
    handed = plan(parse_ref(f"{tiny}+{language}"), tmp_path / "merged")
    assert (handed.folder, handed.name, handed.adapter) == (tiny.removeprefix("hf:"), "language", language)
    assert not (tmp_path / "merged").exists()
    merged = plan(parse_ref(f"{tiny}+{vision}"), tmp_path / "merged")
    assert (merged.name, merged.adapter) == ("base", None)
    whole, apart = load_vlm(f"hf:{merged.folder}", "cpu"), load_vlm(f"{tiny}+{vision}", "cpu")
    assert isinstance(whole, TransformersVLM)
    assert isinstance(apart, TransformersVLM)
    for name, tensor in apart.model.state_dict().items():
        assert torch.equal(whole.model.state_dict()[name], tensor)
    stamp = (Path(merged.folder) / "manifest.json").stat().st_mtime_ns
    assert plan(parse_ref(f"{tiny}+{vision}"), tmp_path / "merged") == merged
    assert (Path(merged.folder) / "manifest.json").stat().st_mtime_ns == stamp, "merged once"


def test_where_vllm_is_must_be_said_and_true(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="FOVEAL_VLLM_PYTHON"):
        python_of({})
    with pytest.raises(BadInput, match="does not exist"):
        VllmServer(tmp_path / "python", "model")
    server = VllmServer(Path(sys.executable), "model")  # which has no vLLM
    with pytest.raises(Unavailable, match=r"ended with 1.*No module named 'vllm'"):
        server.start()
    assert server.pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


def test_the_rank_of_adapters_is_told(tmp_path: Path) -> None:
    for name, rank in (("a", 4), ("b", 20)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"r": rank}))
    line = VllmServer(Path(sys.executable), "m", adapters={"a": tmp_path / "a", "b": tmp_path / "b"}).line
    assert line[line.index("--max-lora-rank") + 1] == "32"
    assert line[line.index("--lora-modules") + 1 :] == [f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}"]


@pytest.fixture(scope="module")
def python() -> Path:
    return python_of()


@pytest.fixture(scope="module")
def base(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    from foveal.models import BUNDLED

    with VllmServer(python, BUNDLED["vlm"].target, options=OPTIONS) as server:
        yield server


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_vllm
def test_base_adapter_and_merged_model_say_in_vllm_what_they_say_here(python: Path, tmp_path: Path) -> None:
    language = adapter_for("bundled:vlm", tmp_path / "language", ("language",), 0.01)
    vision = adapter_for("bundled:vlm", tmp_path / "vision", ("language", "vision", "projector"), 0.01)
    refs = ["vllm:bundled:vlm", f"vllm:bundled:vlm+{language}", f"vllm:bundled:vlm+{vision}"]
    servers, models = start(refs, python, tmp_path / "merged", OPTIONS)
    try:
        assert len(servers) == 2, "base and language adapter share one, what was merged has its own"
        names = [one.name for one in models]
        assert names == refs
        assert len({one.fingerprint for one in models}) == 3
        app = create_app(models={"vlm" if n == 0 else one.name: one for n, one in enumerate(models)})
        with running(app) as url:
            listed = {one["id"] for one in httpx.get(f"{url}/v1/models").json()["data"]}
            assert listed == {"vlm", *refs[1:]}
    finally:
        for server in servers:
            server.stop()


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_vllm
def test_a_model_that_says_other_things_there_is_refused(
    base: VllmServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = adapter_for("bundled:vlm", tmp_path / "adapter", ("language", "vision", "projector"), 0.5)
    other = plan(parse_ref("bundled:vlm"), tmp_path)
    wrong = vllm_models.Plan(parse_ref(f"bundled:vlm+{adapter}"), other.folder, "base")  # the adapter is left out
    with pytest.raises(AnswersDiffer, match="begins"):
        vllm_models._checked(wrong, base, None)  # pyright: ignore[reportPrivateUsage]


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_vllm
def test_it_is_started_again_when_it_dies(base: VllmServer, tmp_path: Path) -> None:
    there = vllm_models._checked(plan(parse_ref("bundled:vlm"), tmp_path), base, None)  # pyright: ignore[reportPrivateUsage]
    with running(create_app(vlm=there)) as url:
        image = vllm_models.probes()[0]
        body = {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": there.data_url(image)}},
                        {"type": "text", "text": "describe the picture"},
                    ],
                }
            ],
            "max_tokens": 12,
        }

        def ask() -> httpx.Response:
            return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)

        before = ask()
        assert before.status_code == 200, before.text
        assert base.pid is not None
        os.kill(base.pid, signal.SIGKILL)
        time.sleep(1)
        while_gone = ask()
        assert while_gone.status_code == 503
        assert "does not answer" in while_gone.json()["error"]["message"]
        deadline = time.monotonic() + 300
        while (after := ask()).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(1)
        assert after.json()["choices"] == before.json()["choices"]
        schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
        form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
        said = httpx.post(f"{url}/v1/chat/completions", json={**body, "response_format": form, "max_tokens": 200})
        assert json.loads(said.json()["choices"][0]["message"]["content"])["n"] in (1, 2)
        with httpx.stream("POST", f"{url}/v1/chat/completions", json={**body, "stream": True}) as answer:
            assert [line for line in answer.iter_lines() if line][-1] == "data: [DONE]"
    assert agreement(load_vlm("bundled:vlm"), there) >= 0.9  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.timeout(120)
@needs_vllm
def test_nothing_is_left_running(base: VllmServer) -> None:
    base.stop()
    assert base.pid is not None
    assert _alive(base.pid) == []
    assert not base.healthy()


def _alive(group: int) -> list[int]:
    """Processes of a group that are not only waiting to be reaped."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found
