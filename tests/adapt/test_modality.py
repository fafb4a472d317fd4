"""The parts of each architecture, exactly."""

import copy
from typing import Any

import pytest
import torch
from shrunken import CONFIGS, shrunken
from torch import nn
from transformers import AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mmdora.adapt.inject import inject
from mmdora.adapt.modality import ModelParts, find_parts
from mmdora.errors import MmdoraError

TOWER, PROJECTOR, TEXT = "model.vision_tower", "model.multi_modal_projector", ("model.language_model", "lm_head")
USUAL = ModelParts((TOWER,), (PROJECTOR,), TEXT)
WITH_NEWLINE = ModelParts((TOWER,), (PROJECTOR, "model.image_newline"), TEXT)
QWEN = ModelParts(("model.visual",), ("model.visual.merger",), TEXT)
IDEFICS = ModelParts(("model.vision_model",), ("model.connector",), ("model.text_model", "lm_head"))

EXPECTED = {
    "llava": USUAL,
    "llava_next": WITH_NEWLINE,
    "llava_onevision": WITH_NEWLINE,
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "qwen3_vl": ModelParts(("model.visual",), ("model.visual.merger", "model.visual.deepstack_merger_list"), TEXT),
    "paligemma": USUAL,
    "gemma3": USUAL,
    "idefics3": IDEFICS,
    "smolvlm": IDEFICS,
    "internvl": USUAL,
    "blip-2": ModelParts(("vision_model",), ("qformer", "language_projection", "query_tokens"), ("language_model",)),
    "mistral3": USUAL,
    "mllama": ModelParts(("model.vision_model",), (PROJECTOR,), TEXT, ("model.language_model.layers.1",)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_parts(name):
    model = shrunken(name)
    parts = find_parts(model)
    assert parts == EXPECTED[name]
    assert find_parts(copy.deepcopy(model)) == parts
    inject(model, {"language": {"method": "lora"}, "projector": {"method": "full"}})
    assert find_parts(model) == parts


def test_equal_widths_keep_the_merger_apart():
    wide = {**CONFIGS["qwen2_5_vl"]["vision_config"], "hidden_size": 24}
    assert find_parts(shrunken("qwen2_5_vl", vision_config=wide)) == QWEN


def test_names_belong_to_the_longest_prefix():
    parts = EXPECTED["qwen2_5_vl"]
    assert parts.of("model.visual.merger.mlp.0.weight") == "projector"
    assert parts.of("model.visual.blocks.0.attn.qkv") == "vision"
    assert parts.of("model.visual_other") is None
    assert EXPECTED["mllama"].of("model.language_model.layers.1.cross_attn.q_proj") is None


def test_no_parts_is_an_error_with_the_tree_and_the_way_out():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.eye = nn.Linear(2, 2)

    with pytest.raises(MmdoraError, match=r"adapt\.parts.*eye \(Linear\)"):
        find_parts(Odd())
    given = find_parts(Odd(), {"vision": ("eye",)})
    assert given == ModelParts(vision=("eye",))
    with pytest.raises(MmdoraError, match=r"adapt\.parts\.vision.*'nose'"):
        find_parts(Odd(), {"vision": ("nose",)})


def built(name: str, **sizes: Any) -> Any:
    """An architecture without memory, with its own sizes."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(CONFIG_MAPPING[name](**sizes))


ODD = {
    "fuyu": ModelParts((), ("model.vision_embed_tokens",), TEXT),
    "git": ModelParts(("git.image_encoder",), ("git.visual_projection",), ("git", "output")),
    "llama4": ModelParts(
        ("vision_model",), ("vision_model.vision_adapter", "multi_modal_projector"), ("language_model",)
    ),
    "vision-encoder-decoder": ModelParts(("encoder",), (), ("decoder",)),
    "deepseek_vl_hybrid": ModelParts(
        ("model.high_res_vision_model", "model.vision_model"),
        (
            "model.high_res_vision_neck",
            "model.high_res_vision_proj",
            "model.aligner",
            "model.high_res_vision_alpha",
        ),
        TEXT,
    ),
}


ODD_SIZES = {
    "llama4": {"text_config": {"model_type": "llama4_text", "num_hidden_layers": 2}},
    "vision-encoder-decoder": {"encoder": {"model_type": "vit"}, "decoder": {"model_type": "trocr", "d_model": 768}},
}


@pytest.mark.parametrize("name", ODD)
def test_parts_of_models_that_the_rule_does_not_fit(name):
    assert find_parts(built(name, **ODD_SIZES.get(name, {}))) == ODD[name]
