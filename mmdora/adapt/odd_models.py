"""The few models whose parts the general rule of `modality` cannot find, each with the reason.

The keys are class names of transformers. Prefixes that a model does not have are left out, because some parts of these
models depend on their configs.
"""

from __future__ import annotations

from collections.abc import Mapping

PARTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    # The model that holds the tower and the projector is itself the language model.
    "GitForCausalLM": {
        "vision": ("git.image_encoder",),
        "projector": ("git.visual_projection", "git.img_temporal_embedding"),
        "language": ("git", "output"),
    },
    "IdeficsForVisionText2Text": {
        "vision": ("model.vision_model",),
        "projector": ("model.perceiver_resampler",),
        "language": ("model", "lm_head"),
        "other": ("model.gated_cross_attn_layers",),
    },
    # Its sub-configs are named encoder and decoder.
    "VisionEncoderDecoderModel": {
        "vision": ("encoder",),
        "projector": ("enc_to_dec_proj",),
        "language": ("decoder",),
    },
    # One encoder reads words and patches, and it has no sub-config.
    "UdopForConditionalGeneration": {
        "vision": ("patch_embed", "encoder.embed_patches", "decoder.embed_patches"),
        "language": ("shared", "encoder", "decoder", "lm_head"),
    },
}
"""Class name of a model -> modality -> its prefixes."""

NO_TOWER = ("Gemma4UnifiedForConditionalGeneration",)
"""Models with a config of vision, but without a tower: a projector brings patches to the language model."""

INNER_PROJECTORS: Mapping[str, tuple[str, ...]] = {
    # It shuffles pixels and ends before the width of the text, which `multi_modal_projector` gives.
    "Llama4VisionModel": ("vision_adapter",),
    # Its first levels are projectors too, as in Qwen3-VL.
    "Qwen3OmniMoeVisionEncoder": ("merger", "merger_list"),
}
"""Class name of a tower -> its children that belong to the projector."""

ACTION_EXPERTS: Mapping[str, tuple[str, ...]] = {"PI0ForConditionalGeneration": ("model.dit",)}
"""Class name of a model -> modules for actions, which belong to none of the three parts."""
