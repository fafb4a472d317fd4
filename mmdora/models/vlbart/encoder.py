"""BART's encoder with visual tokens after the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import BartModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.bart.modeling_bart import (
    BartDecoder,
    BartEncoder,
    BartPreTrainedModel,
    BartScaledWordEmbedding,
)
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs


class VLBartEncoder(BartEncoder):
    """BART's encoder with visual tokens after the text; without visual tokens it computes the same as BART's."""

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        visual_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Run the encoder as BART's does.

        Args:
            attention_mask: [B, L + V] mask of text and visual tokens.
            visual_embeds: [B, V, d_model] visual tokens; they get neither positions nor the layer norm of the text.
        """
        text: Any = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        positions = self.embed_positions(text[:, :, -1]).to(text.device)
        hidden = self.layernorm_embedding(text + positions)
        if visual_embeds is not None:
            hidden = torch.cat([hidden, visual_embeds.to(hidden)], 1)
        drop, skip = cast(float, self.dropout), cast(float, self.layerdrop)
        hidden = nn.functional.dropout(hidden, p=drop, training=self.training)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden, attention_mask=attention_mask)
        for layer in self.layers:
            if self.training and skip > 0 and torch.rand([]) < skip:
                continue
            hidden = layer(hidden, mask, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden)


class VLBartLanguageModel(BartModel):
    """BART with the encoder above; parameter names are BART's."""

    def __init__(self, config: Any):
        BartPreTrainedModel.__init__(self, config)  # BartModel's own would build an encoder that is then replaced.
        scale = config.d_model**0.5 if config.scale_embedding else 1.0
        self.shared = BartScaledWordEmbedding(config.vocab_size, config.d_model, config.pad_token_id, scale)
        self.encoder = VLBartEncoder(config)
        self.decoder = BartDecoder(config)
        self.post_init()


@dataclass
class VLBartEncoderOutput(BaseModelOutput):
    """Encoder states [B, L + V, d_model] with their mask, so that `generate` repeats both for its beams."""

    attention_mask: Tensor | None = None
