"""Measures the logits of a model, how far two models' logits differ, and how far rounding alone changes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmdora.export.rounding import half_step
from mmdora.families import Prompt, family_of
from mmdora.predict.answers import generate
from mmdora.records.turns import prompt_messages


@dataclass(frozen=True)
class Outputs:
    """The logits and greedy answers of a model for some conversations."""

    logits: list[Tensor]  # per row [text positions, vocabulary], fp32 on the CPU
    ids: list[Tensor]  # per row [positions]
    texts: list[str] | None


@torch.inference_mode()
def outputs_of(model: Any, processor: Any, asked: list[Prompt], *, text: bool) -> Outputs:
    """Compute logits one row at a time, without padding and with little memory; with `text` also greedy answers."""
    logits, ids = [], []
    family = family_of(processor)
    for prompt in asked:
        inputs = family.encode_conversation(prompt).to(model.device)
        tokens = inputs.get("decoder_input_ids", inputs["input_ids"])[0]
        image = getattr(processor, "image_token_id", None)
        # Ovis2's processor has the attribute, and None in it.
        seen = torch.ones_like(tokens, dtype=torch.bool) if image is None else tokens != image
        rows = model(**inputs, use_cache=False).logits[0, -len(tokens) :]  # GIT's begin with those of the picture.
        logits.append(rows[seen].float().cpu())
        ids.append(tokens.cpu())
    questions = [replace(prompt, messages=_question(prompt)) for prompt in asked]
    texts = generate(model, processor, questions, max_new_tokens=16, batch_size=1) if text else None
    return Outputs(logits, ids, texts)


def _question(prompt: Prompt) -> list[dict[str, Any]]:
    asks = prompt.messages[-1]["role"] != "assistant"
    return prompt.messages if asks else prompt_messages({"messages": prompt.messages})


@contextmanager
def nudged_inputs(model: Any) -> Iterator[None]:
    """Change the token embeddings by about the last bit of fp32, so that all that follows is rounded differently."""
    generator = torch.Generator(model.device).manual_seed(0)

    def nudge(module: Any, inputs: Any, output: Tensor) -> Tensor:
        noise = torch.empty_like(output).uniform_(-1, 1, generator=generator)
        return output * (1 + 2 * torch.finfo(torch.float32).eps * noise)

    hook = model.get_input_embeddings().register_forward_hook(nudge)
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def move_weights(model: Any, dtype: torch.dtype) -> None:
    """Change every weight at random by at most the rounding of a merge: half a step of `dtype` and one step of fp32."""
    generator = torch.Generator(model.device).manual_seed(0)
    for weight in model.parameters():
        step = half_step(weight, dtype) + 2 * half_step(weight, torch.float32)
        weight.add_(step.mul_(torch.empty_like(weight).uniform_(-1, 1, generator=generator)))


def distance(outputs: Outputs, reference: Outputs) -> float:
    """max|a - b| / max|b| of the logits, for the row in which it is largest."""
    pairs = zip(outputs.logits, reference.logits, strict=True)
    return float(torch.stack([(a - b).abs().max() / b.abs().max() for a, b in pairs]).max())


def decided(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """[P] bool: whether the best two tokens of each row of logits [P, V] still differ after rounding to `dtype`."""
    best = logits.topk(2, dim=-1).values
    return best[:, 0] - best[:, 1] > torch.finfo(dtype).eps * best[:, 0].abs()
