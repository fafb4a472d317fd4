"""The general model family: any image-text-to-text architecture whose processor has a chat template."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mmdora.errors import MmdoraError
from mmdora.families.ending import Ending, end_tokens, written_end
from mmdora.families.positions import RopeIndex
from mmdora.families.prompt import Prompt
from mmdora.families.template import (
    IGNORE,
    check_places,
    check_texts,
    encode,
    inputs_of,
    labels_of,
    needs_start_token,
    render,
    render_with_answers,
    with_question,
)
from mmdora.records.images import FileRef, image_size, open_image
from mmdora.records.row import Row
from mmdora.records.turns import Messages

Features = Callable[[FileRef], Tensor]
"""Gives the features [T, F] that a tower makes of a picture."""
Shown = tuple[str, str]
"""A text and what it is: "text", "image" (a run of image tokens) or "learned"."""


class Family:
    """How a family of models reads conversations and pictures, learns answers and writes them.

    This class works from the processor and the model alone. A subclass overrides what its family does otherwise.

    Args:
        processor: a `transformers` processor with `tokenizer`, `image_processor` and a chat template.
    """

    one_stream = True
    """Whether prompt and answer are one sequence of tokens, each learned from those before it."""

    def __init__(self, processor: Any):
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.placeholder: str | None = getattr(processor, "image_token", None)

    # --- what a record may contain

    def check_row(self, row: Row) -> None:
        """Raise an MmdoraError for what this family cannot learn; no file is opened."""
        check_texts(row["messages"], self.placeholder)
        self.check_question(row)

    def check_question(self, row: Row) -> None:
        """Raise an MmdoraError for what this family cannot be asked; no file is opened."""
        if row["features"] is not None:
            raise MmdoraError("a clip as features, which VL-BART reads and this model does not")

    def check_pictures(self, messages: Messages, images: int) -> None:
        """Raise an MmdoraError if the chat template does not write each picture of a conversation.

        Args:
            images: how many pictures go with the conversation.
        """
        if images and self.placeholder is not None:
            check_places(self.render(messages), self.placeholder, images)

    def check_task(self, name: str) -> None:
        """Raise an MmdoraError if a family that knows tasks by name does not know this one."""

    # --- conversations

    def render(self, messages: Messages, *, generation_prompt: bool = False) -> str:
        """The conversation as the model reads it, pictures still as their placeholder."""
        return render(self.processor, self.ending.added(messages), generation_prompt=generation_prompt)

    def asked(self, messages: Messages, task: str | None, instruct: Callable[[str], str]) -> Messages:
        """A conversation, its last question worded for a task.

        Args:
            task: the name by which a family with prompts of its own knows the task.
            instruct: puts the question as models that follow instructions are asked it.
        """
        return with_question(messages, instruct)

    @cached_property
    def ending(self) -> Ending:
        """How an answer ends; found by rendering one."""
        asked = {"role": "user", "content": [{"type": "text", "text": "a"}]}
        answered = {"role": "assistant", "content": [{"type": "text", "text": "b"}]}
        text = render(self.processor, [asked, answered])
        return Ending(self.tokenizer, written_end(text, end_tokens(self.tokenizer)))

    # --- lengths in tokens

    def image_tokens(self, sizes: Sequence[tuple[int, int]]) -> list[int]:
        """Tokens of pictures of these (height, width) in pixels.

        Raises:
            MmdoraError: if the processor does not say.
        """
        try:
            return list(self.processor._get_num_multimodal_tokens(image_sizes=sizes).num_image_tokens)
        except AttributeError:
            raise MmdoraError(f"{type(self.processor).__name__} does not say how many tokens an image takes") from None

    def count_image_tokens(self, rows: Sequence[Row]) -> np.ndarray:
        """[rows] int32: tokens that the pictures of each row become; reads the headers of their files only."""
        sizes: dict[FileRef, tuple[int, int]] = {}
        for row in rows:
            with naming(row):
                sizes |= {image: image_size(image) for image in row["images"] if image not in sizes}
        counts = np.zeros(len(rows), dtype=np.int32)
        if seen := [sizes[image] for row in rows for image in row["images"]]:
            owners = np.repeat(np.arange(len(rows)), [len(row["images"]) for row in rows])
            np.add.at(counts, owners, np.array(self.image_tokens(seen), dtype=np.int32))
        return counts

    def count_tokens(self, rows: Sequence[Row]) -> np.ndarray:
        """[rows] int32: tokens of rendered conversations after their pictures are expanded."""
        texts = []
        for row in rows:
            with naming(row):
                texts.append(self.render(row["messages"]))
        special = needs_start_token(self.processor, texts)
        ids = self.tokenizer(texts, add_special_tokens=special, return_attention_mask=False, verbose=False)
        counts = np.array([len(each) for each in ids["input_ids"]], dtype=np.int32) + self.count_image_tokens(rows)
        if self.placeholder is None:
            return counts
        return counts - np.array([len(row["images"]) for row in rows], dtype=np.int32)  # One placeholder became each.

    # --- batches to learn from

    def batch(self, rows: Sequence[Row], features: Features | None = None) -> dict[str, Tensor]:
        """Rows to `input_ids`, `attention_mask`, `labels` [B, L], `pixel_values` and what else the processor gives.

        Args:
            features: read in place of pictures by a family whose models take features.

        Raises:
            MmdoraError: naming the row, for a picture that cannot be read or a row without a label.
        """
        texts, spans, images = [], [], []
        for row in rows:
            with naming(row):
                self.check_row(row)
                messages = self.ending.added(row["messages"])
                text, answers = render_with_answers(self.processor, messages, self.ending.next_turn)
                check_places(text, self.placeholder, len(row["images"]))
                texts.append(text)
                spans.append(answers)
                images.append([open_image(image) for image in row["images"]])
        encoded = encode(self.processor, texts, images, left=False, offsets=True)
        labels = []
        for index, row in enumerate(rows):
            with naming(row):
                labels.append(labels_of(encoded, index, spans[index]))
                if all(label == IGNORE for label in labels[-1]):
                    raise MmdoraError("no token to learn (every label is masked)")
            if row.get("masked"):
                labels[-1] = [IGNORE] * len(labels[-1])
        return inputs_of(self.processor, encoded) | {"labels": torch.tensor(labels)}

    def example_batch(self, image: Image.Image, rows: int, tokens: int | None, answer: int) -> dict[str, Tensor]:
        """A batch of `rows` equal rows of one picture, for estimates; nothing of it is meant to be read.

        Args:
            tokens: of each row; None gives the prompt and `answer` tokens more.
        """
        encoded, length = self._example(image)
        more = max((tokens or length + answer) - length, 1)
        batch = {}
        for name, value in encoded.items():
            if value.shape[:2] == (1, length):
                value = torch.cat([value, value[:, -1:].expand(1, more)], 1)
            batch[name] = value.repeat(rows, *[1] * (value.ndim - 1))
        labels = batch["input_ids"].clone()
        labels[:, :length] = IGNORE
        return batch | {"labels": labels}

    def _example(self, image: Image.Image) -> tuple[dict[str, Tensor], int]:
        """One question about a picture as tensors, and its tokens."""
        question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
        text = self.render(question, generation_prompt=True)
        encoded = encode(self.processor, [text], [[image]], left=False)
        return inputs_of(self.processor, encoded), encoded["input_ids"].shape[1]

    def packing_problem(self) -> str | None:
        """Why several rows cannot share one packed row, as far as the family tells; None where they may."""
        return None

    def positions(self, model: nn.Module) -> RopeIndex | None:
        """The model's own rule of positions, where it has one; None where they are counted from 0."""
        owner = next((m for m in (model, getattr(model, "model", None)) if hasattr(m, "get_rope_index")), None)
        return RopeIndex(owner) if owner is not None else None

    def counted(self, batch: Mapping[str, Tensor]) -> int:
        """Tokens of a batch, padding left out."""
        return int(batch["attention_mask"].sum())

    def shown(self, batch: Mapping[str, Tensor], row: int) -> Iterator[Shown]:
        """A row of a batch as texts: what is read, pictures as their number of tokens, what is learned."""
        image = getattr(self.processor, "image_token_id", None)
        columns = zip(batch["input_ids"][row], batch["labels"][row], batch["attention_mask"][row], strict=True)
        tokens = [(int(token), int(label) != IGNORE, int(token) == image) for token, label, seen in columns if seen]
        for (learned, is_image), run in groupby(tokens, key=lambda token: token[1:]):
            ids = [token[0] for token in run]
            if is_image:
                yield f"{self.placeholder} × {len(ids)}", "image"
            else:
                yield self.tokenizer.decode(ids), "learned" if learned else "text"

    def feature_tower(self, model: Any) -> nn.Module | None:
        """The tower whose features the model's forward takes in place of pixels; None where it takes none."""
        return None

    # --- generation

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Any:
        """Prompts ready for `generate`: padded on the left, so that each ends where its answer begins.

        Raises:
            MmdoraError: for a prompt with a clip as features.
        """
        if any(prompt.features is not None for prompt in prompts):
            raise MmdoraError("a clip as features, which VL-BART reads and this model does not")
        texts = [self.render(prompt.messages, generation_prompt=True) for prompt in prompts]
        return encode(self.processor, texts, [prompt.images for prompt in prompts], left=True)

    def encode_conversation(self, prompt: Prompt) -> Any:
        """One conversation whose last message may be an answer, for its logits; nothing is padded."""
        asks = prompt.messages[-1]["role"] != "assistant"
        text = self.render(prompt.messages, generation_prompt=asks)
        return encode(self.processor, [text], [prompt.images], left=False)

    def generation(self, model: Any, max_new_tokens: int, beams: int = 1) -> dict[str, Any]:
        """Arguments of `generate`: greedy or by beams, stopping where the model's own config says.

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
        """Those of a task's fixed answers that generation is held to; a model that follows instructions is free."""
        return ()

    def only(self, answers: Sequence[str]) -> dict[str, Any]:
        """Arguments of `generate` by which one of the answers comes out."""
        raise MmdoraError(f"answers: {type(self.processor).__name__} serves a model that cannot be held to some")

    def new_ids(self, ids: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """What `generate` added to its inputs: ids [B, T] without the prompt."""
        return ids[:, inputs["input_ids"].shape[1] :]

    def shares_prefix(self, model: Any, inputs: Mapping[str, Any]) -> bool:
        """Whether the part up to the last picture may be read once for several prompts about that picture."""
        return False


@contextmanager
def naming(row: Row) -> Iterator[None]:
    """Puts the name of a row before an MmdoraError that is raised inside."""
    try:
        yield
    except MmdoraError as error:
        raise MmdoraError(f"record {row['id']}: {error}") from None
