"""A base whose processor and model disagree about pictures or tokens is refused before any weight is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processors
import pytest
import torch
from families.test_inputs import MAKERS, processor_of
from shrunken import CONFIGS
from transformers import AutoModelForImageTextToText, AutoProcessor, Florence2Config
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import mmdora
from mmdora.cli import main
from mmdora.errors import MmdoraError
from mmdora.models.agreement import check_agreement

MAKERS = {**MAKERS, "paligemma": processors.paligemma, "glm4v": processors.glm}
CLIP = {"patch_size": 14}
GRID = {"hidden_size": 16, "num_heads": 2, "in_channels": 3, "depth": 1}
FIT: dict[str, dict[str, Any]] = {
    "llava": {"vision": {"image_size": 64, "patch_size": 8}},
    "llava_next": {
        "vision": {"image_size": 336, **CLIP},
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    },
    "llava_onevision": {
        "vision": {"image_size": 56, **CLIP},
        "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]],
        "vision_feature_select_strategy": "full",
    },
    "paligemma": {"vision": {"image_size": 56, **CLIP}},
    "gemma3": {"vision": {"image_size": 56, **CLIP}},
    "idefics3": {"vision": {"image_size": 364, "patch_size": 22}, "scale_factor": 2},
    "internvl": {"vision": {"image_size": [56, 56], "patch_size": [7, 7]}},
    "mistral3": {"vision": {"image_size": 1540, "patch_size": 16}, "spatial_merge_size": 1},
    "glm4v": {
        "vision": {**GRID, "out_hidden_size": 24, "intermediate_size": 32, "image_size": 336, "patch_size": 14},
        "text_config": {**CONFIGS["qwen2_vl"]["text_config"]},
    },
}
"""Model type -> settings with which its shrunken config fits the processor of the tests."""


def pair(kind: str) -> tuple[Any, dict[str, Any]]:
    """A processor, and a config that fits it."""
    if kind in ("paligemma", "glm4v"):
        processor = MAKERS[kind]()
        processor.chat_template = processors.TEMPLATE.replace("IMAGE", processor.image_token)
    else:
        processor = processor_of(kind)
    fit = dict(FIT.get(kind, {}))
    stock = CONFIGS.get(kind, {})
    vision = {**stock.get("vision_config", {}), **fit.pop("vision", {})}
    config = {**stock, "vision_config": vision, **fit}
    config["text_config"] = {**config["text_config"], "vocab_size": len(processor.tokenizer) + 9}
    soft = processor.tokenizer.convert_tokens_to_ids(
        "<image_soft_token>" if kind == "gemma3" else processor.image_token
    )
    config["image_token_id"] = config["image_token_index"] = soft
    return processor, config


def on_meta(kind: str, config: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(CONFIG_MAPPING[kind](**config))


KIND = pytest.mark.parametrize("kind", sorted(MAKERS))


@KIND
def test_a_base_that_agrees_passes(kind: str) -> None:
    processor, config = pair(kind)
    check_agreement("base", processor, on_meta(kind, config))


@KIND
def test_another_image_token_is_named(kind: str) -> None:
    processor, config = pair(kind)
    config["image_token_id"] = config["image_token_index"] = 7
    with pytest.raises(MmdoraError, match=r"config\.json has image_token_i\w+ 7 .*which its processor never writes"):
        check_agreement("base", processor, on_meta(kind, config))


@KIND
def test_a_vocabulary_that_is_too_small_is_named(kind: str) -> None:
    processor, config = pair(kind)
    config["text_config"]["vocab_size"] = 500
    with pytest.raises(MmdoraError, match=r"its tokenizer \(tokenizer\.json\) has [23],\d+ tokens, .* embeds 50\d"):
        check_agreement("base", processor, on_meta(kind, config))


CHANGES: dict[str, tuple[str, Callable[[Any, dict[str, Any]], None]]] = {
    "patch_size of the vision": (
        "llava llava_next llava_onevision paligemma idefics3 internvl mistral3 qwen2_vl qwen2_5_vl qwen3_vl glm4v",
        lambda p, c: c["vision_config"].update(patch_size=_twice(c["vision_config"])),
    ),
    "image_size of the vision": (
        "llava llava_next llava_onevision paligemma gemma3 idefics3",
        lambda p, c: c["vision_config"].update(image_size=_twice(c["vision_config"], "image_size")),
    ),
    "patch_size of the processor": ("llava llava_next mistral3", lambda p, c: setattr(p, "patch_size", 28)),
    "patch_size of the images": (
        "qwen2_vl qwen2_5_vl qwen3_vl glm4v",
        lambda p, c: setattr(p.image_processor, "patch_size", 2 * p.image_processor.patch_size),
    ),
    "merge_size of the images": (
        "qwen2_vl qwen2_5_vl qwen3_vl glm4v",
        lambda p, c: setattr(p.image_processor, "merge_size", 1),
    ),
    "spatial_merge_size of the vision": (
        "qwen2_vl qwen2_5_vl qwen3_vl glm4v",
        lambda p, c: c["vision_config"].update(spatial_merge_size=4),
    ),
    "spatial_merge_size of the model": ("mistral3", lambda p, c: c.update(spatial_merge_size=2)),
    "vision_feature_select_strategy": (
        "llava llava_next",
        lambda p, c: setattr(p, "vision_feature_select_strategy", "full"),
    ),
    "num_additional_image_tokens": ("llava llava_next", lambda p, c: setattr(p, "num_additional_image_tokens", 3)),
    "image_seq_len": ("idefics3", lambda p, c: setattr(p, "image_seq_len", 49)),
    "image_seq_length": ("internvl", lambda p, c: setattr(p, "image_seq_length", 9)),
    "full_image_sequence": (
        "gemma3",
        lambda p, c: setattr(p, "full_image_sequence", p.full_image_sequence + "<image_soft_token>"),
    ),
    "mm_tokens_per_image": ("gemma3", lambda p, c: c.update(mm_tokens_per_image=16)),
    "scale_factor": ("idefics3", lambda p, c: c.update(scale_factor=4)),
    "downsample_ratio": ("internvl", lambda p, c: c.update(downsample_ratio=1.0)),
    "image_grid_pinpoints": ("llava_next llava_onevision", lambda p, c: c.update(image_grid_pinpoints=[[224, 224]])),
    "num_image_tokens": ("llava_onevision", lambda p, c: setattr(p, "num_image_tokens", 9)),
}


def _twice(vision: dict[str, Any], key: str = "patch_size") -> Any:
    value = vision[key]
    return [2 * side for side in value] if isinstance(value, list) else 2 * value


def _cases() -> list[Any]:
    kinds = {what: of.split() for what, (of, _) in CHANGES.items()}
    return [pytest.param(kind, what, id=f"{kind}-{what}") for what, of in kinds.items() for kind in of]


@pytest.mark.parametrize(("kind", "what"), _cases())
def test_what_was_changed_is_named(kind: str, what: str) -> None:
    processor, config = pair(kind)
    CHANGES[what][1](processor, config)
    said = r"writes \d+ tokens for a picture of 448x336, but its model makes (nothing|\d+)"
    with pytest.raises(MmdoraError, match=said) as told:
        check_agreement("base", processor, on_meta(kind, config))
    assert "processor_config.json" in str(told.value) and "config.json has" in str(told.value)
    assert "\n" not in str(told.value)


@pytest.fixture
def changed(tiny_llava: str, tmp_path: Path) -> Path:
    """A copy of tiny-llava whose model makes one feature more for each picture."""
    shutil.copytree(tiny_llava, tmp_path / "base")
    path = tmp_path / "base/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"vision_feature_select_strategy": "full"}))
    return tmp_path / "base"


def test_load_refuses_it(changed: Path) -> None:
    with pytest.raises(MmdoraError, match=r"its processor writes 64 tokens .* but its model makes 65 features"):
        mmdora.load(changed)


INSPECT = ["inspect"]


@pytest.mark.parametrize("option", [[], ["--dry-run"], INSPECT], ids=["train", "dry-run", "inspect"])
def test_training_refuses_it_before_a_weight_is_read(
    option: list[str], changed: Path, scene_records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (changed / "model.safetensors").unlink()
    (tmp_path / "c.yaml").write_text(
        f"model: {{base: {changed}}}\nadapt: {{projector: {{method: lora, rank: 2}}}}\n"
        f"data: {{train: {scene_records}, images: {scene_records.parent}}}\n"
        f"training: {{output: {tmp_path / 'run'}, steps: 1}}\n"
    )
    command = ["inspect", str(changed), "--config"] if option == INSPECT else ["train"]
    assert main([*command, str(tmp_path / "c.yaml"), *(option if option != INSPECT else [])]) == 2
    assert "its model makes 65 features" in capsys.readouterr().err


def test_an_encoder_decoder_is_not_taught_its_answers_in_the_question(tiny_llava):
    processor = AutoProcessor.from_pretrained(tiny_llava)
    config = Florence2Config(vision_config={"depths": [1, 1, 1, 1]}, text_config={"model_type": "bart"})
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    with pytest.raises(MmdoraError, match="Florence2ForConditionalGeneration reads a question in an encoder"):
        check_agreement("florence2", processor, model)
    processor.chat_template = None
    check_agreement("florence2", processor, model)
