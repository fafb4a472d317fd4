"""Checkpoint folders without weights, of the real sizes of the models that `configs/small_data` adapts.

`python -m tests.real_sizes OUT [NAME ...]` writes them, and the peak memory that `mmdora inspect FOLDER --config CARD`
estimates for each card. The sizes are those that the models' papers and config.json state. The tokenizers are small
ones: their entries change no size, because the vocabulary is that of the model.
"""

from __future__ import annotations

import io
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mmdora.cli import main

from .families.checkpoints import RECIPES, stand_in

CARDS = Path(__file__).parents[1] / "configs" / "small_data"
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
SIGLIP = {"model_type": "siglip_vision_model", **SO400M, "patch_size": 14, "vision_use_head": False}
CLIP_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}


def words(
    width: int, inner: int, layers: int, heads: int, key_values: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_values,
        "head_dim": width // heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32768,
    } | more


QWEN2_7B = words(3584, 18944, 28, 28, 4, 152064)
QWEN3_8B = words(4096, 12288, 36, 32, 8, 151936, head_dim=128)
REAL: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen2_5_vl_7b": (
        "qwen2_5_vl",
        {
            "text_config": QWEN2_7B | {"rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24]}},
            "vision_config": {
                "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
                "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
            },
        },
        {"image_processor": transformers.Qwen2VLImageProcessor()},
    ),
    "qwen3_vl_8b": (
        "qwen3_vl",
        {
            "text_config": QWEN3_8B | {"rope_parameters": {"rope_type": "default", "mrope_section": [24, 20, 20]}},
            "vision_config": {
                "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096,
                "patch_size": 16, "deepstack_visual_indexes": [8, 16, 24], "num_position_embeddings": 2304,
            },
        },
        {"image_processor": transformers.Qwen2VLImageProcessor(patch_size=16)},
    ),
    "internvl3_5_8b": (
        "internvl",
        {
            "text_config": QWEN3_8B | {"model_type": "qwen3"},
            "vision_config": {**CLIP_L, "image_size": [448, 448], "patch_size": [14, 14]},
            "image_seq_length": 256,
        },
        {
            "image_processor": transformers.GotOcr2ImageProcessor(
                size={"height": 448, "width": 448}, crop_to_patches=True, max_patches=12
            ),
            "image_seq_length": 256,
        },
    ),
    "gemma3_4b": (
        "gemma3",
        {
            "text_config": words(2560, 10240, 34, 8, 4, 262208, head_dim=256),
            "vision_config": {**SIGLIP, "image_size": 896},
            "mm_tokens_per_image": 256,
        },
        {
            "image_processor": transformers.Gemma3ImageProcessor(size={"height": 896, "width": 896}),
            "image_seq_length": 256,
        },
    ),
    "smolvlm_2b": (
        "smolvlm",
        {
            "text_config": words(2048, 8192, 24, 32, 32, 49280, model_type="llama"),
            "vision_config": {**SO400M, "image_size": 384, "patch_size": 14},
            "scale_factor": 3,
        },
        {
            "image_processor": transformers.SmolVLMImageProcessor(
                size={"longest_edge": 1536}, max_image_size={"longest_edge": 384}
            ),
            "image_seq_len": 81,
        },
    ),
    "smolvlm_256m": (
        "smolvlm",
        {
            "text_config": words(576, 1536, 30, 9, 3, 49280, model_type="llama"),
            "vision_config": {
                "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
                "image_size": 512, "patch_size": 16,
            },
            "scale_factor": 4,
        },
        {
            "image_processor": transformers.SmolVLMImageProcessor(
                size={"longest_edge": 2048}, max_image_size={"longest_edge": 512}
            ),
            "image_seq_len": 64,
        },
    ),
    "paligemma2_3b": (
        "paligemma2",
        {
            "text_config": words(2304, 9216, 26, 8, 4, 257216, head_dim=256, model_type="gemma2"),
            "vision_config": {**SIGLIP, "image_size": 224, "projection_dim": 2304},
            "projection_dim": 2304,
        },
        {"image_processor": transformers.SiglipImageProcessor(size={"height": 224, "width": 224})},
    ),
    "llava_onevision_7b": (
        "llava_onevision",
        {
            "text_config": QWEN2_7B | {"model_type": "qwen2", "vocab_size": 152000},
            "vision_config": {**SIGLIP, "image_size": 384, "num_hidden_layers": 26},
            "image_grid_pinpoints": [[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)],
        },
        {
            "image_processor": transformers.LlavaOnevisionImageProcessor(),
            "num_image_tokens": 729,
        },
    ),
    "llava_1.5_7b": (
        "llava",
        {
            "text_config": words(4096, 11008, 32, 32, 32, 32064, model_type="llama"),
            "vision_config": {"model_type": "clip_vision_model", **CLIP_L, "image_size": 336, "patch_size": 14},
        },
        {"image_processor": transformers.CLIPImageProcessor(
            size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}), "patch_size": 14},
    ),
}  # fmt: skip
"""Name of a card -> its family in `tests/families`, the real sizes in its config, and settings of its processor."""


def config_of(name: str, processor: Any) -> Any:
    """The config of a model's real sizes, with the ids of a small tokenizer."""
    family, sizes, _ = REAL[name]
    recipe = RECIPES[family]
    tree = recipe.config(processor)
    for key, value in sizes.items():
        ids = {k: v for k, v in tree[key].items() if k.endswith("_token_id")} if isinstance(value, dict) else {}
        tree[key] = value | ids if isinstance(value, dict) else value
    return CONFIG_MAPPING[recipe.model or family](**tree)


def write(name: str, folder: Path) -> None:
    """Write config and processor of a model's real sizes, without weights."""
    family, _, settings = REAL[name]
    for package in RECIPES[family].needs:
        stand_in(package)
    processor = RECIPES[family].make_processor()
    config_of(name, processor).save_pretrained(folder)
    for key, value in settings.items():
        setattr(processor, key, value)
    if family.startswith("paligemma"):
        processor.image_processor.image_seq_length = processor.image_seq_length = 256
    processor.save_pretrained(folder)


def peak(folder: Path, card: Path) -> str:
    """What `mmdora inspect` says of the memory at the peak."""
    said = io.StringIO()
    with redirect_stdout(said):
        if main(["inspect", str(folder), "--config", str(card)]):
            raise SystemExit(said.getvalue())
    title = re.search(r"MiB: (\d+ rows? of [\d,]+ tokens)", said.getvalue())
    mebibytes = re.findall(r"^sum +([\d,.]+)", said.getvalue(), re.MULTILINE)[-1]
    assert title is not None
    return f"{float(mebibytes.replace(',', '')) / 1024:.1f} GiB ({title[1]})"


if __name__ == "__main__":
    out, *names = sys.argv[1:]
    for name in names or REAL:
        write(name, Path(out) / name)
        for card in sorted(CARDS.glob(f"{name}_*.yaml")):
            print(card.name, peak(Path(out) / name, card), flush=True)
