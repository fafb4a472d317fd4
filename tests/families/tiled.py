"""Families that cut a picture into tiles, or resize it to one size, and put a projector behind a CLIP-like tower."""

from __future__ import annotations

from typing import Any

import transformers

from .recipe import CLIP, OWN, Recipe, ids, text
from .words import tokenizer

TILE = 16
"""Pixels of a side of a tile; with patches of 4 it has 16."""
SQUARE = {"height": TILE, "width": TILE}
SIGLIP = {**CLIP, "image_size": TILE, "patch_size": 4, "vision_use_head": False}
ROWS = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
IDEFICS = ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<image>", *ROWS)


def smolvlm() -> Any:
    named = {"fake_image_token": "<fake_token_around_image>", "image_token": "<image>"}
    named |= {"end_of_utterance_token": "<end_of_utterance>", "global_image_token": "<global-img>"}
    words = tokenizer(bos="<|im_start|>", eos="<end_of_utterance>", pad="<|im_end|>", named=named, words=ROWS)
    small: dict[str, Any] = {"size": {"longest_edge": 2 * TILE}, "max_image_size": {"longest_edge": TILE}}
    video: dict[str, Any] = {"size": {"longest_edge": TILE}, "max_image_size": {"longest_edge": TILE}}
    return transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessor(**small),
        words,
        transformers.SmolVLMVideoProcessor(**video, num_frames=4, fps=1),
        image_seq_len=4,
    )


def idefics3() -> Any:
    words = tokenizer(
        bos="<|begin_of_text|>", eos="<|end_of_text|>", pad="<|reserved_special_token_0|>", words=IDEFICS, adds_bos=True
    )
    small: dict[str, Any] = {"size": {"longest_edge": 2 * TILE}, "max_image_size": {"longest_edge": TILE}}
    return transformers.Idefics3Processor(transformers.Idefics3ImageProcessor(**small), words, image_seq_len=4)


def idefics_config(processor: Any) -> dict[str, Any]:
    vision = {**CLIP, "image_size": TILE, "patch_size": 4}
    words = text(processor, model_type="llama")
    pad = processor.tokenizer.pad_token_id
    return {"vision_config": vision, "text_config": words, "scale_factor": 2, "pad_token_id": pad} | ids(
        processor, image_token_id="<image>"
    )


def llava(processor_class: str = "Llava", **images: Any) -> Any:
    words = tokenizer(bos="<s>", eos="</s>", pad="<pad>", words=("<unk>", "<image>"), adds_bos=True)
    pictures = getattr(transformers, "CLIPImageProcessor" if processor_class == "Llava" else "LlavaNextImageProcessor")
    made = pictures(size={"shortest_edge": TILE}, crop_size=SQUARE, **images)
    return getattr(transformers, f"{processor_class}Processor")(
        made, words, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


GRIDS = [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]


def llava_config(processor: Any) -> dict[str, Any]:
    clip = {"model_type": "clip_vision_model", **CLIP, "image_size": TILE, "patch_size": 4, "projection_dim": 16}
    words = text(processor, model_type="llama")
    grids = getattr(processor.image_processor, "image_grid_pinpoints", None)
    more = {"image_grid_pinpoints": grids} if grids else {}
    named = {"video_token_id": "<video>"} if hasattr(processor, "video_token") else {}
    return {"vision_config": clip, "text_config": words, **more} | ids(processor, image_token_id="<image>", **named)


def llava_onevision() -> Any:
    words = tokenizer(eos="<|im_end|>", pad="<|endoftext|>", words=("<|im_start|>", "<image>", "<video>"))
    return transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=GRIDS),
        words,
        transformers.LlavaOnevisionVideoProcessor(size=SQUARE),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
    )


def onevision_config(processor: Any) -> dict[str, Any]:
    words = text(processor, model_type="qwen2")
    vision = {"model_type": "siglip_vision_model", **SIGLIP}
    named = ids(processor, image_token_id="<image>", video_token_id="<video>")
    return {"vision_config": vision, "text_config": words, "image_grid_pinpoints": GRIDS, **named}


def llava_next_video() -> Any:
    words = tokenizer(bos="<s>", eos="</s>", pad="<pad>", words=("<unk>", "<image>", "<video>"), adds_bos=True)
    small: dict[str, Any] = {"size": {"shortest_edge": TILE}, "crop_size": SQUARE}
    return transformers.LlavaNextVideoProcessor(
        transformers.LlavaNextVideoVideoProcessor(**small),
        transformers.LlavaNextImageProcessor(**small, image_grid_pinpoints=GRIDS),
        words,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def granite_vision() -> Any:
    end = "<|end_of_text|>"
    words = tokenizer(bos=end, eos=end, pad=end, words=("<|system|>", "<|user|>", "<|assistant|>", "<image>"))
    pictures = transformers.LlavaNextImageProcessor(size=SQUARE, crop_size=SQUARE, image_grid_pinpoints=GRIDS)
    return transformers.LlavaNextProcessor(pictures, words, patch_size=4, vision_feature_select_strategy="full")


def granite_config(processor: Any) -> dict[str, Any]:
    """Granite Vision joins the outputs of several layers of its tower, and its language model has multipliers."""
    words = text(processor, model_type="granite", embedding_multiplier=12.0, residual_multiplier=0.22)
    vision = {"model_type": "siglip_vision_model", **SIGLIP}
    more = {"vision_feature_layer": [-2, -1], "vision_feature_select_strategy": "full", "image_grid_pinpoints": GRIDS}
    return {"vision_config": vision, "text_config": words, **more} | ids(processor, image_token_id="<image>")


def internvl() -> Any:
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    named |= {"video_token": "<video>"}
    words = tokenizer(eos="<|im_end|>", pad="<|endoftext|>", named=named, words=("<|im_start|>", "<quad>", "<box>"))
    pictures = transformers.GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, max_patches=4)
    video = transformers.InternVLVideoProcessor(size=SQUARE)
    return transformers.InternVLProcessor(pictures, words, video, image_seq_length=4)


def internvl_config(processor: Any) -> dict[str, Any]:
    vision = {**CLIP, "image_size": [TILE, TILE], "patch_size": [4, 4]}
    words = text(processor, model_type="qwen2")
    return {"vision_config": vision, "text_config": words, "image_seq_length": 4} | ids(
        processor, image_token_id="<IMG_CONTEXT>"
    )


def deepseek_vl() -> Any:
    end = "<｜end▁of▁sentence｜>"
    named = {"image_token": "<image_placeholder>"}
    words = tokenizer(bos="<｜begin▁of▁sentence｜>", eos=end, pad=end, named=named, adds_bos=True)
    pictures = transformers.DeepseekVLImageProcessor(size=SQUARE)
    return transformers.DeepseekVLProcessor(pictures, words, num_image_tokens=16)


def deepseek_config(processor: Any) -> dict[str, Any]:
    vision = {"model_type": "siglip_vision_model", **SIGLIP}
    words = text(processor, model_type="llama")
    return {"vision_config": vision, "text_config": words} | ids(processor, image_token_id="<image_placeholder>")


LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>", "<|image|>")


def mllama() -> Any:
    bos, eos, pad = "<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>"
    words = tokenizer(bos=bos, eos=eos, pad=pad, words=("<|end_of_text|>", *LLAMA3), adds_bos=True)
    pictures = transformers.MllamaImageProcessor(size=SQUARE, max_image_tiles=4)
    return transformers.MllamaProcessor(pictures, words)


def mllama_config(processor: Any) -> dict[str, Any]:
    words = text(processor, num_hidden_layers=3, cross_attention_layers=[1])
    # The embedding has eight rows more than the head has, and the image's token is the first of them.
    words["vocab_size"] = len(processor.tokenizer) - 1
    del words["head_dim"]
    vision = {"hidden_size": 16, "num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 2}
    vision |= {"intermediate_size": 32, "vision_output_dim": 32, "image_size": TILE, "patch_size": 4}
    vision |= {"intermediate_layers_indices": [0], "max_num_tiles": 4}
    return {"vision_config": vision, "text_config": words} | ids(processor, image_token_index="<|image|>")


LLAMA4 = ("<|header_start|>", "<|header_end|>", "<|eom|>", "<|image_start|>", "<|image_end|>", "<|tile_x_separator|>")
LLAMA4 += ("<|tile_y_separator|>", "<|image|>", "<|patch|>", "<|python_start|>", "<|python_end|>")


def llama4() -> Any:
    bos = "<|begin_of_text|>"
    words = tokenizer(bos=bos, eos="<|eot|>", pad="<|finetune_right_pad|>", words=LLAMA4, adds_bos=True)
    pictures = transformers.Llama4ImageProcessor(size=SQUARE, max_patches=4)
    return transformers.Llama4Processor(pictures, words, patch_size=4)


def llama4_config(processor: Any) -> dict[str, Any]:
    words = text(processor, intermediate_size_mlp=48, num_local_experts=2, moe_layers=[1], attention_chunk_size=512)
    vision = {**CLIP, "num_hidden_layers": 2, "image_size": TILE, "patch_size": 4, "vision_output_dim": 24}
    # The adapter of the tower takes the pixels that the shuffle put together.
    vision |= {"intermediate_size": 64, "projector_input_dim": 24, "projector_output_dim": 24}
    named = ids(processor, image_token_index="<|patch|>", boi_token_index="<|image_start|>")
    return {"vision_config": vision, "text_config": words, **named} | ids(processor, eoi_token_index="<|image_end|>")


def pixtral() -> Any:
    words = ("<unk>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
    made = tokenizer(bos="<s>", eos="</s>", pad="<pad>", words=words, adds_bos=True)
    pictures = transformers.PixtralImageProcessor(size={"longest_edge": 64}, patch_size=8)
    return transformers.PixtralProcessor(pictures, made, patch_size=4, spatial_merge_size=2)


def mistral3_config(processor: Any) -> dict[str, Any]:
    vision = {"model_type": "pixtral", **CLIP, "head_dim": 8, "image_size": 64, "patch_size": 4}
    words = text(processor, model_type="mistral")
    more = {"spatial_merge_size": 2, "vision_feature_layer": -1}
    return {"vision_config": vision, "text_config": words, **more} | ids(processor, image_token_index="[IMG]")


LLAMA4_FORWARD = "Llama4ForConditionalGeneration.forward reads image_outputs of an output without it (5.24)"
RECIPES = {
    "smolvlm": Recipe(smolvlm, idefics_config, ("<end_of_utterance>",), "smolvlm", needs=("num2words",)),
    "idefics3": Recipe(idefics3, idefics_config, ("<|end_of_text|>", "<end_of_utterance>"), "idefics3"),
    "llava": Recipe(llava, llava_config, ("</s>",), "llava"),
    "llava_next": Recipe(lambda: llava("LlavaNext", image_grid_pinpoints=GRIDS), llava_config, ("</s>",), "llava"),
    "llava_next_video": Recipe(llava_next_video, llava_config, ("</s>",), "llava_next_video"),
    "granite_vision": Recipe(
        granite_vision, granite_config, ("<|end_of_text|>",), "granite_vision", model="llava_next"
    ),
    "llava_onevision": Recipe(llava_onevision, onevision_config, ("<|im_end|>", "<|endoftext|>"), "llava_onevision"),
    "internvl": Recipe(internvl, internvl_config, ("<|im_end|>",), "internvl"),
    "deepseek_vl": Recipe(deepseek_vl, deepseek_config, ("<｜end▁of▁sentence｜>",), "deepseek_vl"),
    "mllama": Recipe(mllama, mllama_config, ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"), "mllama"),
    "llama4": Recipe(llama4, llama4_config, ("<|eom|>", "<|eot|>"), OWN, broken=LLAMA4_FORWARD),
    "mistral3": Recipe(pixtral, mistral3_config, ("</s>",), "mistral3"),
}
