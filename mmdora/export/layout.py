"""Names of tensors in checkpoint files: the layout of the hub, which serving engines read.

transformers 5 names a module by its place in the Python tree and writes a checkpoint in the layout
it was *loaded* from; a CLIP LLaVA built from its config then lacks the `vision_tower.vision_model.`
level that vLLM, llama.cpp and mlx-vlm expect. So for the architectures in `HUB` the names are
written from this table, wherever the base came from; others keep the layout of their base.
Sources: transformers' `conversion_mapping` (read backwards), vLLM's `hf_to_vllm_mapper`; the
resulting lists are in tests/layouts.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from mmdora.errors import MmdoraError


class Rule(NamedTuple):
    """`module.` prefix in the Python tree -> prefix in the file; `towers`: only these vision model types."""

    module: str
    file: str
    towers: tuple[str, ...] = ()


_LLAVA = (
    Rule("lm_head.", "language_model.lm_head."),
    Rule("model.language_model.", "language_model.model."),
    Rule("model.multi_modal_projector.", "multi_modal_projector."),
    # CLIP and SigLIP towers have one level more in files than in the tree; other towers have not.
    Rule("model.vision_tower.", "vision_tower.vision_model.", towers=("clip_vision_model", "siglip_vision_model")),
    Rule("model.vision_tower.", "vision_tower."),
    Rule("model.image_newline", "image_newline"),
)
_QWEN = (
    Rule("lm_head.", "lm_head."),
    Rule("model.language_model.", "model."),
    Rule("model.visual.", "visual."),
)
HUB: dict[str, tuple[Rule, ...]] = {
    "LlavaForConditionalGeneration": _LLAVA,
    "LlavaNextForConditionalGeneration": _LLAVA,
    "Qwen2VLForConditionalGeneration": _QWEN,
    "Qwen2_5_VLForConditionalGeneration": _QWEN,
}


def save_checkpoint(model: PreTrainedModel, folder: Path, *, shard: str = "5GB") -> None:
    """Write config, generation config and weights (safetensors) in the hub's layout; tied tensors once."""
    config_dtype(model.config, model.dtype)
    if type(model).__name__ in HUB:
        model.save_pretrained(folder, state_dict=hub_state(model), save_original_format=False, max_shard_size=shard)
    else:
        model.save_pretrained(folder, max_shard_size=shard)


def hub_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors of `model` under the names of the hub; of tied ones only the source.

    Raises:
        MmdoraError: if the table does not cover a tensor (an adapted module, or another architecture).
    """
    rules, tower = HUB[type(model).__name__], model.config.vision_config.model_type
    tied: Mapping[str, str] = model.all_tied_weights_keys  # type: ignore[assignment] (a dict, typed as tensor)
    state = model.state_dict()
    return {
        hub_name(name, rules, tower): tensor
        for name, tensor in state.items()
        if not (name in tied and state[tied[name]].data_ptr() == tensor.data_ptr())
    }


def hub_name(name: str, rules: tuple[Rule, ...], tower: str) -> str:
    """The name in the file of the tensor called `name` in the tree; the first rule that matches."""
    for rule in rules:
        if name.startswith(rule.module) and (not rule.towers or tower in rule.towers):
            return rule.file + name.removeprefix(rule.module)
    raise MmdoraError(f"{name}: no place for it in the hub's layout; merge the adapters first")


class Places(NamedTuple):
    """How transformers reads files: which of their tensors go where in the tree of a model."""

    direct: dict[str, str]
    """Name in the files -> name in the tree, of tensors that are taken as they are."""
    converted: set[str]
    """Names in the tree of tensors that are computed from several, or from a part: fused experts, split projections."""
    ignored: list[str]
    """Names in the files that transformers passes over: relics such as position_ids, heads that it does not build."""
    unknown: list[str]
    """Names in the files that it has no place for either, and warns of."""


def places(model: PreTrainedModel, names: Iterable[str]) -> Places:
    """Where transformers' `from_pretrained` puts tensors of these names; `model` may be on the meta device."""
    state: dict[str, Tensor] = model.state_dict()
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    targets = {source: rule.target_patterns for rule in converters for source in rule.source_patterns}
    relics = [*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq", r"(^|\.)position_ids$"]
    found = Places({}, set(), [], [])
    # The steps of convert_and_load_state_dict_in_model, their order included: some renamings remember what they saw.
    for name in sorted(names, key=dot_natural_key):
        place, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if place not in state and name in state:
            place, pattern = rename_source_key(name, [], [], model.base_model_prefix, state)
        if place not in state:
            (found.ignored if any(re.search(relic, place) for relic in relics) else found.unknown).append(name)
        elif pattern is not None:
            found.converted.update(place.replace(targets[pattern][0], target) for target in targets[pattern])
        else:
            found.direct[name] = place
    return found


def config_dtype(config: Any, dtype: torch.dtype) -> None:
    """Make a config, and the configs of its parts, say this dtype; transformers changes the outermost only."""
    config.dtype = dtype
    for part in getattr(config, "sub_configs", {}):
        if (own := getattr(config, part, None)) is not None:
            config_dtype(own, dtype)


@contextmanager
def no_bars() -> Iterator[None]:
    """Without transformers' own progress bars."""
    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()


# Architectures whose text part and image part llama.cpp's convert_hf_to_gguf.py both registers
# (TEXT_MODEL_MAP and MMPROJ_MODEL_MAP of its conversion/__init__.py). Its LLaVA image part takes Pixtral towers
# only; a CLIP tower goes through tools/mtmd/legacy-models/convert_image_encoder_to_gguf.py.
_CONVERTED = (
    *("Gemma3", "Gemma3n", "Gemma4", "Glm4v", "Glm4vMoe", "GlmOcr", "HunYuanVL", "Janus", "Llama4", "Mistral3"),
    *("Qwen2VL", "Qwen2_5_VL", "Qwen3VL", "Qwen3VLMoe", "Qwen3_5", "Qwen3_5Moe"),
)
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
        The commands, or one comment line saying that the converter has no path for this architecture.

    Raises:
        MmdoraError: if `folder` is no checkpoint.
    """
    folder = Path(folder).resolve()
    config = _read(folder / "config.json")
    if config is None:
        raise MmdoraError(f"{folder}: no readable config.json; give the folder of an exported checkpoint")
    architecture = (config.get("architectures") or ["an unnamed architecture"])[0]
    tower = config.get("vision_config", {}).get("model_type")
    text = config.get("text_config", {}).get("model_type")
    quoted = shlex.quote(str(folder))
    family = architecture.removesuffix("ForConditionalGeneration")
    if family in _CONVERTED or (family == "Llava" and tower == "pixtral"):
        return _WHOLE.format(folder=quoted)
    if family == "Llava" and tower == "clip_vision_model" and text in ("llama", "mistral"):
        return _CLIP_LLAVA.format(folder=quoted, pixels=_pixel_options(folder))
    parts = f"{architecture} ({text} language model, {tower} tower)" if tower else architecture
    return f"# llama.cpp's convert_hf_to_gguf.py has no path for {parts}"


def _pixel_options(folder: Path) -> str:
    """The means and deviations that pixels are normalised by, as options of the converter."""
    processor = _read(folder / "preprocessor_config.json") or _read(folder / "processor_config.json") or {}
    processor = processor.get("image_processor", processor)
    keys = [key for key in ("image_mean", "image_std") if key in processor]
    return " ".join(f"--{key.replace('_', '-')} {' '.join(map(str, processor[key]))}" for key in keys)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
