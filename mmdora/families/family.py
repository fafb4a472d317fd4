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
from mmdora.families import thoughts
from mmdora.families.chat import Chat, said
from mmdora.families.ending import Ending, end_tokens, written_end
from mmdora.families.expansion import Expansions, Size
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
    render_with_answers,
    with_question,
)
from mmdora.records.images import FileRef, image_size, open_image
from mmdora.records.row import Row
from mmdora.records.turns import Messages

Features = Callable[[FileRef], Tensor]
"""A function that gives the features [T, F] that a tower computes for a picture."""
Shown = tuple[str, str]
"""A piece of text and its kind: "text", "image" (a run of image tokens) or "learned"."""


class Family:
    """How a family of models reads conversations and pictures, learns answers and writes them.

    This class works from the processor and the model alone. A subclass overrides what its family does differently.

    Args:
        processor: a `transformers` processor with `tokenizer`, `image_processor` and a chat template.
    """

    one_stream = True
    """Whether prompt and answer form one sequence of tokens, in which each token is predicted from those before it."""
    sees = True
    """Whether it reads pictures."""
    reads_conversations = True
    """Whether `apply_chat_template` of its stock processor reads the pictures of a conversation, too."""
    image_id: int | None = None
    """The token that stands for a picture's features; None if there is none."""

    def __init__(self, processor: Any):
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.placeholder: str | None = getattr(processor, "image_token", None)
        self.image_id = getattr(processor, "image_token_id", None)

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

    # --- what a record may contain

    def check_row(self, row: Row) -> None:
        """Raise an MmdoraError if this family cannot learn the row; no file is opened."""
        check_texts(row["messages"], self.placeholder)
        self.check_question(row)

    def check_question(self, row: Row) -> None:
        """Raise an MmdoraError if this family cannot be asked the row's question; no file is opened."""
        if row["features"] is not None:
            raise MmdoraError("a clip as features, which only a VL-BART can read; leave such records out")

    def check_pictures(self, messages: Messages, images: int) -> None:
        """Raise an MmdoraError if the chat template does not write each picture of a conversation.

        Args:
            messages: the conversation.
            images: number of pictures that belong to the conversation.
        """
        if images and self.placeholder is not None:
            check_places(self.render(messages), self.placeholder, images)

    def check_task(self, name: str) -> None:
        """Raise an MmdoraError if this family has a prompt for each task it knows, but none for this task."""

    # --- conversations

    def render(self, messages: Messages, *, generation_prompt: bool = False) -> str:
        """The conversation as the text that the model reads; each picture is still a placeholder."""
        return self.write([self.ending.added(messages)], generation_prompt)[0]

    def write(self, conversations: list[Messages], generation_prompt: bool) -> list[str]:
        """Conversations as the chat template writes them, before an end that it lacks is added.

        This is the one place where a conversation becomes text: training, generation and counting go through it.
        """
        return self.chat.write(conversations, generation_prompt)

    @cached_property
    def chat(self) -> Chat:
        """The processor's chat template."""
        return Chat(self.processor, end_tokens(self.tokenizer))

    def render_with_answers(self, messages: Messages) -> tuple[str, list[tuple[int, int]]]:
        """The conversation as the model reads it, and the character spans [start, end) of its answers, ends included.

        Raises:
            MmdoraError: if answers cannot be told from prompts.
        """
        ending, ends, added = self.ending, end_tokens(self.tokenizer), self.ending.added(messages)
        if thoughts.thinks(self.processor):
            return render_with_answers(self.write, added, ends, ending.next_turn, last_alone=True)
        template = str(getattr(self.processor, "chat_template", None))
        return thoughts.render_at_once(self.write, added, ends, ending.next_turn, template)

    def thought_notes(self) -> list[str]:
        """A sentence for the user before training, if the model thinks or is asked with an empty thought."""
        return thoughts.notes(self.processor, self.render([said("user", "a")], generation_prompt=True))

    def asked(self, messages: Messages, task: str | None, instruct: Callable[[str], str]) -> Messages:
        """The conversation with its last question worded for a task.

        Args:
            task: name of the task, for families that have their own prompt for each task.
            instruct: rewords the question for models that follow instructions.
        """
        return with_question(messages, instruct)

    @cached_property
    def ending(self) -> Ending:
        """The end of an answer, which is found by rendering a short conversation."""
        answered = [said("user", "a"), said("assistant", "b")]
        text, longer = self.write([answered, [*answered, said("user", "c")]], False)
        written, end = written_end(text, end_tokens(self.tokenizer)), self.tokenizer.eos_token
        # DeepSeek-VL's template writes the end between turns alone, so the last answer lacks it.
        between = written is None and end is not None and longer[len(text.rstrip()) :].lstrip().startswith(end)
        return Ending(self.tokenizer, written, end if between else None)

    def notes(self, generation_config: Any) -> list[str]:
        """Sentences for the user before training, about how answers begin and end.

        Args:
            generation_config: the base's; None if it has none.
        """
        return [*self.chat.notes(), *self.thought_notes(), *self.ending.notes(generation_config)]

    # --- lengths in tokens

    @cached_property
    def expansions(self) -> Expansions:
        """What the processor writes in place of pictures."""
        return Expansions(self.processor, self.placeholder, self.read)

    def image_tokens(self, sizes: Sequence[Size]) -> list[int]:
        """The number of tokens of pictures that stand alone in their conversations, from their (height, width).

        Raises:
            MmdoraError: if the processor cannot read pictures of these sizes.
        """
        if self.expansions.has_rule:
            return self.expansions.tokens(sizes)
        return [self.expansions.tokens([size])[0] for size in sizes]

    def count_image_tokens(self, rows: Sequence[Row]) -> np.ndarray:
        """[rows] int32: image tokens of each row; only the headers of the image files are read."""
        sizes = self._sizes(rows)
        if self.expansions.has_rule:
            every = self.expansions.tokens([size for own in sizes for size in own]) if any(sizes) else []
            counts, owners = np.zeros(len(rows), dtype=np.int32), np.repeat(np.arange(len(rows)), list(map(len, sizes)))
            np.add.at(counts, owners, np.array(every, dtype=np.int32))
            return counts
        return np.array([sum(self.expansions.tokens(own)) for own in sizes], dtype=np.int32)

    def _sizes(self, rows: Sequence[Row]) -> list[list[Size]]:
        """The (height, width) in pixels of the pictures of each row."""
        known: dict[FileRef, Size] = {}
        for row in rows:
            with naming(row):
                known |= {image: image_size(image) for image in row["images"] if image not in known}
        return [[known[image] for image in row["images"]] for row in rows]

    def count_tokens(self, rows: Sequence[Row]) -> np.ndarray:
        """[rows] int32: tokens of each rendered conversation, with its pictures expanded to their image tokens."""
        texts = []
        for row in rows:
            with naming(row):
                texts.append(self.render(row["messages"]))
        if self.placeholder is None or self.expansions.has_rule:
            more = self.count_image_tokens(rows)
            # The text is counted with one placeholder per picture, which the image tokens replace.
            more -= np.array([len(row["images"]) * (self.placeholder is not None) for row in rows], dtype=np.int32)
        else:
            written = [self._expanded(*each) for each in zip(rows, texts, self._sizes(rows), strict=True)]
            texts, more = [text for text, _ in written], np.array([count for _, count in written], dtype=np.int32)
        special = needs_start_token(self.processor, texts)
        ids = self.tokenizer(texts, add_special_tokens=special, return_attention_mask=False, verbose=False)
        return np.array([len(each) for each in ids["input_ids"]], dtype=np.int32) + more

    def _expanded(self, row: Row, text: str, sizes: Sequence[Size]) -> tuple[str, int]:
        with naming(row):
            check_places(text, self.placeholder, len(sizes))
            return self.expansions.into(text, sizes)

    # --- batches to learn from

    def batch(self, rows: Sequence[Row], features: Features | None = None) -> dict[str, Tensor]:
        """Turn rows into `input_ids`, `attention_mask`, `labels` [B, L], `pixel_values` and the processor's other keys.

        Args:
            features: gives features in place of pictures, in families whose models take features.

        Raises:
            MmdoraError: naming the row, for a picture that cannot be read or a row without a label.
        """
        texts, spans = self._written(rows)
        images = []
        for row in rows:
            with naming(row):
                images.append([open_image(image) for image in row["images"]])
        encoded = self.read(texts, images, left=False, offsets=True)
        labels = self._labels(rows, encoded, texts, spans)
        for index, row in enumerate(rows):
            if row.get("masked"):
                labels[index] = [IGNORE] * len(labels[index])
        return inputs_of(self.processor, encoded) | {"labels": torch.tensor(labels)}

    def check_learnable(self, rows: Sequence[Row]) -> None:
        """Raise an MmdoraError, naming the row, if `batch` would refuse a row for its text; no picture is opened."""
        texts, spans = self._written(rows)
        special = needs_start_token(self.processor, texts)
        encoded = self.tokenizer(texts, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        self._labels(rows, encoded, texts, spans)

    def read(self, texts: list[str], images: list[list[Image.Image]], *, left: bool, offsets: bool = False) -> Any:
        """Texts and their pictures as the processor's tensors; the arguments are those of `template.encode`."""
        return encode(self.processor, texts, images, left=left, offsets=offsets)

    def _written(self, rows: Sequence[Row]) -> tuple[list[str], list[list[tuple[int, int]]]]:
        """Each row as text, and the character spans of its answers."""
        texts, spans = [], []
        for row in rows:
            with naming(row):
                self.check_row(row)
                text, answers = self.render_with_answers(row["messages"])
                check_places(text, self.placeholder, len(row["images"]))
                texts.append(text)
                spans.append(answers)
        return texts, spans

    def _labels(
        self, rows: Sequence[Row], encoded: Any, texts: list[str], spans: list[list[tuple[int, int]]]
    ) -> list[list[int]]:
        """The labels of each row, of which some have to be learned."""
        labels = []
        for index, row in enumerate(rows):
            with naming(row):
                labels.append(labels_of(encoded, index, texts[index], spans[index]))
                if all(label == IGNORE for label in labels[-1]):
                    raise MmdoraError("no token to learn (every label is masked)")
        return labels

    def example_batch(self, image: Image.Image, rows: int, tokens: int | None, answer: int) -> dict[str, Tensor]:
        """A batch of `rows` equal rows with one picture each, for estimates of memory; its text has no meaning.

        Args:
            tokens: tokens of each row; None takes the prompt's tokens and `answer` more.
            answer: tokens of the answer, if `tokens` is None.
        """
        encoded, length = self.example_question(image)
        more = max((tokens or length + answer) - length, 1)
        batch = {}
        for name, value in encoded.items():
            if value.shape[:2] == (1, length):
                value = torch.cat([value, value[:, -1:].expand(-1, more, *value.shape[2:])], 1)
            batch[name] = value.repeat(rows, *[1] * (value.ndim - 1))
        labels = batch["input_ids"].clone()
        labels[:, :length] = IGNORE
        return batch | {"labels": labels}

    def example_question(self, image: Image.Image) -> tuple[dict[str, Tensor], int]:
        """One question about a picture as tensors, and its number of tokens."""
        question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
        text = self.render(question, generation_prompt=True)
        encoded = self.read([text], [[image]], left=False)
        return inputs_of(self.processor, encoded), encoded["input_ids"].shape[1]

    def packing_problem(self) -> str | None:
        """The reason why rows of this family cannot be packed together; None if they can."""
        return None

    def positions(self, model: nn.Module) -> RopeIndex | None:
        """The model's own rule of positions; None if it has none and positions are counted from 0."""
        owner = next((m for m in (model, getattr(model, "model", None)) if hasattr(m, "get_rope_index")), None)
        return RopeIndex(owner) if owner is not None else None

    def counted(self, batch: Mapping[str, Tensor]) -> int:
        """The number of tokens in a batch, without padding."""
        return int(batch["attention_mask"].sum())

    def shown(self, batch: Mapping[str, Tensor], row: int) -> Iterator[Shown]:
        """Yield a row of a batch as pieces of text for people; a picture is written as its number of tokens."""
        columns = zip(batch["input_ids"][row], batch["labels"][row], batch["attention_mask"][row], strict=True)
        image = self.image_id
        tokens = [(int(token), int(label) != IGNORE, int(token) == image) for token, label, seen in columns if seen]
        for (learned, is_image), run in groupby(tokens, key=lambda token: token[1:]):
            ids = [token[0] for token in run]
            if is_image:
                yield f"{self.tokenizer.decode(ids[:1])} × {len(ids)}", "image"
            else:
                yield self.tokenizer.decode(ids), "learned" if learned else "text"

    def feature_tower(self, model: Any) -> nn.Module | None:
        """The vision tower whose features the model's forward accepts instead of pixels; None if it accepts none."""
        return None

    # --- generation

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Any:
        """Encode prompts for `generate`; they are padded on the left, so that each answer follows its prompt directly.

        Raises:
            MmdoraError: if a prompt has features of a clip.
        """
        if any(prompt.features is not None for prompt in prompts):
            raise MmdoraError("a clip as features, which only a VL-BART can read; leave such records out")
        texts = [self.render(prompt.messages, generation_prompt=True) for prompt in prompts]
        return self.read(texts, [prompt.images for prompt in prompts], left=True)

    def encode_conversation(self, prompt: Prompt) -> Any:
        """Encode one conversation without padding, to compute its logits; its last message may be an answer."""
        asks = prompt.messages[-1]["role"] != "assistant"
        text = self.render(prompt.messages, generation_prompt=asks)
        return self.read([text], [prompt.images], left=False)

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


@contextmanager
def naming(row: Row) -> Iterator[None]:
    """Put the row's name in front of the message of an MmdoraError that is raised inside."""
    try:
        yield
    except MmdoraError as error:
        raise MmdoraError(f"record {row['id']}: {error}") from None
