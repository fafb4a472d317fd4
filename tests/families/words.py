"""Small tokenizers that have a family's own special tokens, trained on a few sentences when they are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = (
    "What colour is the square? The square is red and the circle is blue.",
    "Describe the picture. Is there a green circle? yes no",
    "Which of the two pictures shows more shapes? the first one",
)
"""What the merges are learned from; any other text becomes bytes."""
SIZE = 400
"""Entries before the special tokens: 256 bytes and what the sentences give."""


def tokenizer(
    *,
    bos: str | None = None,
    eos: str,
    pad: str,
    named: Mapping[str, str] | None = None,
    words: Sequence[str] = (),
    adds_bos: bool = False,
) -> Any:
    """A byte-level tokenizer.

    Args:
        bos: start token; None if the family has none.
        eos: end token of a text, which need not be that of a turn.
        pad: padding token.
        named: tokens that the family's processor asks the tokenizer for by name, such as `image_token`.
        words: further special tokens.
        adds_bos: whether the tokenizer puts the start token before a text, as those of Llama and Gemma do.
    """
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=SIZE, initial_alphabet=alphabet))
    special = [*filter(None, (pad, bos, eos)), *(named or {}).values(), *words]
    inner.add_special_tokens(list(dict.fromkeys(special)))
    if adds_bos and bos:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, inner.token_to_id(bos))]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        extra_special_tokens=dict(named or {}),
        clean_up_tokenization_spaces=False,
    )
    made.add_special_tokens({"additional_special_tokens": list(words)})
    return made
