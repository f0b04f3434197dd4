"""Vision-language models asked through their own prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import foveal
from foveal.errors import BadInput, UnknownName
from foveal.models import BUNDLED, ModelRef, VisionLanguageModel, load_vlm, parse_ref
from foveal.quantised import through_nf4, to_nf4
from foveal.vlms import FAMILIES as SUPPORTED
from foveal.vlms import linear_layers, part_of
from tests.tiny_vlm import FAMILIES, tiny_vlm

IMAGE = Image.new("RGB", (50, 40), "red")
OTHER = Image.new("RGB", (70, 90), "blue")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {name: load_vlm(f"hf:{tiny_vlm(tmp_path_factory.mktemp(name), name)}", "cpu") for name in FAMILIES}


@pytest.mark.parametrize("family", sorted(SUPPORTED))
def test_each_family_answers(models: dict[str, Any], family: str) -> None:
    vlm = models[family]
    assert isinstance(vlm, VisionLanguageModel)
    answer = vlm.answer(IMAGE, "colour?", 6)
    assert answer == vlm.answer(IMAGE, "colour?", 6)
    assert not any(vlm.processor.tokenizer.decode([stop]) in answer for stop in vlm.prompts.stops)
    assert {part_of(name) for name in linear_layers(vlm.model, "vision", "projector", "language")} == {
        "vision",
        "projector",
        "language",
    }


@pytest.mark.parametrize("family", sorted(SUPPORTED))
def test_questions_asked_at_once_are_answered_as_one_by_one(models: dict[str, Any], family: str) -> None:
    vlm = models[family]
    talk = [("is it red?", "it is")] if vlm.prompts.conversational else []
    asked = [(IMAGE, [], "colour?"), (OTHER, talk, "what colour is it now?"), (OTHER, [], "?")]
    assert vlm.replies(asked, 6) == [vlm.reply(*one, 6) for one in asked]


SAID = {
    "smolvlm": [" red<end_of_utterance> sure<end_of_utterance>", " blue<end_of_utterance>"],
    "idefics3": [" red<end_of_utterance> sure<end_of_utterance>", " blue<end_of_utterance>"],
    "internvl": ["red<|im_end|>sure<|im_end|>", "blue<|im_end|>"],
    "llava": [" red  sure </s>", " blue </s>"],  # its template never ends an answer: the last one is ended here
    "qwen2_5_vl": ["red<|im_end|>sure<|im_end|>", "blue<|im_end|>"],
    "qwen3_vl": ["red<|im_end|>sure<|im_end|>", "blue<|im_end|>"],
    "paligemma": ["red<eos>", "blue<eos>"],
    "florence2": ["<s>red</s>", "<s>blue</s>"],
}


@pytest.mark.parametrize("family", sorted(SUPPORTED))
def test_answers_alone_are_to_be_said(models: dict[str, Any], family: str) -> None:
    prompts = models[family].prompts
    talk = [("colour?", "red"), ("certain?", "sure")] if prompts.conversational else [("colour?", "red")]
    inputs, targets = prompts.lesson([IMAGE, OTHER], [talk, [("colour?", "blue")]])
    decode = prompts.tokenizer.decode
    assert [decode(row[row >= 0]) for row in targets] == SAID[family]
    assert [int((row >= 0).sum()) for row in targets] == [prompts.answer_tokens(t) for t in (talk, [("", "blue")])]
    logits = models[family].model(**inputs).logits
    assert logits.shape[:2] == targets.shape
    if "decoder_input_ids" in inputs:
        return
    # What comes before the first answer is what the model is asked with, token for token.
    asked = prompts.inputs([IMAGE], [prompts.ask([], "colour?")])["input_ids"][0]
    first = int((targets[0] >= 0).nonzero()[0]) + 1
    assert inputs["input_ids"][0, :first].tolist() == asked.tolist()


def test_a_batch_says_what_each_says_alone(models: dict[str, Any]) -> None:
    for family, vlm in models.items():
        talks = [[("colour?", "red")], [("what colour is it?", "blue")]]
        inputs, targets = vlm.prompts.lesson([IMAGE, OTHER], talks)
        together = vlm.model(**inputs).logits[1][targets[1] >= 0]
        inputs, targets = vlm.prompts.lesson([OTHER], talks[1:])
        alone = vlm.model(**inputs).logits[0][targets[0] >= 0]
        assert (together - alone).abs().max() < 1e-4, family


def test_a_template_that_hides_the_answers_start_is_refused(models: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny_vlm(tmp_path, "llava")
    said = "{% for m in messages %}<image>{{ m['content'][-1]['text'] }}{% endfor %}"
    broken = said + "{% if add_generation_prompt %}A{% endif %}"
    (folder / "chat_template.jinja").write_text(broken)
    vlm: Any = load_vlm(f"hf:{folder}", "cpu")
    with pytest.raises(BadInput, match="does not let the answer 'red' be told"):
        vlm.prompts.lesson([IMAGE], [[("colour?", "red")]])
    assert vlm.base_fingerprint != models["llava"].base_fingerprint  # the template counts
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(BadInput, match="has no chat template"):
        load_vlm(f"hf:{folder}", "cpu")


def test_history_is_read_or_refused(models: dict[str, Any]) -> None:
    assert models["llava"].prompts.ask([("a?", "b")], "c?") == "USER: <image>\na? ASSISTANT: b USER: c? ASSISTANT:"
    with pytest.raises(BadInput, match="holds no conversations"):
        models["florence2"].reply(IMAGE, [("a?", "b")], "c?")


def test_places_stay_in_an_answer_and_stops_do_not(models: dict[str, Any]) -> None:
    prompts = models["florence2"].prompts
    ids = prompts.tokenizer("</s><s>crate<loc_1><loc_2></s>junk", add_special_tokens=False)["input_ids"]
    assert prompts.spoken(ids) == "crate<loc_1><loc_2>"


@pytest.mark.parametrize(("family", "sides"), [("idefics3", (32, 64)), ("internvl", (32, 46)), ("qwen3_vl", (32, 64))])
def test_more_pixels_are_more_tokens(tmp_path: Path, family: str, sides: tuple[int, int]) -> None:
    vlm: Any = load_vlm(f"hf:{tiny_vlm(tmp_path, family)}", "cpu")
    large, lengths = Image.new("RGB", (200, 100), "red"), list[int]()
    for side in sides:
        vlm.see(side)
        lengths.append(vlm.prompts.inputs([large], [vlm.prompts.ask([], "?")])["input_ids"].shape[1])
        vlm.answer(large, "?", 1)
    assert lengths[1] > lengths[0]


def test_four_bits_and_back(tmp_path: Path) -> None:
    ref = f"hf:{tiny_vlm(tmp_path, 'llava')}"
    packed, restored, base = (load_vlm(ref, "cpu") for _ in range(3))
    names = linear_layers(base.model, "language")  # pyright: ignore
    to_nf4(packed.model, names, "cpu")  # pyright: ignore
    through_nf4(restored.model, names)  # pyright: ignore
    inputs, _ = base.prompts.lesson([IMAGE], [[("colour?", "red")]])  # pyright: ignore
    with torch.no_grad():
        one, other, whole = (vlm.model(**inputs).logits for vlm in (packed, restored, base))  # pyright: ignore
    assert (one - other).abs().max() < 1e-4
    assert (one - whole).abs().max() > 1e-2
    assert packed.answer(IMAGE, "colour?", 4) == restored.answer(IMAGE, "colour?", 4)


def test_what_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match="loader for scheme 'open_clip'"):
        load_vlm("bundled:clip")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UnknownName, match=r"family 'bert'.*paligemma"):
        load_vlm(f"hf:{tmp_path}")
    monkeypatch.setitem(BUNDLED, "vlm", ModelRef("hf", str(tmp_path / "vlm")))
    with pytest.raises(BadInput, match="holds no bundled vlm"):
        parse_ref("bundled:vlm")


def test_the_bundled_vlm_names_its_tensors_as_published_checkpoints_do() -> None:
    """vLLM 0.32 refuses a LLaVA whose vision tower lacks the `vision_model` that transformers 5 no longer needs."""
    from safetensors import safe_open

    with safe_open(Path(foveal.__file__).parent / "backbones" / "vlm" / "model.safetensors", "pt") as weights:
        vision = [name for name in weights.keys() if name.startswith("vision_tower.")]  # noqa: SIM118
    assert vision
    assert all(name.startswith("vision_tower.vision_model.") for name in vision)
