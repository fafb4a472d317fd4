"""What a processor writes in place of a picture, and how many tokens that takes, from the sizes of pictures alone.

Most processors have a rule for it (`_get_num_multimodal_tokens`). The rule is used where it is right for a few sizes of
pictures and where what is written begins and ends with special tokens, so that its tokens can be added to those of the
text around. Any other processor is asked with a blank picture of the same size, and its answer is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from PIL import Image

from mmdora.errors import MmdoraError

Size = tuple[int, int]
"""(height, width) of a picture in pixels."""
PROBES: tuple[Size, ...] = ((40, 30), (336, 336), (180, 700))
"""Sizes for which a rule is compared with what the processor writes: small, square and wide."""


class Written(NamedTuple):
    """What a processor writes in place of one picture.

    Attributes:
        text: the text; None if the processor does not tell it, and then nothing but the number of tokens is known.
        tokens: number of its tokens.
    """

    text: str | None
    tokens: int


class Expansions:
    """What a processor writes in place of pictures.

    Args:
        processor: a processor of transformers.
        placeholder: text that marks the place of a picture; None if the family writes nothing in its place.
        read: function that gives texts and pictures to the processor, as `Family.read` does.
    """

    def __init__(self, processor: Any, placeholder: str | None, read: Callable[..., Any]):
        self.processor, self.placeholder, self._read = processor, placeholder, read
        self._kept: dict[tuple[Size, ...], list[Written]] = {}

    def tokens(self, sizes: Sequence[Size]) -> list[int]:
        """The number of tokens of each picture of one conversation.

        Raises:
            MmdoraError: if the processor cannot read pictures of these sizes.
        """
        return self._by_rule(sizes) if self.has_rule else [written.tokens for written in self.written(sizes)]

    def written(self, sizes: Sequence[Size]) -> list[Written]:
        """What is written in place of each picture of one conversation, by asking the processor."""
        if self.placeholder is None:
            return [Written(None, 0)] * len(sizes)
        if len(sizes) > 1 and not self.depend_on_company:
            return [written for size in sizes for written in self.written([size])]
        key = tuple(sizes)
        if key not in self._kept:
            self._kept[key] = self._asked(key)
        return self._kept[key]

    def into(self, text: str, sizes: Sequence[Size]) -> tuple[str, int]:
        """A rendered conversation with what is written for its pictures, and the number of tokens to add to its own."""
        more, parts = 0, text.split(self.placeholder) if self.placeholder else [text]
        out = parts[:1]
        for written, part in zip(self.written(sizes), parts[1:], strict=True):
            out += [self.placeholder or "" if written.text is None else written.text, part]
            more += written.tokens - 1 if written.text is None else 0
        return "".join(out), more

    @cached_property
    def has_rule(self) -> bool:
        """Whether the processor's own rule gives what it writes."""
        if not hasattr(self.processor, "_get_num_multimodal_tokens"):
            return False
        if self.placeholder is None:
            return True
        try:
            foretold = self._by_rule(PROBES)
        except Exception:  # The rule of some families reads settings that their processor does not have.
            return False
        one_by_one = [self._asked((size,))[0] for size in PROBES]
        if [written.tokens for written in one_by_one] != foretold or self.depend_on_company:
            return False
        special = tuple(token.content for token in self.processor.tokenizer.added_tokens_decoder.values())
        texts = [written.text for written in one_by_one if written.text is not None]
        return all(text.startswith(special) and text.endswith(special) for text in texts)

    @cached_property
    def depend_on_company(self) -> bool:
        """Whether a picture is written otherwise beside others; LLaVA-OneVision cuts only a single one into tiles."""
        try:
            return self._asked(PROBES[-2:]) != [self._asked((size,))[0] for size in PROBES[-2:]]
        except MmdoraError:  # A family that takes a single picture refuses such a conversation by its own words.
            return False

    def _by_rule(self, sizes: Sequence[Size]) -> list[int]:
        return list(self.processor._get_num_multimodal_tokens(image_sizes=list(sizes)).num_image_tokens)

    def _asked(self, sizes: tuple[Size, ...]) -> list[Written]:
        blank = [Image.new("RGB", (width, height)) for height, width in sizes]
        assert self.placeholder is not None
        words = self.processor.tokenizer
        # Mllama's processor writes a start token where there is none, so the text has one already.
        text = (words.bos_token or "") + self.placeholder * len(sizes)
        try:
            encoded = self._read([text], [blank], left=False, offsets=True)
        except Exception as error:  # It is the processor's own code, of a form that is not known here.
            reason = " ".join(str(error).split())[:200]
            shown = ", ".join(f"{width}x{height}" for height, width in sizes)
            raise MmdoraError(f"{type(self.processor).__name__} cannot read pictures of {shown}: {reason}") from None
        replaced = (encoded.get("text_replacement_offsets") or [[]])[0]
        if len(replaced) == len(sizes):
            texts = [item["replacement"] for item in replaced]
            return [Written(each, len(words(each, add_special_tokens=False)["input_ids"])) for each in texts]
        alone = len(words(text, add_special_tokens=False)["input_ids"])
        return [Written(None, 1 + (encoded["input_ids"].shape[1] - alone) // len(sizes))] * len(sizes)
