"""VL-BART with its head, on the BART of `transformers`: the encoder reads text and then visual tokens.

The model is that of VL-Adapter (Sung et al., CVPR 2022), which follows VL-T5 (Cho et al., ICML 2021).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, initialization
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.models.bart.modeling_bart import shift_tokens_right
from transformers.utils.generic import can_return_tuple

from mmdora.errors import MmdoraError
from mmdora.models.vlbart.config import VLBartConfig
from mmdora.models.vlbart.model import VLBartModel, VLBartPreTrainedModel

TOWER = "model.vision_tower."


class VLBartForConditionalGeneration(VLBartPreTrainedModel, GenerationMixin):
    """VL-BART with its head, which is tied to the token table.

    The tower's weights are saved with the model or by reference. As long as they equal, bit for bit, the weights that
    `config.vision_config.pretrained` names, `save_pretrained` leaves them out, and `from_pretrained` reads them from
    there.
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.shared.weight"}  # noqa: RUF012

    def __init__(self, config: VLBartConfig):
        super().__init__(config)
        text: Any = config.text_config
        vision: Any = config.vision_config
        self.model = VLBartModel(config)
        self.final_logits_bias = nn.Buffer(torch.zeros(1, text.vocab_size))
        self.lm_head = nn.Linear(text.d_model, text.vocab_size, bias=False)
        if vision.pretrained:
            self._keys_to_ignore_on_load_missing = [f"^{TOWER}"]
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            initialization.zeros_(self.final_logits_bias)

    def get_encoder(self, modality: str | None = None) -> Any:
        return self.model.get_encoder(modality)

    def get_decoder(self) -> nn.Module:
        return self.model.get_decoder()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_mask: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        frame_mask: Tensor | None = None,
        visual_features: Tensor | None = None,
        visual_boxes: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        loss_weights: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Run BART's forward with one kind of visual input, or none.

        The arguments from `input_ids` to `visual_boxes` are explained at `VLBartModel.encode`. They are named here
        again because `generate` refuses every argument that the forward does not name.

        Args:
            labels: [B, M] ids of the answers; positions with -100 are not learned.
            loss_weights: [B] factors of the samples' losses; by default 1.
            num_items_in_batch: divisor of the sum of the losses; by default the number of labels.

        Raises:
            MmdoraError: if there are several kinds of visual input, or more tokens than the config allows.
        """
        if labels is not None:
            use_cache = False
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            image_mask=image_mask,
            pixel_values_videos=pixel_values_videos,
            frame_mask=frame_mask,
            visual_features=visual_features,
            visual_boxes=visual_boxes,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(outputs.last_hidden_state) + self.final_logits_bias
        loss = None if labels is None else _loss(logits, labels.to(logits.device), loss_weights, num_items_in_batch)
        rest = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return Seq2SeqLMOutput(loss=loss, logits=logits, **rest)

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        text: Any = self.config.text_config
        return shift_tokens_right(labels, text.pad_token_id, text.decoder_start_token_id)

    # --- the tower by reference

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """Load a model as `PreTrainedModel` does, and read the tower's weights from the place that the config names, if
        any.

        Raises:
            MmdoraError: if the tower's weights are neither in the checkpoint nor in the place that it refers to.
        """
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        if model.config.vision_config.pretrained:
            model.model.vision_tower.refer()
        elif missing := sorted(key for key in info["missing_keys"] if key.startswith(TOWER)):
            raise MmdoraError(
                f"{model.name_or_path}: {len(missing)} tensors of the tower are missing, the first is {missing[0]}, "
                "and vision_config.pretrained names no other place"
            )
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save the model as in `PreTrainedModel`; the tower is left out if it still equals the weights referred to."""
        tower = self.model.vision_tower
        vision = tower.config
        if vision.pretrained and tower.is_as_referred:
            self._keys_to_ignore_on_save = {TOWER + name for name in tower.state_dict()}
        else:
            self._keys_to_ignore_on_save = set()
            vision.pretrained = vision.sha256 = None
        super().save_pretrained(save_directory, *args, **kwargs)


def _loss(logits: Tensor, labels: Tensor, weights: Tensor | None, items: Tensor | int | None) -> Tensor:
    """Cross-entropy in fp32: the mean over the labels, or 0 if there are none."""
    if weights is None:
        total = nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
    else:
        each = nn.functional.cross_entropy(logits.transpose(1, 2).float(), labels, reduction="none")
        total = (each.sum(1) * weights.to(each)).sum()
    return total / (labels.ne(-100).sum().clamp(min=1) if items is None else items)
