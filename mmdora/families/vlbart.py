"""VL-BART: an encoder reads the question, pictures and clips; a decoder learns and writes the answer.

The prompts for each task and the first token of the decoder are those of VL-Adapter (Sung et al., CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmdora.families.encoder_decoder import EncoderDecoder
from mmdora.families.learning import Features
from mmdora.families.prompt import Prompt
from mmdora.families.template import encode, with_question
from mmdora.records.features import open_features
from mmdora.records.images import open_image
from mmdora.records.row import Row, naming
from mmdora.records.turns import Messages, prompt_messages


class VLBart(EncoderDecoder):
    """VL-BART, whose questions are worded by their task."""

    def check_question(self, row: Row) -> None:
        """Accept pictures, clips as features, and text alone."""
        self.check_videos(row["messages"])

    def check_task(self, name: str) -> None:
        self.processor.prompt("", name)

    def asked(self, messages: Messages, task: str | None, instruct: Callable[[str], str]) -> Messages:
        if task is None:
            return messages
        return with_question(messages, lambda question: self.processor.prompt(question, task))

    def batch(self, rows: Sequence[Row], features: Features | None = None) -> dict[str, Tensor]:
        """Turn rows into the processor's tensors of the questions, `labels` [B, M], and `loss_weights` [B].

        The weights are there only if a row has a `weight`.

        Raises:
            MmdoraError: naming the row, if a picture or features cannot be read, or if the row has several turns.
        """
        prompts = []
        for row in rows:
            with naming(row):
                self.check_row(row)
                prompts.append(self._prompt(row, features))
        batch = dict(self.encode_prompts(prompts))
        batch["labels"] = self._targets(rows)
        if any("weight" in row for row in rows):
            batch["loss_weights"] = torch.tensor([row.get("weight", 1.0) for row in rows])
        return batch

    def _prompt(self, row: Row, features: Features | None) -> Prompt:
        messages = self.asked(prompt_messages(row), row.get("task"), lambda question: question)
        if row["features"] is not None:
            return Prompt(messages, [open_image(image) for image in row["images"]], open_features(row["features"]))
        if features is not None and row["images"]:
            return Prompt(messages, features=torch.stack([features(image) for image in row["images"]]))
        return Prompt(messages, [open_image(image) for image in row["images"]])

    def feature_tower(self, model: Any) -> nn.Module | None:
        return model.model.vision_tower

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Any:
        """Encode the questions, padded on the right because BART counts positions from the first token."""
        texts = [self.render(prompt.messages, generation_prompt=True) for prompt in prompts]
        images, clips = [prompt.images for prompt in prompts], [prompt.features for prompt in prompts]
        if any(clip is not None for clip in clips):
            return self.processor(text=texts, images=images if any(images) else None, features=clips)
        return encode(self.processor, texts, images, left=False)

    def encode_conversation(self, prompt: Prompt) -> Any:
        text = self.render(prompt.messages, generation_prompt=True)
        if prompt.features is not None:
            return self.processor(text=[text], features=[prompt.features])
        return encode(self.processor, [text], [prompt.images], left=False)

    def choices(self, answers: Sequence[str]) -> Sequence[str]:
        return answers
