from pathlib import Path

import pytest

from foveal.errors import BadInput, FovealError, UnknownName
from foveal.models import BUNDLED, ModelRef, load_detector, load_encoder, load_open_detector, parse_ref


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", ModelRef("open_clip", "ViT-B-32/laion2b_s34b_b79k")),
        ("hf:google/siglip2-base-patch16-224", ModelRef("hf", "google/siglip2-base-patch16-224")),
        ("artifact:name@production", ModelRef("artifact", "name@production")),
    ],
)
def test_references_parse_and_print_back(text: str, expected: ModelRef) -> None:
    assert parse_ref(text) == expected
    assert parse_ref(str(expected)) == expected


@pytest.mark.parametrize("name", sorted(BUNDLED))
def test_bundled_names_become_folders(name: str) -> None:
    if BUNDLED[name].folder is None:
        pytest.skip(f"{name} is not trained yet")
    ref = parse_ref(f"bundled:{name}")
    assert ref == BUNDLED[name]
    assert Path(ref.target).parts[-3:] == ("foveal", "backbones", name)


def test_adapters_and_folders(tmp_path: Path) -> None:
    ref = parse_ref(f"hf:{tmp_path}+{tmp_path}")
    assert (ref.folder, ref.adapter) == (tmp_path, tmp_path)
    assert str(ref) == f"hf:{tmp_path}+{tmp_path}"
    assert parse_ref("hf:google/owlv2").folder is None


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("ViT-B-32", BadInput, "is not a model reference; expected open_clip:MODEL"),
        ("hf:", BadInput, "is not a model reference"),
        ("timm:resnet50", UnknownName, "no model scheme 'timm'; expected one of artifact, bundled"),
        ("bundled:dino", UnknownName, "no bundled backbone 'dino'; expected one of clip, owl"),
        ("hf:./nowhere", BadInput, "model folder ./nowhere does not exist"),
        ("hf:google/x+nowhere", BadInput, "adapter folder nowhere does not exist"),
    ],
)
def test_wrong_references_say_what_to_type(text: str, error: type[FovealError], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_ref(text)


def test_a_reference_that_cannot_play_the_part(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="encoder loader for scheme 'onnx'"):
        load_encoder(f"onnx:{tmp_path}")
    with pytest.raises(UnknownName, match="open-vocabulary detector loader"):
        load_open_detector("open_clip:ViT-B-32/x")
    with pytest.raises(BadInput, match="needs a registry"):
        load_detector("artifact:det@production")
    with pytest.raises(UnknownName, match="no model in registry"):
        load_detector("artifact:det@production", registry=tmp_path)
