"""Adapters for a tiny random model of each vision-language family: nothing lost, nothing changed by merging."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from adapt.dialogues import open_dialogues
from adapt.job import Order
from adapt.trainer import trainable
from adapt.vlm import MERGE_TOLERANCE, VlmSettings, adapt, adaptable, choose, make_job
from adapt.vlm_lessons import Lesson, LessonCollator, answer_loss, lessons
from foveal import adapters, artifacts
from foveal.errors import AdapterMismatch, BadInput, FovealError, UnknownName
from foveal.models import load_vlm
from foveal.vlms import linear_layers, part_of
from tests.command import foveal
from tests.tiny_vlm import FAMILIES, tiny_vlm

EVERYTHING = ("vision", "projector", "language")
FAST = VlmSettings(rank=4, alpha=8, learning_rate=1e-2, batch=4, epochs=1, warmup=0, towers=EVERYTHING)
COLOURS = ("red", "lime", "blue", "black")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A checkpoint of each family."""
    return {name: f"hf:{tiny_vlm(tmp_path_factory.mktemp(name), name)}" for name in FAMILIES}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight questions about four pictures of unlike shapes."""
    folder = tmp_path_factory.mktemp("data")
    lines: list[str] = []
    for i, colour in enumerate(COLOURS):
        image = Image.new("RGB", (40 + 8 * i, 48), "white")
        ImageDraw.Draw(image).rectangle((8, 8, 30, 40), fill=colour)
        image.save(folder / f"{colour}.png")
        for question, answer in (("colour?", colour), ("empty?", "no")):
            lines.append(json.dumps({"image": f"{colour}.png", "question": question, "answer": answer}))
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_an_adapter_of_each_family_is_whole(bases: dict[str, str], data: Path, tmp_path: Path, family: str) -> None:
    base = bases[family]
    vlm, dialogues = adaptable(base, "cpu"), open_dialogues([data])
    taught = lessons(vlm, dialogues)
    inputs, _ = vlm.prompts.lesson([Image.open(x.image) for x in taught[:2]], [x.turns for x in taught[:2]])
    before = vlm.model(**inputs).logits
    frozen = {name: value.clone() for name, value in vlm.model.state_dict().items()}
    job = make_job(base, vlm, dialogues, FAST)
    assert torch.equal(vlm.model(**inputs).logits, before)  # a fresh adapter changes nothing

    report = adapt(base, [data], tmp_path / "a", FAST, device="cpu")
    assert report.merge_difference <= 1e-4
    assert (report.data["dialogues"], report.steps) == (8, 2)
    assert {part_of(name) for name in trainable(job.model)} == set(EVERYTHING)
    tensors = adapters.tensors(tmp_path / "a")
    assert any(value.abs().max() > 0 for name, value in tensors.items() if "lora_B" in name)  # it learnt

    loaded = load_vlm(f"{base}+{tmp_path / 'a'}", "cpu")
    assert loaded.fingerprint == report.fingerprint != report.base_fingerprint
    again = adaptable(base, "cpu")
    adapters.attach(again.model, tmp_path / "a", again.base_fingerprint)
    kept = {name.replace(".base_layer", ""): value for name, value in again.model.state_dict().items()}
    assert all(torch.equal(kept[name], value) for name, value in frozen.items())
    unmerged, merged = again.model(**inputs).logits, loaded.model(**inputs).logits  # pyright: ignore
    assert (unmerged - merged).abs().max() <= 1e-4
    assert (unmerged - before).abs().max() > 1e-4

    _refused_in_part(base, tmp_path / "a")


def _refused_in_part(base: str, folder: Path) -> None:
    """Lose one tensor, and the folder, now without its manifest, applies to nothing."""
    (folder / artifacts.MANIFEST).unlink()
    tensors = load_file(folder / adapters.WEIGHTS)
    lost = tensors.popitem()[0]
    save_file(tensors, folder / adapters.WEIGHTS)
    with pytest.raises(AdapterMismatch, match="is not in the file"):
        load_vlm(f"{base}+{folder}", "cpu")
    assert lost.endswith("weight")


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_one_step_moves_the_adapter_alone(bases: dict[str, str], data: Path, family: str) -> None:
    vlm = adaptable(bases[family], "cpu")
    job = make_job(bases[family], vlm, open_dialogues([data]), FAST)
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    optimizer = torch.optim.SGD(trainable(job.model).values(), lr=1.0)
    batch = job.collate([(i, i) for i in range(4)])
    job.loss(job.model, batch).backward()
    optimizer.step()
    moved = {name for name, value in job.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(".lora_" in name for name in moved)


def test_a_quantised_base_is_merged_dequantised(bases: dict[str, str], data: Path, tmp_path: Path) -> None:
    settings = FAST.model_copy(update={"quantise": True, "epochs": 2})
    report = adapt(bases["llava"], [data], tmp_path / "a", settings, device="cpu")
    assert report.merge_difference <= MERGE_TOLERANCE
    told = load_vlm(f"{bases['llava']}+{tmp_path / 'a'}", "cpu")
    assert told.fingerprint == report.fingerprint
    (tmp_path / "a" / artifacts.MANIFEST).unlink()
    untold = load_vlm(f"{bases['llava']}+{tmp_path / 'a'}", "cpu")  # as a tool merges it that knows nothing of 4 bits
    assert untold.fingerprint != told.fingerprint
    layer = linear_layers(told.model, "language")[0]  # pyright: ignore
    one, other = (v.model.get_submodule(layer).weight for v in (told, untold))  # pyright: ignore
    assert (one - other).abs().max() > 10 * MERGE_TOLERANCE
    assert report.total_params == sum(p.numel() for p in untold.model.parameters())  # pyright: ignore


@pytest.mark.parametrize(("method", "quantise"), [("rslora", False), ("dora", False), ("dora", True)])
def test_other_methods_merge_as_exactly(
    bases: dict[str, str], data: Path, tmp_path: Path, method: str, quantise: bool
) -> None:
    settings = FAST.model_copy(update={"method": method, "quantise": quantise, "towers": ("language",)})
    report = adapt(bases["qwen3_vl"], [data], tmp_path / "a", settings, device="cpu")
    assert report.merge_difference <= MERGE_TOLERANCE


def test_looking_in_between_does_not_disturb_training(bases: dict[str, str], data: Path, tmp_path: Path) -> None:
    settings = FAST.model_copy(update={"max_new_tokens": 2})
    plain = adapt(bases["qwen2_5_vl"], [data], tmp_path / "plain", settings, device="cpu")
    looking = settings.model_copy(update={"validate_every": 1})
    looked = adapt(bases["qwen2_5_vl"], [data], tmp_path / "looked", looking, validation=[data], device="cpu")
    assert looked.losses == plain.losses
    assert [step for step, _ in looked.watched] == [1, 2]


def test_a_bad_merge_is_refused(bases: dict[str, str], data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("foveal.vlms.TransformersVLM.merge", lambda self, *_, **__: None)  # forgets to merge
    with pytest.raises(FovealError, match="does not say what base"):
        adapt(bases["llava"], [data], tmp_path / "a", FAST, device="cpu")
    assert not (tmp_path / "a").exists()


def test_answers_are_learnt_by_heart(bases: dict[str, str], data: Path, tmp_path: Path) -> None:
    settings = FAST.model_copy(update={"epochs": 35, "rank": 8, "learning_rate": 2e-2, "max_new_tokens": 8})
    report = adapt(bases["llava"], [data], tmp_path / "a", settings, validation=[data], device="cpu")
    assert report.before is not None
    assert report.after is not None
    assert report.before["exact_match"] == 0
    assert report.after["exact_match"] == 1
    assert report.after["anls"] == 1
    assert report.metric == "exact_match"
    again = adapt(bases["llava"], [data], tmp_path / "a", settings, validation=[data], device="cpu")
    assert again.already_done


@pytest.mark.parametrize("family", ["llava", "paligemma", "florence2", "qwen2_5_vl"])
def test_losses_are_means_over_the_answers_tokens(bases: dict[str, str], data: Path, family: str) -> None:
    vlm = adaptable(bases[family], "cpu")
    taught = lessons(vlm, open_dialogues([data]))
    order = Order(len(taught), 4, 3, seed=0)
    collate = LessonCollator(vlm, [(one,) for one in taught], order)
    items = [order[i] for i in range(4, 8)]
    with torch.no_grad():
        whole = float(answer_loss(vlm.model, collate(items)))
        pieces = [float(answer_loss(vlm.model, collate(items[i : i + 1]))) for i in range(4)]
    assert whole == pytest.approx(sum(pieces) / 4, rel=1e-5)
    inputs, targets = collate.batch([index for _, index in items])
    logits = vlm.model(**inputs).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
    assert whole == pytest.approx(float(expected), rel=1e-5)


def test_resolution_and_length(bases: dict[str, str], data: Path, tmp_path: Path) -> None:
    vlm, dialogues = adaptable(bases["qwen2_5_vl"], "cpu"), open_dialogues([data])
    settings = FAST.model_copy(update={"image_side": 28})
    large = lessons(vlm, dialogues)[0]
    count = [int(vlm.prompts.lesson([Image.open(large.image)], [large.turns])[0]["image_grid_thw"].prod())]
    report = adapt(bases["qwen2_5_vl"], [data], tmp_path / "a", settings, device="cpu")
    adapted: Any = load_vlm(f"{bases['qwen2_5_vl']}+{tmp_path / 'a'}", "cpu")
    count.append(int(adapted.prompts.lesson([Image.open(large.image)], [large.turns])[0]["image_grid_thw"].prod()))
    assert count[1] == 4 < count[0]
    assert adapted.fingerprint == report.fingerprint
    with pytest.raises(BadInput, match="one size only"):
        adapt(bases["llava"], [data], tmp_path / "b", settings, device="cpu")
    short = FAST.model_copy(update={"max_length": 41})
    report = adapt(bases["llava"], [data], tmp_path / "c", short, device="cpu")
    assert report.notes == ["8 of 8 dialogues are longer than max_length and were cut"]
    with pytest.raises(BadInput, match="Raise max_length"):
        adapt(bases["llava"], [data], tmp_path / "d", FAST.model_copy(update={"max_length": 20}), device="cpu")


def test_parts_have_their_own_rates_and_targets(bases: dict[str, str], data: Path) -> None:
    vlm = adaptable(bases["qwen3_vl"], "cpu")
    names = choose(vlm.model, ["projector"])
    assert all("merger" in name for name in names)
    assert choose(vlm.model, ["language"], ["q_proj"]) == [
        f"model.language_model.layers.{i}.self_attn.q_proj" for i in range(2)
    ]
    with pytest.raises(UnknownName, match="q_proj"):
        choose(vlm.model, ["language"], ["qkv"])
    settings = FAST.model_copy(update={"vision_rate": 0.1, "projector_rate": 0.5})
    job = make_job(bases["qwen3_vl"], vlm, open_dialogues([data]), settings)
    assert job.rate_of is not None
    rates = {part_of(name): job.rate_of(name) for name in trainable(job.model)}
    assert rates == {"vision": 0.1, "projector": 0.5, "language": 1.0}


@pytest.mark.parametrize("family", ["idefics3", "internvl", "llava", "smolvlm"])
def test_packed_questions_are_learnt_as_if_asked_alone(bases: dict[str, str], data: Path, family: str) -> None:
    vlm = adaptable(bases[family], "cpu")
    images = sorted({dialogue.image for dialogue in open_dialogues([data]).items})[:2]
    turns = [("what is it", "a red crate"), ("how many", "2"), ("is it open, tell me", "no")]
    groups = [
        tuple(Lesson(images[0], (turn,)) for turn in turns),
        (Lesson(images[1], (turns[2], turns[0])), Lesson(images[1], (turns[1],))),  # one of them a conversation
    ]
    alone = [(lesson,) for group in groups for lesson in group]
    together = LessonCollator(vlm, groups, Order(2, 2, 1, 0))([(0, 0), (1, 1)])
    apart = LessonCollator(vlm, alone, Order(5, 5, 1, 0))([(i, i) for i in range(5)])
    one, other = (float(answer_loss(vlm.model, batch).detach()) for batch in (together, apart))
    assert one == pytest.approx(other, rel=1e-5)
    assert together["targets"].shape[0] == 2


@pytest.mark.parametrize(
    ("family", "changed", "said"),
    [
        ("qwen3_vl", {"pack": 4}, "cannot be packed"),
        ("paligemma", {"pack": 4}, "cannot be packed"),
        ("llava", {"pack": 2, "max_length": 40}, "cannot be cut"),
    ],
)
def test_packing_is_refused_where_it_would_change_what_is_learnt(
    bases: dict[str, str], data: Path, family: str, changed: dict[str, Any], said: str
) -> None:
    vlm, dialogues, settings = adaptable(bases[family], "cpu"), open_dialogues([data]), FAST.model_copy(update=changed)
    with pytest.raises(BadInput, match=said):
        make_job(bases[family], vlm, dialogues, settings)


def test_boxes_are_taught_and_judged(bases: dict[str, str], data: Path, tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{c}.png", "width": 40 + 8 * i, "height": 48} for i, c in enumerate(COLOURS)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [8, 8, 23, 33], "area": 759} for i in range(4)]
    coco = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "crate"}]}
    source = data / "instances.json"
    source.write_text(json.dumps(coco))
    settings = FAST.model_copy(update={"max_new_tokens": 4})
    report = adapt(bases["llava"], [source], tmp_path / "a", settings, validation=[source], device="cpu")
    assert report.metric == "grounding_iou"
    assert report.before == {"grounding_iou": 0.0, "located": 0.0}
    source.unlink()


def test_bad_input(bases: dict[str, str], data: Path, tmp_path: Path) -> None:
    broken = tmp_path / "more.jsonl"
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken.write_text(json.dumps({"image": "broken.png", "question": "?", "answer": "!"}) + "\n")
    with pytest.raises(BadInput, match="1 of 5 images cannot be read"):
        adapt(bases["llava"], [data, broken], tmp_path / "a", FAST, device="cpu")
    report = adapt(
        bases["llava"], [data, broken], tmp_path / "a", FAST.model_copy(update={"max_skipped": 0.5}), device="cpu"
    )
    assert [Path(path).name for path, _ in report.skipped] == ["broken.png"]
    with pytest.raises(BadInput, match="already carries an adapter"):
        adapt(f"{bases['llava']}+{tmp_path / 'a'}", [data], tmp_path / "b", FAST)
    with pytest.raises(AdapterMismatch, match="belongs to another base"):
        load_vlm(f"{bases['qwen3_vl']}+{tmp_path / 'a'}", "cpu")


class _Interrupted(BaseException):
    pass


class _StopAfter:
    """Progress that pulls the plug in the middle of the run."""

    def __init__(self, steps: int) -> None:
        self.steps, self.training = steps, False

    def start(self, task: str, total: int | None) -> None:
        self.training = task == "train"

    def advance(self, n: int = 1) -> None:
        self.steps -= n if self.training else 0
        if self.steps < 0:
            raise _Interrupted

    def note(self, text: str) -> None:
        pass

    def finish(self) -> None:
        pass


@pytest.mark.parametrize("quantise", [False, True])
def test_an_interrupted_run_goes_on_to_the_same_end(
    bases: dict[str, str], data: Path, tmp_path: Path, quantise: bool
) -> None:
    settings = FAST.model_copy(update={"quantise": quantise, "epochs": 3, "micro_batch": 2, "checkpoint_seconds": 1e-6})
    whole = adapt(bases["llava"], [data], tmp_path / "whole", settings, device="cpu")
    with pytest.raises(_Interrupted):
        adapt(bases["llava"], [data], tmp_path / "cut", settings, _StopAfter(3), device="cpu")
    assert not (tmp_path / "cut").exists()
    cut = adapt(bases["llava"], [data], tmp_path / "cut", settings, device="cpu")
    assert cut.losses == whole.losses
    assert cut.fingerprint == whole.fingerprint


def test_micro_batches_and_checkpointing_change_no_loss(bases: dict[str, str], data: Path, tmp_path: Path) -> None:
    exact = FAST.model_copy(update={"precision": "float32", "epochs": 2})
    whole = adapt(bases["llava"], [data], tmp_path / "whole", exact, device="cpu")
    pieces = exact.model_copy(update={"micro_batch": 1, "checkpointing": True})
    divided = adapt(bases["llava"], [data], tmp_path / "divided", pieces, device="cpu")
    assert divided.losses == pytest.approx(whole.losses, rel=1e-5)


def test_the_commands(bases: dict[str, str], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "a"
    words = ["--data", str(data), "--out", str(out), "--validation", str(data)]
    settings = ["--set", "epochs=1", "--set", "batch=8", "--set", "max_new_tokens=4", "--json"]
    done = foveal("adapt", "vlm", "--base", bases["llava"], *words, *settings)
    assert done.code == 0, done.err
    assert done.json["kind"] == "vlm"
    figures = foveal(
        "eval", "vqa", "--data", str(data), "--vlm", f"{bases['llava']}+{out}", "--max-tokens", "4", "--json"
    )
    assert figures.json == {**done.json["after"], "count": 8}
    assert "image_side" in foveal("adapt", "vlm", "--base", bases["llava"], *words, "--set", "side=3").error
