"""VL-BART's processor: prompts by task, images or clips per sample, and the tokens that BART lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin
from transformers.processing_utils import MultiModalData

from mmdora.errors import MmdoraError
from mmdora.models.vlbart.visual import as_clip

PROMPTS = {
    **{task: f"{task}: {{}}" for task in ("vqa", "gqa", "nlvr", "caption")},
    **{task: f"{{}} {task}: " for task in ("tvqa", "how2qa", "tvc", "yc2c")},
}
"""Task -> prompt, in which {} stands for the text. VL-Adapter's own checkpoints spell that of gqa "gpa: {}"."""

CHAT_TEMPLATE = (
    "{% for message in messages if message['role'] != 'assistant' %}{{ '' if loop.first else ' ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ '' if loop.first else ' ' }}{{ part['text'] }}"
    "{% endfor %}{% endif %}{% endfor %}"
)
"""The chat template, which writes all messages but the answers. It writes no images: their tokens follow the text."""


def added_tokens(order_tokens: int = 100) -> list[str]:
    """The tokens that VL-BART adds to BART's; the last of them is the order embedding of visual token 0."""
    return [f"<extra_id_{i}>" for i in reversed(range(100))] + [
        f"<vis_extra_id_{i}>" for i in reversed(range(order_tokens))
    ]


class VLBartProcessor(ProcessorMixin):
    """Turns text with images, a clip or precomputed features into the inputs of `VLBartForConditionalGeneration`.

    Args:
        frames: number of frames of every clip of precomputed features: shorter clips get zeros at the end, and longer
            ones an adaptive max pool.
        max_images: most images in a sample.
        prompts: task -> prompt; these replace those in `PROMPTS`.
        default_task: task whose prompt is added to conversations that have none, such as questions that people type;
            None adds none.
        image_tokens: number of tokens that an image adds after the text.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        frames: int = 64,
        max_images: int = 2,
        prompts: Mapping[str, str] | None = None,
        default_task: str | None = None,
        image_tokens: int | None = None,
    ):
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        self.frames, self.max_images = frames, max_images
        self.prompts = {**PROMPTS, **(prompts or {})}
        self.default_task, self.image_tokens = default_task, image_tokens

    def __call__(  # type: ignore[override]
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        features: Any = None,
        task: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Make a batch. Samples may differ in the number of their images.

        Args:
            images: one image, or one per text, or a list of images per text, which may be empty.
            text: one text, or one per sample.
            videos: a list of frames, or one list per text; each frame becomes one token.
            features: an array, or one per text: [n, F] for a clip of n frames, [N, T, F] for N images of T tokens, None
                for a sample without features.
            task: task of all samples, or one per sample; None leaves the text unchanged.
            kwargs: arguments for the tokenizer.

        Returns:
            input_ids and attention_mask [B, L], padded on the right. Depending on the input also pixel_values
            [B, N, 3, S, S] with image_mask [B, N], or pixel_values_videos [B, n, 3, S, S] with frame_mask [B, n], or
            visual_features [B, N, T, F] with image_mask.

        Raises:
            MmdoraError: if a task is unknown, padding on the left is asked for, there are too many images, or the lists
                do not fit together.
        """
        if text is None:
            raise MmdoraError("VL-BART needs a text; give an empty one for a caption (task='caption')")
        if kwargs.get("padding_side", "right") != "right":
            raise MmdoraError("VL-BART pads on the right: its encoder counts positions from the first token")
        texts = [text] if isinstance(text, str) else list(text)
        tasks = [task] * len(texts) if task is None or isinstance(task, str) else list(task)
        _same_length(texts, tasks, "tasks")
        settings = {"padding": True, "padding_side": "right", "return_tensors": "pt", **kwargs}
        data = dict(self.tokenizer([self.prompt(*pair) for pair in zip(texts, tasks, strict=True)], **settings))
        if (longest := len(data["input_ids"][0])) > self.tokenizer.model_max_length:
            most = self.tokenizer.model_max_length
            raise MmdoraError(f"a text has {longest} tokens; the encoder of this model reads at most {most}")
        alone = isinstance(text, str)
        if images is not None:
            data |= self._pixels(_per_text(images, texts, alone, "images"), "pixel_values", "image_mask")
        if videos is not None:
            nested = [videos] if alone and not isinstance(videos[0], (list, tuple)) else videos
            data |= self._pixels(
                _per_text(nested, texts, False, "videos"), "pixel_values_videos", "frame_mask", most=None
            )
        if features is not None:
            data |= self._features([features] if alone and not isinstance(features, list) else features, texts)
        return BatchFeature(data)

    def prompt(self, text: str, task: str | None = None) -> str:
        """The text with the prompt of a task, as the encoder reads it."""
        if task is None:
            return text
        if task not in self.prompts:
            raise MmdoraError(f"unknown task {task!r}; this processor has prompts for {', '.join(self.prompts)}")
        return self.prompts[task].replace("{}", text)

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Render a conversation as in `ProcessorMixin`, and add the prompt of `default_task` if it has no prompt."""
        rendered: Any = super().apply_chat_template(conversation, *args, **kwargs)
        if self.default_task is None or kwargs.get("tokenize"):
            return rendered
        return self._asked(rendered) if isinstance(rendered, str) else [self._asked(text) for text in rendered]

    def _get_num_multimodal_tokens(self, image_sizes: Sequence[Any] | None = None, **kwargs: Any) -> MultiModalData:
        """The number of tokens of each image, as processors of `transformers` give it; here it is always the same."""
        return MultiModalData(num_image_tokens=[self.image_tokens or 0] * len(image_sizes or ()))

    def _asked(self, text: str) -> str:
        marks = [prompt.split("{}") for prompt in self.prompts.values()]
        if any(text.startswith(before) and text.endswith(after) for before, after in marks):
            return text
        return self.prompt(text, self.default_task)

    def _pixels(self, nested: list[list[Any]], name: str, mask_name: str, most: int | None = 0) -> dict[str, Tensor]:
        most = self.max_images if most == 0 else most
        longest = max(map(len, nested))
        if most is not None and longest > most:
            raise MmdoraError(f"a sample has {longest} images; this model takes at most {most}")
        if longest == 0:
            return {}
        processed: Any = self.image_processor([image for row in nested for image in row], return_tensors="pt")
        pixels = iter(processed["pixel_values"])
        batch = processed["pixel_values"].new_zeros(len(nested), longest, *processed["pixel_values"].shape[1:])
        mask = torch.zeros(len(nested), longest, dtype=torch.long)
        for index, row in enumerate(nested):
            for place in range(len(row)):
                batch[index, place] = next(pixels)
                mask[index, place] = 1
        return {name: batch, mask_name: mask}

    def _features(self, given: Sequence[Any], texts: list[str]) -> dict[str, Tensor]:
        _same_length(texts, given, "features")
        rows = [None if row is None else torch.as_tensor(row) for row in given]
        rows = [as_clip(row, self.frames)[None] if row is not None and row.ndim == 2 else row for row in rows]
        shapes = {tuple(row.shape[1:]) for row in rows if row is not None}
        if not shapes:
            return {}
        if len(shapes) > 1:
            raise MmdoraError(f"the features of one batch must have the same shape, not {sorted(shapes)}")
        longest = max(len(row) for row in rows if row is not None)
        if longest > self.max_images:
            raise MmdoraError(f"a sample has {longest} images; this model takes at most {self.max_images}")
        batch = torch.zeros(len(rows), longest, *shapes.pop())
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for index, row in enumerate(rows):
            if row is not None:
                batch[index, : len(row)] = row
                mask[index, : len(row)] = 1
        return {"visual_features": batch, "image_mask": mask}


def _per_text(given: Any, texts: list[str], alone: bool, what: str) -> list[list[Any]]:
    """One list for each text, made of a single image, a flat list or a nested list."""
    nested = list(given) if isinstance(given, (list, tuple)) else [given]
    if alone and not any(isinstance(row, (list, tuple)) for row in nested):
        nested = [nested]
    _same_length(texts, nested, what)
    return [list(row) if isinstance(row, (list, tuple)) else [] if row is None else [row] for row in nested]


def _same_length(texts: list[str], given: Sequence[Any], what: str) -> None:
    if len(given) != len(texts):
        raise MmdoraError(f"{len(texts)} texts but {len(given)} {what}; give one (or one list) per text")
