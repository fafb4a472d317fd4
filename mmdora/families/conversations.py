"""Conversations of a family: what a record may hold, how it becomes text, where its answers stand and end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from PIL import Image

from mmdora.errors import MmdoraError
from mmdora.families import thoughts
from mmdora.families.chat import Chat, said
from mmdora.families.ending import Ending, end_tokens, written_end
from mmdora.families.template import check_places, check_texts, encode, with_question
from mmdora.families.videos import Videos
from mmdora.records.row import Row, videos_of
from mmdora.records.turns import Messages
from mmdora.records.videos import Video


class Conversations:
    """How a family writes conversations; see `Family`."""

    one_stream = True
    """Whether prompt and answer form one sequence of tokens, in which each token is predicted from those before it."""
    sees = True
    """Whether it reads pictures."""
    reads_conversations = True
    """Whether `apply_chat_template` of its stock processor reads the pictures of a conversation, too."""
    image_id: int | None = None
    """The token that stands for a picture's features; None if there is none."""
    videos: Videos | None = None
    """How its processor writes videos; None if it takes none."""

    def __init__(self, processor: Any):
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.placeholder: str | None = getattr(processor, "image_token", None)
        self.image_id = getattr(processor, "image_token_id", None)
        self.videos = Videos.of(processor)

    # --- what a record may contain

    def check_row(self, row: Row) -> None:
        """Raise an MmdoraError if this family cannot learn the row; no file is opened."""
        check_texts(row["messages"], self.placeholder)
        if self.videos is not None and videos_of(row):
            check_texts(row["messages"], self.videos.placeholder)
        self.check_question(row)

    def check_question(self, row: Row) -> None:
        """Raise an MmdoraError if this family cannot be asked the row's question; no file is opened."""
        if row["features"] is not None:
            raise MmdoraError("a clip as features, which only a VL-BART can read; leave such records out")
        self.check_videos(row["messages"])

    def check_videos(self, messages: Messages) -> None:
        """Raise an MmdoraError if a conversation has a video, and this family cannot read videos."""
        if self.videos is None and any(part["type"] == "video" for each in messages for part in each["content"]):
            raise MmdoraError(
                f"holds a video, and {type(self.processor).__name__} takes none; leave such records out, give single "
                "frames as pictures, or choose a base whose processor takes videos (Qwen-VL, SmolVLM, InternVL, …)"
            )

    def check_pictures(self, messages: Messages, images: int) -> None:
        """Raise an MmdoraError if the chat template does not write each picture and video of a conversation.

        Args:
            messages: the conversation.
            images: number of pictures that belong to the conversation.
        """
        videos = sum(part["type"] == "video" for message in messages for part in message["content"])
        if (images and self.placeholder is not None) or videos:
            self._check_written(self.render(messages), images if self.placeholder is not None else 0, videos)

    def _check_written(self, text: str, images: int, videos: int) -> None:
        check_places(text, self.placeholder, images)
        if self.videos is not None:
            check_places(text, self.videos.placeholder, videos, "video")

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
            return thoughts.render_with_thought(self.write, added, ends, ending.next_turn)
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

    def read(self, texts: list[str], images: list[list[Image.Image]], *, left: bool, offsets: bool = False) -> Any:
        """Texts and their pictures as the processor's tensors; the arguments are those of `template.encode`."""
        return encode(self.processor, texts, images, left=left, offsets=offsets)

    def _read(
        self,
        texts: list[str],
        images: list[list[Image.Image]],
        videos: Iterable[list[Video]] | None,
        *,
        left: bool,
        offsets: bool = False,
    ) -> Any:
        """As `read`, with the videos of each text, which are taken from `videos` one text after the other."""
        if videos is None or self.videos is None:
            return self.read(texts, images, left=left, offsets=offsets)
        return self.videos.read(texts, images, videos, left=left, offsets=offsets)
