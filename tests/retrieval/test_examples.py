"""Few-shot examples: near, of several classes, the most similar last, in forms that models take."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from foveal.dataset import Dataset, Sample
from foveal.errors import BadInput
from foveal.models import parse_ref
from foveal.vlms import load_hf
from retrieval.examples import Crops, Example, conversation, hint, pick
from retrieval.memory import ExemplarMemory
from tests.retrieval.pixels import PixelEncoder
from tests.retrieval.test_memory import scenes
from tests.tiny_vlm import tiny_vlm


@pytest.fixture(scope="module")
def gold(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return scenes(tmp_path_factory.mktemp("gold") / "images", 8)


@pytest.fixture(scope="module")
def memory(gold: Dataset) -> ExemplarMemory:
    return ExemplarMemory.build(PixelEncoder(), gold)


def asked(gold: Dataset, number: int = 0, box: int = 0) -> tuple[Sample, Image.Image]:
    sample = gold[number]
    assert sample.truth is not None
    x1, y1, x2, y2 = sample.truth.boxes[box].tolist()
    return sample, sample.image().crop((round(x1), round(y1), round(x2), round(y2)))


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 7), st.integers(0, 1), st.integers(1, 20))
def test_examples_are_balanced_and_end_with_the_most_similar(
    memory: ExemplarMemory, gold: Dataset, number: int, box: int, n: int
) -> None:
    sample, _ = asked(gold, number, box)
    assert sample.truth is not None
    found = pick(memory, sample.image(), n, box=sample.truth.boxes[box], exclude_image=sample.id)
    assert len(found) == min(n, 14)
    assert len({example.id for example in found}) == len(found)
    assert [e.similarity for e in found] == sorted(e.similarity for e in found)
    assert found[-1].label == ("red", "blue")[box]
    assert not any(example.id.startswith(f"{sample.id}#") for example in found)
    counts = [sum(e.label == name for e in found) for name in ("red", "blue")]
    assert abs(counts[0] - counts[1]) <= 1


def test_pictures_are_the_crops_and_lost_files_are_passed_over(memory: ExemplarMemory, gold: Dataset) -> None:
    _, crop = asked(gold)
    found = pick(memory, crop, 4, crops=Crops(memory, gold))
    red = found[-1].image
    assert red is not None
    assert red.getpixel((red.width // 2, red.height // 2)) == (255, 0, 0)
    few = pick(memory, crop, 4, crops=Crops(memory, gold.subset([1, 2])))
    assert len(few) == 4
    assert {example.id.split("#")[0] for example in few} == {"s1", "s2"}
    assert Crops(memory, gold.subset([1])).of("s0#0").size == (64, 64)


@pytest.mark.slow
def test_a_conversation_fits_a_chat_template_that_takes_several_images(
    memory: ExemplarMemory, gold: Dataset, tmp_path: Path
) -> None:
    _, crop = asked(gold)
    found = pick(memory, crop, 3, crops=Crops(memory, gold))
    messages, images = conversation(found, crop, "what is this")
    assert images[-1] is crop
    assert [m["role"] for m in messages] == ["user", "assistant"] * 3 + ["user"]
    assert [m["content"][0]["text"] for m in messages[1::2]] == [example.label for example in found]
    vlm = load_hf(parse_ref(f"hf:{tiny_vlm(tmp_path, 'qwen2_5_vl')}"), "cpu")
    text = vlm.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = vlm.processor(images=images, text=[text], return_tensors="pt")
    assert len(inputs["image_grid_thw"]) == 4
    assert vlm.model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] > inputs["input_ids"].shape[1]


def test_hints_name_each_class_once_the_most_similar_first() -> None:
    found = [Example("a", "drum", 0.2, None), Example("b", "crate", 0.5, None), Example("c", "drum", 0.9, None)]
    assert hint(found, "what is this") == "Similar known objects: drum, crate. what is this"
    assert hint([], "what is this") == "what is this"
    with pytest.raises(BadInput, match="no picture"):
        conversation(found, Image.new("RGB", (8, 8)), "what is this")


def test_no_examples_are_refused(memory: ExemplarMemory) -> None:
    with pytest.raises(BadInput, match="n lies outside"):
        pick(memory, Image.new("RGB", (8, 8)), 0)
