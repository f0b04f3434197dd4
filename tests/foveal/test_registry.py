import multiprocessing
import os
import signal
import stat
import threading
from pathlib import Path

import pytest

from foveal import artifacts
from foveal.errors import BadInput, IntegrityError, Unavailable, UnknownName
from foveal.registry import Registry, holders


def made(folder: Path, content: str, name: str = "det", metrics: dict[str, object] | None = None) -> Path:
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    (folder / "sub" / "model.onnx").write_text(content)
    artifacts.seal(folder, name=name, kind="detector", metrics={"gate_passed": True, **(metrics or {})})
    return folder


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def test_versions_never_change(registry: Registry, tmp_path: Path) -> None:
    source = made(tmp_path / "run", "one", metrics={"AP50": 0.4})
    assert registry.register(source) == 1
    assert registry.register(source) == 1, "the same content is the same version"
    assert registry.register(made(source, "two", metrics={"AP50": 0.5})) == 2
    one = registry.resolve("det@1") / "sub" / "model.onnx"
    assert one.read_text() == "one"
    assert not one.stat().st_mode & stat.S_IWUSR
    assert artifacts.read(registry.resolve("det")).metrics["AP50"] == 0.5
    assert registry.resolve("det@latest") == registry.resolve("det@2")


def test_aliases_move_and_go_back(registry: Registry, tmp_path: Path) -> None:
    for content in ("one", "two", "three"):
        registry.register(made(tmp_path / content, content), name="site.det-1")
    for version in (1, 3, 3, 2):
        registry.promote("site.det-1", version)
    assert registry.resolve("site.det-1@production").name == "2"
    assert registry.rollback("site.det-1") == 3
    assert registry.rollback("site.det-1") == 1
    with pytest.raises(BadInput, match="only ever been version 1"):
        registry.rollback("site.det-1")
    registry.promote("site.det-1", 2)
    assert registry.rollback("site.det-1") == 1
    assert [(e.action, e.version) for e in registry.history("site.det-1")] == [
        ("promote", 1), ("promote", 3), ("promote", 2), ("rollback", 3), ("rollback", 1),
        ("promote", 2), ("rollback", 1),
    ]  # fmt: skip
    registry.promote("site.det-1", 1, alias="candidate")
    assert [(e.version, e.aliases) for e in registry.list()] == [(1, ("candidate", "production")), (2, ()), (3, ())]
    assert registry.list()[0].kind == "detector"


@pytest.mark.parametrize(("passed", "said"), [(None, "has passed no gate"), (False, "did not pass its gate")])
def test_who_answers_has_passed_a_gate(registry: Registry, tmp_path: Path, passed: bool | None, said: str) -> None:
    registry.register(made(tmp_path / "run", "one", metrics={"gate_passed": passed}))
    for alias in ("production", "canary"):
        with pytest.raises(BadInput, match=rf"{said}.*--gates gates\.yaml"):
            registry.promote("det", 1, alias)
    registry.promote("det", 1, "shadow")  # it answers nobody
    registry.promote("det", 1, gate="gates.yaml")
    assert holders(registry.history("det")) == {"production": 1}
    assert registry.history("det")[1].reason == "gates.yaml"


def test_what_is_in_production_is_on_trial_no_more(registry: Registry, tmp_path: Path) -> None:
    for content in ("one", "two"):
        registry.register(made(tmp_path / content, content))
    registry.promote("det", 1)
    registry.promote("det", 2, "canary")
    registry.promote("det", 1, "shadow")
    registry.promote("det", 2)
    assert holders(registry.history("det")) == {"production": 2, "shadow": 1}
    registry.rollback("det")
    assert holders(registry.history("det")) == {"production": 1, "shadow": 1}


def test_an_alias_can_be_taken_away(registry: Registry, tmp_path: Path) -> None:
    for content in ("one", "two"):
        registry.register(made(tmp_path / content, content))
    registry.promote("det", 1, "canary")
    registry.promote("det", 2, "canary")
    assert registry.withdraw("det", "canary", reason="too slow") == 2
    assert holders(registry.history("det")) == {}
    assert registry.history("det")[-1].reason == "too slow"
    with pytest.raises(UnknownName, match="alias"):
        registry.withdraw("det", "canary")
    registry.promote("det", 2, "canary")
    with pytest.raises(BadInput, match="only ever been"):
        registry.rollback("det", "canary")


def test_misses_list_the_choices(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"no model .*'det'.*empty"):
        registry.resolve("det")
    registry.register(made(tmp_path / "run", "one"))
    with pytest.raises(UnknownName, match=r"'dt'; expected one of det"):
        registry.resolve("dt")
    with pytest.raises(UnknownName, match=r"version of det '7'; expected one of 1"):
        registry.resolve("det@7")
    with pytest.raises(UnknownName, match=r"alias of det 'production'.*foveal registry promote det 1"):
        registry.resolve("det@production")
    with pytest.raises(UnknownName, match="version"):
        registry.promote("det", 2)
    with pytest.raises(UnknownName, match="alias"):
        registry.rollback("det")
    assert registry.list()[0].version == 1


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a b"])
def test_names_that_could_escape(registry: Registry, tmp_path: Path, name: str) -> None:
    registry.register(made(tmp_path / "run", "one"))
    with pytest.raises(BadInput, match="cannot name a model"):
        registry.resolve(f"{name}@1")
    if name:
        with pytest.raises(BadInput, match="cannot name a model"):
            registry.register(tmp_path / "run", name=name)


@pytest.mark.parametrize("alias", ["3", "latest", "../x", ""])
def test_words_that_cannot_be_aliases(registry: Registry, tmp_path: Path, alias: str) -> None:
    registry.register(made(tmp_path / "run", "one"))
    with pytest.raises(BadInput, match="cannot be an alias"):
        registry.promote("det", 1, alias)


def test_damage_is_refused(registry: Registry, tmp_path: Path) -> None:
    source = made(tmp_path / "run", "one")
    (source / "sub" / "model.onnx").write_text("changed")
    with pytest.raises(IntegrityError, match="has changed"):
        registry.register(source)
    registry.register(made(source, "one"))
    registry.promote("det", 1)
    (registry.root / "det" / "aliases.json").write_text("[{]")
    with pytest.raises(IntegrityError, match=r"aliases\.json is damaged"):
        registry.resolve("det@production")
    with pytest.raises(BadInput, match="has no manifest"):
        registry.register(tmp_path)


def _register_many(root: str, run: str, count: int) -> None:
    for i in range(count):
        Registry(root).register(made(Path(run), f"{run} {i}"), name="det")
        Registry(root).promote("det", 1 + i % 2)


def test_processes_take_turns(registry: Registry, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = [(str(registry.root), str(tmp_path / f"run{i}"), 4) for i in range(2)]
    workers = [context.Process(target=_register_many, args=a) for a in arguments]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert [entry.version for entry in registry.list()] == list(range(1, 9))
    contents = {(registry.resolve(f"det@{v}") / "sub/model.onnx").read_text() for v in range(1, 9)}
    assert len(contents) == 8


def _killed_while_registering(root: str, run: str) -> None:
    read = artifacts.read

    def kill_at_last_check(folder: Path, *, verify: bool = True) -> artifacts.Manifest:
        if folder != Path(run):
            os.kill(os.getpid(), signal.SIGKILL)
        return read(folder, verify=verify)

    artifacts.read = kill_at_last_check
    Registry(root).register(Path(run))


def test_a_kill_leaves_no_half_version(registry: Registry, tmp_path: Path) -> None:
    run = made(tmp_path / "run", "one")
    worker = multiprocessing.get_context("spawn").Process(
        target=_killed_while_registering, args=(str(registry.root), str(run))
    )
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    assert registry.list() == ()
    assert registry.register(run) == 1, "neither the lock nor the half copy is in the way"


def test_a_busy_registry_says_so(registry: Registry, tmp_path: Path) -> None:
    run = made(tmp_path / "run", "one")
    with registry._locked():
        caught: list[Exception] = []

        def other() -> None:
            try:
                Registry(registry.root, lock_seconds=0.1).register(run)
            except Exception as error:
                caught.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert isinstance(caught[0], Unavailable)
    assert "is busy" in str(caught[0])
