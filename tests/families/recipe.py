"""What a tiny checkpoint of a family is made from, and the sizes that the families share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).with_name("templates")
OWN = "the processor's own"
"""In place of a template's name: the processor brings its template along."""
SPARE = 8
"""Rows of the embedding behind the last token, as most checkpoints of the hub have some."""
CLIP: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
QWEN: dict[str, Any] = {
    "depth": 2,
    "num_heads": 2,
    "patch_size": 4,
    "in_channels": 3,
    "hidden_size": 16,
    "intermediate_size": 32,
}
QWEN_IMAGES: dict[str, Any] = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}


@dataclass(frozen=True)
class Recipe:
    """How to make a tiny checkpoint.

    Attributes:
        processor: makes the processor of the family's own class.
        config: makes the keys of the config from the processor.
        stops: the tokens at which the family's generation config stops; none leaves the config's end token.
        template: name of its chat template in `templates/`, or `OWN`; None if checkpoints of the family have none.
        model: model type in the registry of transformers; by default the recipe's name.
        needs: packages that its processor needs and that mmdora does not install.
        parts: the parts of the family that have a layer to adapt.
        full: its parts that can only be trained in full, such as a projector of one loose parameter.
        several: whether a conversation may have two pictures.
        without: whether it may have none.
        turns: whether it may have two turns.
        broken: why the family cannot compute in a released transformers, which ends its way before training.
        since: the oldest transformers with whose processor it can be trained, if older ones have the family too.
    """

    processor: Callable[[], Any]
    config: Callable[[Any], dict[str, Any]]
    stops: tuple[str, ...] = ()
    template: str | None = None
    model: str | None = None
    needs: tuple[str, ...] = ()
    parts: tuple[str, ...] = ("vision", "projector", "language")
    full: tuple[str, ...] = ()
    several: bool = True
    without: bool = True
    turns: bool = True
    broken: str | None = None
    since: str = "0"

    def make_processor(self) -> Any:
        """The processor with its chat template."""
        processor = self.processor()
        if self.template is not None and self.template != OWN:
            processor.chat_template = (TEMPLATES / f"{self.template}.jinja").read_text(encoding="utf-8")
        return processor


def text(processor: Any, **changes: Any) -> dict[str, Any]:
    """A language model of two layers whose vocabulary holds the processor's tokens."""
    words = processor.tokenizer
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 4096}
    ids = {"pad_token_id": words.pad_token_id, "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    return {"vocab_size": len(words) + SPARE, **sizes, **ids, **changes}


def ids(processor: Any, **named: str) -> dict[str, int]:
    """Keys of a config -> the id of a token."""
    return {key: processor.tokenizer.convert_tokens_to_ids(word) for key, word in named.items()}
