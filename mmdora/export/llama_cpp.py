"""Writes shell commands that convert an exported checkpoint for llama.cpp."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from mmdora.errors import MmdoraError

# Architectures whose text part and image part llama.cpp's convert_hf_to_gguf.py both registers
# (TEXT_MODEL_MAP and MMPROJ_MODEL_MAP of its conversion/__init__.py). Its LLaVA image part takes Pixtral towers
# only; a CLIP tower goes through tools/mtmd/legacy-models/convert_image_encoder_to_gguf.py.
_CONVERTED = (
    *("Gemma3", "Gemma3n", "Gemma4", "Glm4v", "Glm4vMoe", "GlmOcr", "HunYuanVL", "Janus", "Llama4", "Mistral3"),
    *("Qwen2VL", "Qwen2_5_VL", "Qwen3VL", "Qwen3VLMoe", "Qwen3_5", "Qwen3_5Moe"),
)
_TEXT = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3", "Phi3", "Olmo2", "SmolLM3", "GPT2")
"""Language models that the same converter registers, by the first part of `…ForCausalLM` or `GPT2LMHeadModel`."""
_LANGUAGE = """\
# in a checkout of llama.cpp
python convert_hf_to_gguf.py {folder} --outfile {folder}/model.gguf"""
_WHOLE = """\
# in a checkout of llama.cpp
python convert_hf_to_gguf.py {folder} --outfile {folder}/model.gguf
python convert_hf_to_gguf.py {folder} --outfile {folder}/mmproj.gguf --mmproj"""
_CLIP_LLAVA = """\
# in a checkout of llama.cpp; convert_hf_to_gguf.py writes the language model only
python convert_hf_to_gguf.py {folder} --outfile {folder}/model.gguf
# the CLIP tower and the projector, split off for the older converter of image encoders
python - {folder} <<'END'
import json, sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
folder = Path(sys.argv[1])
vision = folder / "vision"
vision.mkdir(exist_ok=True)
tensors = {{k: v.float() for f in folder.glob("*.safetensors") for k, v in load_file(f).items()
           if k.startswith(("vision_tower.", "multi_modal_projector."))}}
tower = {{k.removeprefix("vision_tower."): v for k, v in tensors.items() if k.startswith("vision_tower.")}}
save_file(tower, vision / "model.safetensors", {{"format": "pt"}})
torch.save({{k: v for k, v in tensors.items() if k.startswith("multi_modal")}}, vision / "llava.projector")
config = json.loads((folder / "config.json").read_text())
(vision / "config.json").write_text(json.dumps(
    config["vision_config"] | {{"vision_feature_layer": config["vision_feature_layer"]}}))
END
# this converter needs the module names of transformers 4
pip install "transformers<5"
python tools/mtmd/legacy-models/convert_image_encoder_to_gguf.py -m {folder}/vision --clip-model-is-vision \\
    --llava-projector {folder}/vision/llava.projector --output-dir {folder} {pixels}"""


def llama_cpp_commands(folder: Path | str) -> str:
    """Shell commands that turn an exported checkpoint into GGUF files for llama.cpp.

    Returns:
        The commands, or one comment line which says that the converter does not know this architecture.

    Raises:
        MmdoraError: if `folder` is no checkpoint.
    """
    folder = Path(folder).resolve()
    config = _json_or_none(folder / "config.json")
    if config is None:
        raise MmdoraError(f"{folder}: no readable config.json; give the folder of an exported checkpoint")
    architecture = (config.get("architectures") or ["an unnamed architecture"])[0]
    tower = config.get("vision_config", {}).get("model_type")
    text = config.get("text_config", {}).get("model_type")
    quoted = shlex.quote(str(folder))
    family = architecture.removesuffix("ForConditionalGeneration")
    if architecture.removesuffix("ForCausalLM").removesuffix("LMHeadModel") in _TEXT:
        return _LANGUAGE.format(folder=quoted)
    if family in _CONVERTED or (family == "Llava" and tower == "pixtral"):
        return _WHOLE.format(folder=quoted)
    if family == "Llava" and tower == "clip_vision_model" and text in ("llama", "mistral"):
        return _CLIP_LLAVA.format(folder=quoted, pixels=_pixel_options(folder))
    parts = f"{architecture} ({text} language model, {tower} tower)" if tower else architecture
    return f"# llama.cpp's convert_hf_to_gguf.py has no path for {parts}"


def _pixel_options(folder: Path) -> str:
    """The means and deviations that pixels are normalised by, as options of the converter."""
    processor = (
        _json_or_none(folder / "preprocessor_config.json") or _json_or_none(folder / "processor_config.json") or {}
    )
    processor = processor.get("image_processor", processor)
    keys = [key for key in ("image_mean", "image_std") if key in processor]
    return " ".join(f"--{key.replace('_', '-')} {' '.join(map(str, processor[key]))}" for key in keys)


def _json_or_none(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
