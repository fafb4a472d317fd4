"""Writes tiny random language models of the official classes, around the small tokenizer of tiny-llava.

The chat templates below `families/templates` are those of the hub's Llama 3, Qwen2.5, Qwen3 and Gemma repositories, as
https://github.com/huggingface/trl keeps copies of them (trl/chat_templates, commit f2cd577).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from mmdora.models.locate import resolve

TEMPLATES = Path(__file__).parent / "families" / "templates"
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512}
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
BASES: dict[str, tuple[str, str | None, tuple[str, ...], dict[str, Any]]] = {
    "llama": ("LlamaConfig", None, (), {"pad_token": None}),
    "llama3": (
        "LlamaConfig",
        "llama3",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        {"pad_token": None, "eos_token": "<|eot_id|>"},
    ),
    "qwen2": ("Qwen2Config", "qwen2_5", CHATML, {"bos_token": None, "eos_token": "<|im_end|>"}),
    "qwen3": ("Qwen3Config", "qwen3", CHATML, {"bos_token": None, "eos_token": "<|im_end|>"}),
    "gemma": ("GemmaConfig", "gemma", ("<start_of_turn>", "<end_of_turn>"), {}),
    "gemma2": ("Gemma2Config", "gemma", ("<start_of_turn>", "<end_of_turn>"), {}),
}
"""Name -> config class, template (None: a base that was never tuned to chat), added tokens, special tokens."""


def tokenizer_of(name: str) -> Any:
    """The tokenizer of one of `BASES`."""
    _, template, words, special = BASES[name]
    made: Any = AutoTokenizer.from_pretrained(resolve("tiny-llava"))
    made._processor_class = None  # It is no longer part of a processor.
    made.init_kwargs.pop("processor_class", None)
    made.add_special_tokens({"additional_special_tokens": list(words)})
    for key, value in special.items():
        setattr(made, key, value)
    if name == "llama":  # LLaMA's own tokenizer begins every text with its start token.
        start = ("<s>", made.bos_token_id)
        made.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[start])
    made.chat_template = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8") if template else None
    return made


def write_base(name: str, folder: Path) -> str:
    """Write a model and its tokenizer as transformers saves them; gives the folder's name."""
    torch.manual_seed(0)
    tokenizer = tokenizer_of(name)
    more = {"sliding_window": 64} if name == "gemma2" else {"tie_word_embeddings": name == "qwen2"}
    config = getattr(transformers, BASES[name][0])(vocab_size=len(tokenizer), **SMALL, **more)
    model: Any = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
