"""The config of VL-BART: BART, an image tower, and the visual embedding between them."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers.configuration_utils import PreTrainedConfig

from mmdora.models.open_clip.config import OpenClipVisionConfig

BART_BASE: dict[str, Any] = {
    "vocab_size": 50265 + 200,
    "d_model": 768,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_attention_heads": 12,
    "decoder_attention_heads": 12,
    "encoder_ffn_dim": 3072,
    "decoder_ffn_dim": 3072,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
}
"""The config of bart-base with the 200 tokens that VL-BART adds (`mmdora.models.vlbart.processor.added_tokens`)."""


class VLBartConfig(PreTrainedConfig):
    """Describes a VL-BART (VL-Adapter, Sung et al., CVPR 2022); by default its image model on precomputed features.

    Attributes:
        text_config: a `BartConfig`; by default bart-base with 200 added tokens.
        vision_config: an `OpenClipVisionConfig`; by default for precomputed features [.., 2048].
        max_images: most images in a sample, which is also the number of rows of the image embedding.
        order_tokens: most visual tokens of an image. This many rows at the end of the token table are the order
            embeddings of visual tokens.
        frames: number of frames that a clip is padded to with zeros.
    """

    model_type = "vl-bart"
    sub_configs: ClassVar[dict[str, type[PreTrainedConfig]]] = {
        # It is a BartConfig, a class that cannot be named here: its module imports the Auto classes, which import this.
        "text_config": PreTrainedConfig,
        "vision_config": OpenClipVisionConfig,
    }

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    max_images: int = 2
    order_tokens: int = 100
    frames: int = 64
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        from transformers import BartConfig

        if not isinstance(self.text_config, PreTrainedConfig):
            self.text_config = BartConfig(**(BART_BASE if self.text_config is None else self.text_config))
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = OpenClipVisionConfig(**(self.vision_config or {}))
        super().__post_init__(**kwargs)
