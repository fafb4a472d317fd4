"""The general model family: any image-text-to-text architecture whose processor has a chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mmdora.errors import MmdoraError
from mmdora.families.learning import Learning
from mmdora.families.prompt import Prompt


class Family(Learning):
    """How a family of models reads conversations and pictures, learns answers and writes them.

    This class works from the processor and the model alone. A subclass overrides what its family does differently.
    What a family does stands in four files: conversations become text (`conversations.py`), lengths are counted
    (`counting.py`), rows become batches (`learning.py`), and here, prompts are asked.

    Args:
        processor: a `transformers` processor with `tokenizer`, `image_processor` and a chat template.
    """

    def check_model(self, name: str, model: Any) -> None:
        """Raise an MmdoraError if this family would teach a model its answers in the wrong place.

        Args:
            name: the base, for the error.
            model: built from the base's config; it may be on the meta device.
        """
        decodes_apart = any(
            one.is_encoder_decoder for one in (model.config, model.config.get_text_config(decoder=True))
        )
        if decodes_apart and self.one_stream and getattr(self.processor, "chat_template", None):
            raise MmdoraError(
                f"model {name!r}: {type(model).__name__} reads a question in an encoder and writes the answer with a "
                "decoder; no such model but VL-BART can be trained or asked here, by no chat template"
            )

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Any:
        """Encode prompts for `generate`; they are padded on the left, so that each answer follows its prompt directly.

        Raises:
            MmdoraError: if a prompt has features of a clip.
        """
        if any(prompt.features is not None for prompt in prompts):
            raise MmdoraError("a clip as features, which only a VL-BART can read; leave such records out")
        for prompt in prompts:
            self.check_videos(prompt.messages)
        texts = [self.render(prompt.messages, generation_prompt=True) for prompt in prompts]
        videos = [prompt.videos for prompt in prompts] if any(prompt.videos for prompt in prompts) else None
        return self._read(texts, [prompt.images for prompt in prompts], videos, left=True)

    def encode_conversation(self, prompt: Prompt) -> Any:
        """Encode one conversation without padding, to compute its logits; its last message may be an answer."""
        asks = prompt.messages[-1]["role"] != "assistant"
        text = self.render(prompt.messages, generation_prompt=asks)
        return self._read([text], [prompt.images], [prompt.videos] if prompt.videos else None, left=False)

    def generation(self, model: Any, max_new_tokens: int, beams: int = 1) -> dict[str, Any]:
        """Arguments for `generate`: greedy or beam search that stops at `stops`, with no sampling.

        The sampling defaults of a checkpoint are switched off.
        """
        return {
            "max_new_tokens": max_new_tokens,
            "do_sample": False,
            "num_beams": beams,
            "use_cache": True,
            "temperature": None,
            "top_p": None,
            "top_k": None,
            "pad_token_id": self.tokenizer.pad_token_id,
            "eos_token_id": self.ending.stops(model.generation_config),
        }

    def choices(self, answers: Sequence[str]) -> Sequence[str]:
        """The answers that generation is restricted to in a task; none for models that follow instructions."""
        return ()

    def only(self, answers: Sequence[str]) -> dict[str, Any]:
        """Arguments for `generate` that restrict it to one of the answers; raises, as this family has no such way."""
        raise MmdoraError(
            f"answers: {type(self.processor).__name__} belongs to a model that "
            "cannot be restricted to given answers; leave `answers` out"
        )

    def new_ids(self, ids: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """The ids [B, T] that `generate` added, without the prompt."""
        return ids[:, inputs["input_ids"].shape[1] :]

    def shares_prefix(self, model: Any, inputs: Mapping[str, Any]) -> bool:
        """Whether prompts about the same picture may share one pass over everything up to that picture."""
        return False
