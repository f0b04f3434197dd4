"""Tiny random image-text-to-text models, one of each family's own architecture, with a byte-level tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

SIDE = 32
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,  # wide enough that a frozen output layer can tell its tokens apart
}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
# The shapes of the published templates, down to what decides where an answer begins and ends.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IDEFICS = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}{% if m['content'][0]['type'] == 'image' %}:"
    "{% else %}: {% endif %}{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% else %}<image>"
    "{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
LLAVA = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for c in m['content'] if c['type'] == 'image' %}<image>\n"
    "{% endfor %}{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def byte_tokenizer(special: Sequence[str], eos: str, bos: str | None = None, **named: str) -> Any:
    """A tokenizer of single bytes and the special tokens; `named` ones are its attributes, as families look them up."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token=eos,
        bos_token=bos,
        extra_special_tokens=named,
        model_max_length=1024,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [*special]})
    return tokenizer


def _smolvlm(folder: Path, kind: str = "smolvlm") -> tuple[Any, Any]:
    import transformers as t

    rows = [f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)]
    special = ["<image>", "<fake_token_around_image>", "<global-img>", "<|im_start|>", *rows]
    tokenizer = byte_tokenizer(special, "<end_of_utterance>", "<|im_start|>")
    options = {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}
    images = t.Idefics3ImageProcessor(**options)
    processor: Any = t.Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=IDEFICS)
    names: Any = {  # SmolVLM's own processor, the same but for video, asks for a package that spells numbers
        "smolvlm": (t.SmolVLMConfig, t.SmolVLMForConditionalGeneration),
        "idefics3": (t.Idefics3Config, t.Idefics3ForConditionalGeneration),
    }[kind]
    config = names[0](
        vision_config={**TOWER, "image_size": SIDE, "patch_size": 8},
        text_config={"model_type": "llama", **LLAMA, "vocab_size": len(tokenizer), **_ids(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    return names[1](config), processor


def _idefics3(folder: Path) -> tuple[Any, Any]:
    return _smolvlm(folder, "idefics3")


def _qwen(folder: Path, kind: str = "qwen2_5_vl") -> tuple[Any, Any]:
    import transformers as t

    special = ["<|im_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    tokenizer = byte_tokenizer(special, "<|im_end|>")
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in _QWEN_IDS.items()}
    patch = 14 if kind == "qwen2_5_vl" else 16
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    text: dict[str, Any] = {**LLAMA, "vocab_size": len(tokenizer), "rope_parameters": rope, **_ids(tokenizer)}
    vision: dict[str, Any] = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
    vision |= {"patch_size": patch, "out_hidden_size": 32}
    size = {"shortest_edge": 4 * patch**2, "longest_edge": 64 * patch**2}
    images: Any = t.Qwen2VLImageProcessor(patch_size=patch, size=size)
    template = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    if kind == "qwen2_5_vl":
        text.pop("head_dim")
        vision |= {"window_size": 56, "fullatt_block_indexes": [1]}
        config: Any = t.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
        processor: Any = t.Qwen2_5_VLProcessor(
            images, tokenizer, t.Qwen2VLVideoProcessor(patch_size=patch), chat_template=template
        )
        return t.Qwen2_5_VLForConditionalGeneration(config), processor
    vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    config = t.Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
    processor = t.Qwen3VLProcessor(images, tokenizer, t.Qwen3VLVideoProcessor(patch_size=patch), chat_template=template)
    return t.Qwen3VLForConditionalGeneration(config), processor


_QWEN_IDS = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}


def _qwen3(folder: Path) -> tuple[Any, Any]:
    return _qwen(folder, "qwen3_vl")


def _paligemma(folder: Path) -> tuple[Any, Any]:
    import transformers as t

    tokenizer = byte_tokenizer(["<image>"], "<eos>", "<bos>")
    images = t.SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    images.image_seq_length = 16
    processor: Any = t.PaliGemmaProcessor(images, tokenizer)
    text = {"model_type": "gemma2", **LLAMA, "vocab_size": len(tokenizer), "sliding_window": 256, **_ids(tokenizer)}
    config = t.PaliGemmaConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            **TOWER,
            "image_size": SIDE,
            "patch_size": 8,
            "vision_use_head": False,
            "projection_dim": 32,
        },
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vocab_size=len(tokenizer),
        projection_dim=32,
        hidden_size=32,
        **_ids(tokenizer),
    )
    return t.PaliGemmaForConditionalGeneration(config), processor


def _internvl(folder: Path) -> tuple[Any, Any]:
    import transformers as t

    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = byte_tokenizer(["<|im_start|>", "<ref>", "</ref>", "<box>", "</box>"], "<|im_end|>", **named)
    images = t.GotOcr2ImageProcessor(size={"height": SIDE, "width": SIDE}, max_patches=2, crop_to_patches=True)
    video = t.InternVLVideoProcessor(size={"height": SIDE, "width": SIDE})
    template = CHATML.replace("IMAGE", "<IMG_CONTEXT>\n")
    processor: Any = t.InternVLProcessor(images, tokenizer, video, image_seq_length=4, chat_template=template)
    config = t.InternVLConfig(
        vision_config={**TOWER, "image_size": [SIDE, SIDE], "patch_size": [8, 8]},
        text_config={"model_type": "qwen2", **LLAMA, "vocab_size": len(tokenizer), **_ids(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    return t.InternVLForConditionalGeneration(config), processor


def _llava(folder: Path) -> tuple[Any, Any]:
    import transformers as t

    tokenizer = byte_tokenizer(["<image>"], "</s>", "<s>")
    images = t.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor: Any = t.LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA,
    )
    config = t.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **TOWER, "image_size": SIDE, "patch_size": 8},
        text_config={"model_type": "llama", **LLAMA, "vocab_size": len(tokenizer), **_ids(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    return t.LlavaForConditionalGeneration(config), processor


def _florence2(folder: Path) -> tuple[Any, Any]:
    import transformers as t

    places = [f"<loc_{i}>" for i in range(50)]
    tokenizer = byte_tokenizer(places, "</s>", "<s>", image_token="<image>")
    images = t.CLIPImageProcessor(
        size={"height": SIDE, "width": SIDE}, crop_size={"height": SIDE, "width": SIDE}, do_center_crop=False
    )
    images.image_seq_length = 5
    processor: Any = t.Florence2Processor(images, tokenizer)
    config = t.Florence2Config(
        vision_config={
            "depths": [1, 1],
            "embed_dim": [16, 32],
            "num_heads": [2, 2],
            "num_groups": [2, 2],
            "patch_size": [7, 3],
            "patch_stride": [4, 4],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "window_size": 2,
            "projection_dim": 32,
            "drop_path_rate": 0.0,
        },
        text_config={
            "model_type": "bart",
            "vocab_size": len(tokenizer),
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_position_embeddings": 512,
            "dropout": 0.0,
            "decoder_start_token_id": tokenizer.eos_token_id,
            "forced_bos_token_id": tokenizer.bos_token_id,
            "forced_eos_token_id": tokenizer.eos_token_id,
            **_ids(tokenizer),
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        **_ids(tokenizer),
    )
    return t.Florence2ForConditionalGeneration(config), processor


def _ids(tokenizer: Any) -> dict[str, int | None]:
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    return {name: getattr(tokenizer, name) for name in names}


FAMILIES: dict[str, Callable[[Path], tuple[Any, Any]]] = {
    "smolvlm": _smolvlm,
    "idefics3": _idefics3,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen3,
    "paligemma": _paligemma,
    "internvl": _internvl,
    "llava": _llava,
    "florence2": _florence2,
}


def tiny_vlm(folder: Path, family: str, seed: int = 0) -> Path:
    """A random checkpoint of `family` in `folder`: width 32, 2 layers a tower, 32 px tiles."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = FAMILIES[family](folder)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
