"""Zero-shot detectors on tiny random checkpoints of each supported architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.detections import Detections, pairwise_iou
from foveal.errors import BadInput, UnknownName
from foveal.models import OpenDetector, load_open_detector
from foveal.open_detectors import GroundingDetector, OwlDetector
from tests.tiny import tiny_owl, tiny_tokenizer

PROMPTS = ("a red crate", "a blue barrel", "a drum")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Wide, tall and square."""
    rng = np.random.default_rng(0)
    sizes = ((96, 48), (50, 90), (64, 64))
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


@pytest.fixture(scope="module")
def owl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_owl(tmp_path_factory.mktemp("owl"))


@pytest.fixture(scope="module")
def owl(owl_folder: Path) -> OwlDetector:
    loaded: Any = load_open_detector(f"hf:{owl_folder}")
    return loaded


def tiny_grounding(folder: Path, mm: bool) -> Path:
    """A random Grounding DINO or MM-Grounding-DINO folder with a word-level tokenizer."""
    import transformers as t

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "a", "red", "crate", "blue", "barrel", "drum", "##s"]
    tokenizer = t.BertTokenizer(vocab={word: i for i, word in enumerate(words)}, do_lower_case=True)
    tokenizer.model_max_length = 512
    backbone = t.SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )
    text = t.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    layers = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 10, "max_text_len": 24}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    config_class: Any = t.MMGroundingDinoConfig if mm else t.GroundingDinoConfig
    model_class: Any = t.MMGroundingDinoForObjectDetection if mm else t.GroundingDinoForObjectDetection
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config_class(backbone_config=backbone, text_config=text, **layers, **heads))
    model.save_pretrained(folder)
    sizes = {"shortest_edge": 64, "longest_edge": 96}
    t.GroundingDinoProcessor(t.GroundingDinoImageProcessor(size=sizes), tokenizer).save_pretrained(folder)
    return folder


def tiny_omdet(folder: Path) -> Path:
    """A random OmDet-Turbo folder."""
    import transformers as t

    vocabulary = tiny_tokenizer(folder)
    backbone = t.SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_indices=[2, 3, 4],
    )
    text = t.CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=16,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
    )
    config = t.OmDetTurboConfig(
        backbone_config=backbone,
        text_config=text,
        image_size=64,
        text_projection_in_dim=16,
        text_projection_out_dim=16,
        class_embed_dim=16,
        encoder_hidden_dim=32,
        decoder_hidden_dim=32,
        vision_features_channels=[32, 32, 32],
        encoder_in_channels=[16, 32, 64],
        encoder_dim_feedforward=32,
        decoder_dim_feedforward=32,
        decoder_num_layers=1,
        task_encoder_hidden_dim=16,
        num_queries=10,
        apply_layernorm_after_vision_backbone=False,  # of a timm backbone, whose maps are channels last
        decoder_num_heads=2,
        encoder_attention_heads=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = t.OmDetTurboForObjectDetection(config)
    model.save_pretrained(folder)
    pixels = t.DetrImageProcessor(size={"height": 64, "width": 64}, do_pad=False)
    t.OmDetTurboProcessor(pixels, t.CLIPTokenizer.from_pretrained(folder)).save_pretrained(folder)
    return folder


def check(found: list[Detections], images: list[Image.Image], prompts: tuple[str, ...], threshold: float) -> None:
    assert len(found) == len(images)
    for detections, image in zip(found, images, strict=True):
        assert len(detections)
        assert detections.names == prompts
        assert (detections.scores > threshold).all()
        assert (np.diff(detections.scores) <= 0).all()
        assert (detections.boxes >= 0).all()
        assert (detections.boxes <= np.array([*image.size, *image.size])).all()
        assert (detections.boxes[:, 2:] > detections.boxes[:, :2]).all()
        overlap = pairwise_iou(detections.boxes, detections.boxes)
        rivals = (detections.labels[:, None] == detections.labels[None]) & ~np.eye(len(detections), dtype=bool)
        assert (overlap[rivals] <= 0.5).all()


def test_owl_follows_the_protocol(owl: OwlDetector, images: list[Image.Image]) -> None:
    assert isinstance(owl, OpenDetector)
    check(owl.detect(images, PROMPTS, threshold=0.0), images, PROMPTS, 0.0)
    assert all(not len(found) for found in owl.detect(images, PROMPTS, threshold=1.0))
    assert owl.detect([], PROMPTS) == []


def test_owl_against_transformers_on_images_that_are_not_square(
    owl: OwlDetector, owl_folder: Path, images: list[Image.Image]
) -> None:
    from transformers import AutoProcessor, Owlv2ForObjectDetection

    model: Any = Owlv2ForObjectDetection.from_pretrained(owl_folder)
    processor: Any = AutoProcessor.from_pretrained(owl_folder)
    for image in images:
        inputs = processor(text=[list(PROMPTS)], images=image, return_tensors="pt")
        with torch.no_grad():
            output = model(**inputs)
        (expected,) = processor.post_process_grounded_object_detection(
            output, threshold=0.0, target_sizes=[image.size[::-1]]
        )
        (ours,) = owl.propose([image], PROMPTS, 0.0)
        np.testing.assert_allclose(ours[0], expected["boxes"], atol=1e-3)
        np.testing.assert_allclose(ours[1], expected["scores"], atol=1e-5)
        np.testing.assert_array_equal(ours[2], expected["labels"])


def test_owl_boxes_stay_where_they_are_when_only_padding_is_added(owl: OwlDetector) -> None:
    """OWLv2 sees a wide image and the same one padded to a square by hand as one and the same."""
    rng = np.random.default_rng(1)
    square = np.full((80, 80, 3), 0, dtype=np.uint8)
    square[:40] = rng.integers(0, 256, (40, 80, 3), dtype=np.uint8)
    (wide,) = owl.propose([Image.fromarray(square[:40])], PROMPTS, 0.0)
    (padded,) = owl.propose([Image.fromarray(square)], PROMPTS, 0.0)
    np.testing.assert_allclose(wide[0], padded[0], atol=1e-3)
    (found,) = owl.detect([Image.fromarray(square[:40])], PROMPTS, threshold=0.0)
    assert found.boxes[:, 3].max() <= 40


def test_prompts_are_embedded_once(
    owl: OwlDetector, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ("a lamp", "a shelf")
    first = owl.detect(images, prompts, threshold=0.0)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the text tower ran again")

    monkeypatch.setattr(owl._trunk, "get_text_features", refuse)  # pyright: ignore
    for again, before in zip(owl.detect(images, prompts, threshold=0.0), first, strict=True):
        np.testing.assert_array_equal(again.boxes, before.boxes)
        np.testing.assert_array_equal(again.scores, before.scores)
    with pytest.raises(AssertionError, match="ran again"):
        owl.detect(images, ("a box",))


def test_what_one_image_gives_does_not_depend_on_the_batch(owl: OwlDetector, images: list[Image.Image]) -> None:
    together = owl.detect(images, PROMPTS, threshold=0.0)
    for image, expected in zip(images, together, strict=True):
        (alone,) = owl.detect([image], PROMPTS, threshold=0.0)
        np.testing.assert_allclose(alone.boxes, expected.boxes, atol=1e-3)


@pytest.mark.parametrize("mm", [False, True], ids=["grounding-dino", "mm-grounding-dino"])
def test_grounding_dino(tmp_path: Path, images: list[Image.Image], mm: bool) -> None:
    detector = load_open_detector(f"hf:{tiny_grounding(tmp_path, mm)}")
    assert isinstance(detector, GroundingDetector)
    check(detector.detect(images, PROMPTS, threshold=0.0), images, PROMPTS, 0.0)
    # More prompts than the text encoder holds are asked in several captions.
    many = tuple(f"a {colour} {thing}{'s' * n}" for colour in ("red", "blue") for thing in ("crate",) for n in range(4))
    captions = list(detector.captions(many))
    assert len(captions) > 1
    assert [first for first, _, _ in captions] == sorted({first for first, _, _ in captions})
    for first, caption, spans in captions:
        assert [caption[a:b] for a, b in spans] == list(many[first : first + len(spans)])
    check(detector.detect(images[:1], many, threshold=0.0), images[:1], many, 0.0)


def test_grounding_scores_are_means_over_the_prompts_own_tokens(tmp_path: Path, images: list[Image.Image]) -> None:
    detector: Any = load_open_detector(f"hf:{tiny_grounding(tmp_path, mm=False)}")
    processor, model = detector.processor, detector.model
    inputs = processor(images=images[:1], text=[["a red crate", "a drum"]], return_tensors="pt")
    with torch.no_grad():
        tokens = model(**inputs).logits.sigmoid()[0]
    words = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert words == ["[CLS]", "a", "red", "crate", ".", "a", "drum", ".", "[SEP]"]
    expected = torch.stack([tokens[:, 1:4].mean(dim=1), tokens[:, 5:7].mean(dim=1)], dim=1)
    ((_, scores, labels),) = detector.propose(images[:1], ("a red crate", "a drum"), -1.0)
    np.testing.assert_allclose(scores, expected.max(dim=1).values, atol=1e-5)
    np.testing.assert_array_equal(labels, expected.argmax(dim=1))


def test_omdet_turbo(tmp_path: Path, images: list[Image.Image]) -> None:
    detector = load_open_detector(f"hf:{tiny_omdet(tmp_path)}")
    check(detector.detect(images, PROMPTS, threshold=0.0), images, PROMPTS, 0.0)


@pytest.mark.parametrize("prompts", [(), ("a drum", "a drum"), ("a drum", " ")])
def test_prompts_that_cannot_be_used(owl: OwlDetector, images: list[Image.Image], prompts: tuple[str, ...]) -> None:
    with pytest.raises(BadInput, match="distinct, non-empty texts"):
        owl.detect(images, prompts)


def test_folders_that_are_no_detector(tmp_path: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    with pytest.raises(BadInput, match="does not load"):
        load_open_detector(f"hf:{tmp_path}")
    tiny = CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    CLIPTextModel(tiny).save_pretrained(tmp_path)
    with pytest.raises(UnknownName, match="grounding-dino"):
        load_open_detector(f"hf:{tmp_path}")
