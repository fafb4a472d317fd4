"""VL-BART without its head: tower, visual embedding, BART."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import Seq2SeqModelOutput
from transformers.utils.generic import can_return_tuple

from mmdora.errors import MmdoraError
from mmdora.models.cache import CACHE_NAMES
from mmdora.models.open_clip.tower import OpenClipVisionModel
from mmdora.models.vlbart.config import VLBartConfig
from mmdora.models.vlbart.encoder import VLBartEncoderOutput, VLBartLanguageModel
from mmdora.models.vlbart.visual import VisualEmbedding, as_clip

VISUAL = ("pixel_values", "image_mask", "pixel_values_videos", "frame_mask", "visual_features", "visual_boxes")


class VLBartPreTrainedModel(PreTrainedModel):
    config_class = VLBartConfig
    config: VLBartConfig
    base_model_prefix = "model"
    input_modalities = ["image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _no_split_modules = ["BartEncoderLayer", "BartDecoderLayer", "OpenClipVisionModel"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True


class _Encode:
    """The object that `generate` uses as the encoder: it can be called, and has a `forward` with named arguments."""

    def __init__(self, model: VLBartModel):
        self.forward = model.encode

    def __call__(self, **inputs: Any) -> VLBartEncoderOutput:
        return self.forward(**inputs)


class VLBartModel(VLBartPreTrainedModel):
    """Tower, visual embedding and BART without its head."""

    def __init__(self, config: VLBartConfig):
        super().__init__(config)
        text: Any = config.text_config
        vision: Any = config.vision_config
        self.vision_tower = OpenClipVisionModel(vision)
        self.visual_embedding = VisualEmbedding(vision.hidden_size, text.d_model, config.max_images)
        self.language_model = VLBartLanguageModel(text)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_encoder(self, modality: str | None = None) -> Any:
        """The tower for "image" and "video"; otherwise `encode`, which `generate` runs once."""
        return _Encode(self) if modality is None else self.vision_tower

    def get_decoder(self) -> nn.Module:
        return self.language_model.decoder

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Compute features [B, N, T, F] of images [B, N, 3, S, S]."""
        tokens = self.vision_tower(pixel_values.flatten(0, 1)).last_hidden_state
        return tokens.unflatten(0, pixel_values.shape[:2])

    def get_video_features(self, pixel_values_videos: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Compute features [B, 1, config.frames, F] of clips [B, n, 3, S, S]; those of missing frames are zero."""
        count = pixel_values_videos.shape[1]
        if count > self.config.frames:
            raise MmdoraError(f"a clip has {count} frames; this model takes {self.config.frames}: choose some of them")
        features = self.vision_tower.frames(pixel_values_videos.flatten(0, 1)).unflatten(0, (-1, count))
        if frame_mask is not None:
            features = features * frame_mask[..., None].to(features)
        return as_clip(features, self.config.frames)[:, None]

    def encode(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_mask: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        frame_mask: Tensor | None = None,
        visual_features: Tensor | None = None,
        visual_boxes: Tensor | None = None,
        **kwargs: Any,
    ) -> VLBartEncoderOutput:
        """Compute encoder states of text and visual tokens.

        Args:
            input_ids, attention_mask: [B, L], padded on the right, because BART counts positions from the left end.
            inputs_embeds: [B, L, D] in place of `input_ids`.
            pixel_values: [B, N, 3, S, S] images for the tower.
            image_mask: [B, N], 1 for an image, 0 in place of a missing one; by default all 1.
            pixel_values_videos: [B, n, 3, S, S] frames of one clip; each frame becomes one token.
            frame_mask: [B, n], 1 for a frame, 0 in place of a missing one, whose features are set to zero.
            visual_features: [B, N, T, F] precomputed features: N images of T tokens, or one clip of T frames.
            visual_boxes: [B, N, T, 4] x1, x2, y1, y2 of the features' regions; by default all 0, as for grids.

        Raises:
            MmdoraError: if there are several kinds of visual input, or more tokens than the config allows.
        """
        given = [part for part in (pixel_values, pixel_values_videos, visual_features) if part is not None]
        if len(given) > 1:
            raise MmdoraError("give one of pixel_values, pixel_values_videos and visual_features, not several")
        if pixel_values is not None:
            visual_features = self.get_image_features(pixel_values)
        elif pixel_values_videos is not None:
            visual_features = self.get_video_features(pixel_values_videos, frame_mask)
        visual = None
        if visual_features is not None:
            visual = self._embed(visual_features, visual_boxes)
            text: Any = input_ids if input_ids is not None else inputs_embeds
            if attention_mask is None:
                attention_mask = torch.ones(text.shape[:2], dtype=torch.long, device=text.device)
            if image_mask is None:
                image_mask = attention_mask.new_ones(visual_features.shape[:2])
            seen = image_mask.to(attention_mask).repeat_interleave(visual_features.shape[2], 1)
            attention_mask = torch.cat([attention_mask, seen], 1)
        states = self.language_model.encoder(
            input_ids, attention_mask, inputs_embeds, visual, **{**kwargs, "return_dict": True}
        )
        return VLBartEncoderOutput(**states, attention_mask=attention_mask)

    def _embed(self, features: Tensor, boxes: Tensor | None) -> Tensor:
        config: Any = self.config
        _, images, length, width = features.shape
        if images > config.max_images or length > config.order_tokens or width != config.vision_config.hidden_size:
            raise MmdoraError(
                f"visual features of {images} images of {length} tokens of width {width}; this model takes at most "
                f"{config.max_images} of {config.order_tokens}, of width {config.vision_config.hidden_size} "
                "(max_images, order_tokens and vision_config.grid of its config)"
            )
        dtype = self.visual_embedding.image.weight.dtype
        rows = config.text_config.vocab_size
        return self.visual_embedding(features.to(dtype), self.language_model.shared, rows, boxes)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Seq2SeqModelOutput:
        visual = {name: kwargs.pop(name, None) for name in VISUAL}
        cache = {name: kwargs.pop(name) for name in CACHE_NAMES if name in kwargs}  # Only the decoder uses it.
        if encoder_outputs is None:
            encoder_outputs = self.encode(input_ids, attention_mask, inputs_embeds, **visual, **kwargs)
        return self.language_model(
            input_ids=input_ids,
            attention_mask=getattr(encoder_outputs, "attention_mask", attention_mask),
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            **cache,
            **kwargs,
        )
