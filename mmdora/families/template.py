"""Chat templates: conversations as text, the spans of their answers, and the labels of those spans.

Training and generation render the same template with the same processor call, so the ids up to an answer are equal in
both. Tests check this.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase

from mmdora.errors import MmdoraError
from mmdora.families.ending import written_end
from mmdora.records.turns import Messages
from mmdora.records.videos import Video

PLACES = ("offset_mapping", "text_replacement_offsets", "video_metadata")
"""Names of the processor's outputs that only say where something stood in the text; no model takes them."""
IGNORE = -100
"""The label of a token that is not learned: the default `ignore_index` of `torch.nn.functional.cross_entropy`."""


Write = Callable[[list[Messages], bool], list[str]]
"""A function (conversations, whether each ends with the opening of an answer) -> texts, such as `Family.write`."""


def apply_template(
    processor: Any, conversations: list[Messages], generation_prompt: bool, **variables: Any
) -> list[str]:
    """Conversations as the chat template writes them; each image is still a placeholder.

    Args:
        variables: what the template is told beside the conversation; it ignores what it does not know.
    """
    if getattr(processor, "chat_template", None) is None:
        raise MmdoraError(
            f"{type(processor).__name__}: this base has no chat template; name a file that writes conversations "
            "in its form (data.template), or put one into its folder, as chat_template.jinja"
        )
    try:
        texts: Any = processor.apply_chat_template(
            conversations, tokenize=False, add_generation_prompt=generation_prompt, **variables
        )
        return texts
    except Exception as error:  # A template is a program of the checkpoint; jinja2 runs it in its sandbox.
        reason = " ".join(str(error).split())[:200]
        raise MmdoraError(f"the chat template fails: {type(error).__name__}: {reason}") from None


def check_texts(messages: Messages, placeholder: Any) -> None:
    """Raise an MmdoraError if a text holds the image placeholder, which the processor would take for an image.

    Args:
        placeholder: a text, or the tokenizer's `AddedToken` of it, which some processors have.
    """
    for message in messages if placeholder else ():
        for part in message["content"]:
            if str(placeholder) in part.get("text", ""):
                raise MmdoraError(
                    f"the text {part['text']!r:.60} holds the image placeholder {str(placeholder)!r}; remove it"
                )


def check_places(text: str, placeholder: str | None, images: int, what: str = "image") -> None:
    """Raise an MmdoraError unless a rendered conversation has a place for each of its images.

    Args:
        placeholder: text that marks the place of an image; None if the processor does not name one.
        what: "image" or "video".
    """
    places = images if placeholder is None else text.count(placeholder)
    if places != images:
        raise MmdoraError(
            f"holds {images} {what}{'s' * (images != 1)}, but the chat template writes {placeholder!r} "
            f"{places} times; move the {what} parts to where it does (user turns, as a rule)"
        )


def with_question(messages: Messages, word: Callable[[str], str]) -> Messages:
    """The conversation with its last question reworded by `word`."""
    *before, last = messages
    content = [dict(part) for part in last["content"]]
    texts = [part for part in content if part["type"] == "text"]
    if not texts:
        content.append({"type": "text", "text": ""})
        texts = content[-1:]
    texts[-1]["text"] = word(texts[-1]["text"])
    return [*before, last | {"content": content}]


def render_with_answers(
    write: Write, messages: Messages, ends: Sequence[str], next_turn: str | None = None, *, last_alone: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    """The rendered conversation and the character spans [start, end) of its answers, end-of-turn token included.

    The spans are found by rendering the conversation prefix by prefix, because most templates of the hub have no
    `{% generation %}` block, and the stock mask of such a template is silently empty.

    Args:
        ends: end-of-turn tokens; the template may write one of them after an answer.
        next_turn: the token that opens the next turn, where it counts as the end of the answer before it.
        last_alone: whether the last answer is the only one to find.

    Raises:
        MmdoraError: if the template does not write a conversation as a continuation of its prefix.
    """
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    answers = answers[-1:] if last_alone else answers
    before = write([messages[:i] for i in answers], True)
    cuts = sorted({*(i + 1 for i in answers), len(messages)})
    after = write([messages[:cut] for cut in cuts], False)
    text, spans = after[-1], []
    # `after` holds one text more than `before` where a conversation goes on after its last answer.
    for head, tail in zip(before, after, strict=False):
        for part in (head, tail):
            if not text.startswith(part) or len(head) >= len(tail):
                raise MmdoraError(
                    "the chat template rewrites earlier turns when a turn is added, so it is not known where the "
                    f"answers are: {_parting(part, text)}; give the base a chat_template.jinja that only adds turns"
                )
        end = _end_of_turn(ends, text, len(head), len(tail))
        if next_turn is not None and text[end:].lstrip().startswith(next_turn):
            end = text.index(next_turn, end) + len(next_turn)
        spans.append((len(head), end))
    return text, spans


SEEN = 30
"""Characters around the place where two texts part that an error shows."""


def _parting(part: str, whole: str) -> str:
    """Where a text parts from the longer one that should begin with it, in words."""
    pairs = zip(part, whole, strict=False)
    place = next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(part), len(whole)))
    one, other = (text[max(place - SEEN, 0) : place + SEEN] for text in (part, whole))
    return f"it writes {one!r} first, and later {other!r}"


def _end_of_turn(tokens: Sequence[str], text: str, start: int, end: int) -> int:
    """The end of a turn without the blank that ChatML-like templates write after the end-of-turn token."""
    turn = text[start:end]
    return start + len(turn.rstrip()) if written_end(turn, tokens) else end


def encode(
    processor: Any,
    texts: list[str],
    images: list[list[Image.Image]],
    *,
    left: bool,
    offsets: bool = False,
    videos: Sequence[Video] = (),
) -> Any:
    """Rendered texts, their images and their videos as padded tensors (input_ids [B, L], pixel_values, …).

    Args:
        left: pad on the left (generation) or on the right (training).
        offsets: whether to add `offset_mapping`, and `text_replacement_offsets` (the place of each expanded image), as
            lists.
        videos: the videos of all texts, in order.
    """
    if isinstance(processor, PreTrainedTokenizerBase):
        encoded = processor(
            texts,
            padding=True,
            padding_side="left" if left else "right",
            add_special_tokens=needs_start_token(processor, texts),
            return_offsets_mapping=offsets,
        )
        return _as_tensors(processor, encoded)
    tensors: dict[str, Any] = {"return_tensors": "pt"}
    if offsets:
        # The ids become tensors below, because the stock conversion to tensors goes through every offset twice.
        tensors = {"text_kwargs": {"return_tensors": None}, "images_kwargs": tensors}
        tensors |= {"return_offsets_mapping": True, "return_text_replacement_offsets": True}
    if videos:
        given = {"do_sample_frames": False, "video_metadata": [video.sampling.metadata() for video in videos]}
        tensors["videos_kwargs"] = given | ({"return_tensors": "pt"} if offsets else {})
        tensors["videos"] = [video.pixels for video in videos]
    encoded = processor(
        text=texts,
        images=images if any(images) else None,
        padding=True,
        padding_side="left" if left else "right",
        add_special_tokens=needs_start_token(processor, texts),
        **tensors,
    )
    return _as_tensors(processor, encoded) if offsets else encoded


def _as_tensors(processor: Any, encoded: Any) -> Any:
    """Convert the outputs of a processor as its `return_tensors="pt"` would, except for those in `PLACES`.

    Processors give the text (ids, masks) as lists, and may give what belongs to both text and images as numpy arrays,
    such as `cross_attention_mask` of Llama 3.2 Vision.

    Raises:
        MmdoraError: if a value has no shape that a tensor could have.
    """
    places = {name: encoded[name] for name in PLACES if name in encoded}
    values = {name: value for name, value in encoded.items() if name not in places}
    try:
        skipped = getattr(processor, "skip_tensor_conversion", None)
        return BatchFeature(values, tensor_type="pt", skip_tensor_conversion=skipped) | places
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise MmdoraError(f"{type(processor).__name__}: {reason}; this model cannot be trained") from None


def inputs_of(processor: Any, encoded: Mapping[str, Any]) -> dict[str, Tensor]:
    """The outputs of a processor that go to the model's forward: all but those in `PLACES`.

    Raises:
        MmdoraError: if a value is no tensor. Leaving it out would change what the model learns from.
    """
    inputs = {name: value for name, value in encoded.items() if name not in PLACES and value is not None}
    for name, value in inputs.items():
        if not isinstance(value, Tensor):
            raise MmdoraError(
                f"{type(processor).__name__} gives {name!r} as {type(value).__name__}, which cannot be put into a "
                "batch of tensors; this model cannot be trained"
            )
    return inputs


def needs_start_token(processor: Any, texts: list[str]) -> bool:
    """Whether the tokenizer has to add the start token, that is, whether the template does not write it itself."""
    start = getattr(processor, "tokenizer", processor).bos_token
    return not (start and texts[0].startswith(start))


def labels_of(encoded: Any, row: int, text: str, spans: list[tuple[int, int]]) -> list[int]:
    """Labels of one row: its ids inside the answer spans, `IGNORE` elsewhere.

    Args:
        encoded: the result of `encode(..., offsets=True)`, or of the tokenizer with `return_offsets_mapping`, in which
            images are not expanded.
        text: the row as it was given to the processor.
        spans: character spans of its answers in `text`, before image placeholders were expanded.

    Raises:
        MmdoraError: if a token lies across the start of an answer, because generation would then see other ids than
            training; if the processor has written more text than it tells, because the spans would then be wrong.
    """
    expanded = (encoded.get("text_replacement_offsets") or [[]] * (row + 1))[row]
    ends = [item["span"][1] for item in expanded]
    gained = [0] + [item["new_span"][1] - item["span"][1] for item in expanded]
    ids = torch.as_tensor(encoded["input_ids"][row]).tolist()
    offsets = encoded["offset_mapping"][row]
    if max((end for _, end in offsets), default=0) > len(text) + gained[-1]:
        raise MmdoraError(
            "the processor adds text to the conversation and does not tell where, so its answers cannot be found; "
            f"transformers {version('transformers')} may be too old for this model: pip install -U transformers"
        )
    labels = [IGNORE] * len(ids)
    position = 0
    for span in spans:
        start, end = (char + gained[bisect.bisect_right(ends, char)] for char in span)
        while position < len(offsets) and (offsets[position][1] <= start or offsets[position][1] == 0):
            position += 1
        if position < len(offsets) and offsets[position][0] < start:
            raise MmdoraError(
                "one token holds the end of the prompt and the start of the answer; the chat template "
                "needs a space or a line break between them"
            )
        while position < len(offsets) and start <= offsets[position][0] < end:
            labels[position] = ids[position]
            position += 1
    return labels
