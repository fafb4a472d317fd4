"""Checkpoints have the hub's key names, whatever the model was built or loaded from."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PixtralVisionConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    SiglipVisionConfig,
)

from mmdora.errors import MmdoraError
from mmdora.export.layout import hub_naming, hub_state, save_checkpoint
from mmdora.export.llama_cpp import llama_cpp_commands

LAYOUTS = Path(__file__).parent / "layouts"
Sizes = dict[str, Any]
VISION: Sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": 16, "patch_size": 8}
TEXT: Sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
TEXT |= {"num_key_value_heads": 2, "vocab_size": 40}


def llava(
    *, tied: bool = False, tower: Any = None, kind: Any = LlavaForConditionalGeneration, config: Any = LlavaConfig
):
    torch.manual_seed(0)
    return kind(
        config(
            vision_config=(tower or CLIPVisionConfig)(**VISION),
            text_config=LlamaConfig(**TEXT, tie_word_embeddings=tied),
            image_token_index=39,
            tie_word_embeddings=tied,
        )
    ).eval()


def qwen(*, tied=False):
    torch.manual_seed(0)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    text = TEXT | {"rope_parameters": rope, "tie_word_embeddings": tied, "bos_token_id": 1, "eos_token_id": 2}
    vision = {"hidden_size": 16, "intermediate_size": 24, "depth": 2, "num_heads": 2, "out_hidden_size": 16}
    config = Qwen2_5_VLConfig(
        vision_config=vision | {"patch_size": 4, "fullatt_block_indexes": [1]},
        text_config=text,
        tie_word_embeddings=tied,
        image_token_id=38,
        video_token_id=37,
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def keys(folder):
    found = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= set(file.keys())
    return found


def expected(name, language, vision):
    """The committed list, its N replaced by the layer numbers of a shrunken model."""
    lines = [line for line in (LAYOUTS / f"{name}.txt").read_text().splitlines() if line and line[0] != "#"]
    counts = [(line, vision if line.startswith("vis") else language) for line in lines]
    return {line.replace(".N.", f".{i}.") for line, count in counts for i in range(count)}


def same_weights(a, b):
    mine, other = dict(a.named_parameters()), dict(b.named_parameters())
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) and mine[name].dtype == other[name].dtype for name in mine)


def reload(folder):
    opened: Any = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    model, info = opened
    assert not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])
    return model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("build", "layout", "head"),
    [(llava, "llava-1.5", "language_model.lm_head.weight"), (qwen, "qwen2.5-vl", "lm_head.weight")],
)
def test_keys_are_the_hubs_and_every_parameter_comes_back(tmp_path, build, layout, head, tied):
    model = build(tied=tied)
    save_checkpoint(model, tmp_path)
    assert keys(tmp_path) == hub_state(model).keys() == expected(layout, 3, 2) - ({head} if tied else set())
    loaded = reload(tmp_path)
    same_weights(model, loaded)
    shared = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert shared == tied


@pytest.mark.parametrize(("layout", "tensors", "layers"), [("llava-1.5", 686, (32, 24)), ("qwen2.5-vl", 729, (28, 32))])
def test_committed_lists_have_the_size_of_the_published_index(layout, tensors, layers):
    assert len(expected(layout, *layers)) == tensors


@pytest.mark.parametrize("build", [llava, qwen])
def test_a_base_saved_in_the_layout_of_the_tree_is_exported_in_the_hubs(tmp_path, build):
    """transformers would write what it loaded; engines do not know these names."""
    model = build()
    model.save_pretrained(tmp_path / "tree", save_original_format=False)
    assert "model.language_model.norm.weight" in keys(tmp_path / "tree")
    save_checkpoint(reload(tmp_path / "tree"), tmp_path / "hub")
    save_checkpoint(model, tmp_path / "direct")
    assert keys(tmp_path / "hub") == keys(tmp_path / "direct")
    same_weights(model, reload(tmp_path / "hub"))


def test_written_twice_is_the_same(tmp_path):
    save_checkpoint(llava(), tmp_path / "a")
    save_checkpoint(reload(tmp_path / "a"), tmp_path / "b")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_shards_have_an_index_with_the_same_names(tmp_path):
    model = llava()
    save_checkpoint(model, tmp_path, shard="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert set(index["weight_map"]) == keys(tmp_path) == expected("llava-1.5", 3, 2)
    same_weights(model, reload(tmp_path))


def test_siglip_has_the_extra_level_and_pixtral_has_not(tmp_path):
    siglip = hub_state(llava(tower=SiglipVisionConfig))
    assert "vision_tower.vision_model.encoder.layers.0.layer_norm1.weight" in siglip
    model = llava(tower=PixtralVisionConfig)
    assert "vision_tower.patch_conv.weight" in hub_state(model)
    save_checkpoint(model, tmp_path)
    same_weights(model, reload(tmp_path))


def test_llava_next_keeps_its_newline(tmp_path):
    model = llava(kind=LlavaNextForConditionalGeneration, config=LlavaNextConfig)
    save_checkpoint(model, tmp_path)
    assert keys(tmp_path) == expected("llava-1.5", 3, 2) | {"image_newline"}
    same_weights(model, reload(tmp_path))


def test_a_name_that_the_table_does_not_cover_is_an_error():
    hub_name = hub_naming(qwen())
    assert hub_name is not None
    with pytest.raises(MmdoraError, match=r"model\.audio_tower\.conv\.weight"):
        hub_name("model.audio_tower.conv.weight")


def test_an_architecture_without_a_table_keeps_its_names():
    model: Any = torch.nn.Linear(1, 1)
    assert hub_naming(model) is None
    with pytest.raises(MmdoraError, match="Linear: the hub's names of its tensors are not known"):
        hub_state(model)


def test_llama_cpp_qwen(tmp_path):
    save_checkpoint(qwen(), tmp_path)
    lines = [line for line in llama_cpp_commands(tmp_path).splitlines() if not line.startswith("#")]
    assert lines == [
        f"python convert_hf_to_gguf.py {tmp_path} --outfile {tmp_path}/model.gguf",
        f"python convert_hf_to_gguf.py {tmp_path} --outfile {tmp_path}/mmproj.gguf --mmproj",
    ]


def test_llama_cpp_splits_a_clip_llava(tmp_path):
    """The inline script of the printed commands is run; the converters themselves are not here."""
    folder = tmp_path / "with space"
    save_checkpoint(llava(), folder)
    (folder / "processor_config.json").write_text('{"image_processor": {"image_mean": [0.5, 0.5, 0.25]}}')
    text = llama_cpp_commands(folder)
    assert "--image-mean 0.5 0.5 0.25" in text and "convert_image_encoder_to_gguf.py" in text
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    script = re.search(r"^python - .*?^END$", text, re.S | re.M)
    assert script
    python = script.group(0).replace("python", f"'{sys.executable}'", 1)
    subprocess.run([bash, "-ec", python], check=True, timeout=120)
    assert {key.split(".")[0] for key in keys(folder / "vision")} == {"vision_model"}
    projector = torch.load(folder / "vision/llava.projector")
    assert set(projector) == {f"multi_modal_projector.linear_{i}.{part}" for i in (1, 2) for part in ("weight", "bias")}
    assert json.loads((folder / "vision/config.json").read_text())["vision_feature_layer"] == -2


def test_llama_cpp_has_no_path_for_others(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["AriaForConditionalGeneration"]}')
    assert llama_cpp_commands(tmp_path) == (
        "# llama.cpp's convert_hf_to_gguf.py has no path for AriaForConditionalGeneration"
    )
    with pytest.raises(MmdoraError, match=r"no readable config\.json"):
        llama_cpp_commands(tmp_path / "nothing")
