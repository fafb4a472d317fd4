"""Rows to training batches for encoder-decoders: the encoder reads the question, the decoder learns the answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mmdora.batches.prompt import IGNORE, check_one_answer, encode, render, with_prompt
from mmdora.errors import MmdoraError
from mmdora.records.features import open_features
from mmdora.records.images import open_image
from mmdora.records.turns import answer_text, prompt_messages


class Seq2SeqCollator:
    """One question and answer per row. The target is the answer as the tokenizer writes a text, `<s> answer </s>` in
    BART: after what generation begins with, the first step reads off the first word (of NLVR2's "true" and "false").

    Args:
        features: gives the features [T, F] of an image by name and root, which are then read in place of the image
            (`mmdora.models.vlbart.feature_cache`).
    """

    def __init__(self, processor: Any, root: Path, features: Callable[[str, Path], torch.Tensor] | None = None):
        self.processor, self.root, self.features = processor, root, features

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows to what the processor gives for the questions, `labels` [B, M], and `loss_weights` [B] if rows have any.

        Raises:
            MmdoraError: naming the row, for an image or features that cannot be read, or a row of several turns.
        """
        texts, images, clips, answers = [], [], [], []
        for row in rows:
            try:
                check_one_answer(row)
                texts.append(render(self.processor, with_prompt(self.processor, prompt_messages(row), row.get("task"))))
                root = row.get("root", self.root)
                clip: Any = row["meta"].get("features")
                clip = None if clip is None else open_features(clip, root)
                if self.features is not None and row["images"] and clip is None:
                    clip, pictures = torch.stack([self.features(name, root) for name in row["images"]]), []
                else:
                    pictures = [open_image(name, root) for name in row["images"]]
                images.append(pictures)
                clips.append(clip)
                answers.append(answer_text(row))
            except MmdoraError as error:
                raise MmdoraError(f"record {row['id']}: {error}") from None
        if any(clip is not None for clip in clips):
            batch = dict(self.processor(text=texts, images=images if any(images) else None, features=clips))
        else:
            batch = dict(encode(self.processor, texts, images, left=False))
        found = self.processor.tokenizer(text_target=answers, padding=True, return_tensors="pt")
        most, lengths = self.processor.tokenizer.model_max_length, found["attention_mask"].sum(1)
        if (longest := int(lengths.max())) > most:
            name = rows[int(lengths.argmax())]["id"]
            raise MmdoraError(f"record {name}: its answer has {longest} tokens; this model writes at most {most}")
        labels = found["input_ids"].masked_fill(found["attention_mask"] == 0, IGNORE)
        for index, row in enumerate(rows):
            if row.get("masked"):
                labels[index] = IGNORE
        batch["labels"] = labels
        if any("weight" in row for row in rows):
            batch["loss_weights"] = torch.tensor([row.get("weight", 1.0) for row in rows])
        return batch
