"""Answers of a vision-language model: many prompts in batches (greedy), or one prompt as a stream.

Neither touches the global random state: sampling adds Gumbel noise from a generator of its own to
the logits, whose argmax is then a sample of the softmax (the Gumbel-max trick), so the same seed
gives the same answer whatever runs beside it, and the same noise for every model compared.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper
from transformers.generation.streamers import BaseStreamer

from mmdora.batches.prompt import encode_prompts, render
from mmdora.predict.prefix import read_once
from mmdora.records.turns import Messages


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with a question, and its images in the order of the image parts.

    `features` [frames, width] float stand for a clip, for models that read clips as features.
    """

    messages: Messages
    images: list[Image.Image] = field(default_factory=list)
    features: np.ndarray | None = None

    @property
    def characters(self) -> int:
        return sum(len(part.get("text", "")) for message in self.messages for part in message["content"])


def ask(question: str, image: Image.Image | None = None) -> Prompt:
    """The prompt of one question about one image (or about none)."""
    content: list[dict[str, Any]] = [{"type": "text", "text": question}]
    if image is not None:
        content.insert(0, {"type": "image"})
    return Prompt([{"role": "user", "content": content}], [] if image is None else [image])


def generate(
    model: Any,
    processor: Any,
    prompts: list[Prompt],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 64,
    beams: int = 1,
    answers: Sequence[str] = (),
    progress: Callable[[int], object] | None = None,
) -> list[str]:
    """Greedy answers, in the order of the prompts; batches are of like length, left padded.

    Args:
        beams: more than 1 searches with so many beams instead.
        answers: of an encoder-decoder, the only ones it may give; the first step at which they differ decides.
        progress: called after each batch with the number of prompts it answered.
    """
    longest_first = sorted(range(len(prompts)), key=lambda i: -prompts[i].characters)
    found = [""] * len(prompts)
    with _evaluating(model):
        for start in range(0, len(prompts), batch_size):
            chosen = longest_first[start : start + batch_size]
            inputs = _encode(model, processor, [prompts[i] for i in chosen])
            if beams == 1:  # a search repeats its inputs, but no cache it is given
                inputs = read_once(model, inputs, [prompts[i].images for i in chosen])
            how = _greedy(model, processor, max_new_tokens, beams)
            ids = model.generate(**inputs, **(how | _only(processor, answers) if answers else how))
            new = ids[:, 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1] :]
            texts = processor.tokenizer.batch_decode(new, skip_special_tokens=True)
            for i, text in zip(chosen, texts, strict=True):
                found[i] = text.strip()
            if progress:
                progress(len(chosen))
    return found


TIMED = 5
"""Tokens that an answer needs for a rate that is more than noise."""


@dataclass(frozen=True)
class Partial:
    """An answer as far as it has come."""

    text: str
    tokens: int  # generated so far, the end-of-turn token included
    first_token_s: float | None  # seconds from the question to its first token, image preprocessing included
    tokens_per_s: float | None  # after the first token; None before `TIMED` tokens

    @classmethod
    def timed(cls, text: str, tokens: int, begun: float, times: Sequence[float]) -> Partial:
        """From when the question was asked, and when tokens came (one time or more for all of them), in seconds."""
        took = times[-1] - times[0] if times else 0.0
        rate = (tokens - 1) / took if tokens >= TIMED and took > 0 else None
        return cls(text.strip(), tokens, times[0] - begun if times else None, rate)


def stream(
    model: Any,
    processor: Any,
    prompt: Prompt,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: threading.Event | None = None,
) -> Generator[Partial, None, None]:
    """The answer token by token; the last item is the whole answer.

    Closing the iterator or setting `stop` ends generation at the next token. An exception in the
    model reaches the consumer.

    Args:
        temperature: 0 is greedy; otherwise sampling from the `top_p` nucleus, repeatable by `seed`.
    """
    begun = time.perf_counter()
    closed = threading.Event()
    events: SimpleQueue[tuple[float, list[int]] | BaseException | None] = SimpleQueue()

    def halted(input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        halt = closed.is_set() or (stop is not None and stop.is_set())
        return torch.full((input_ids.shape[0],), halt, device=input_ids.device, dtype=torch.bool)

    def work() -> None:
        try:
            model.generate(
                **_encode(model, processor, [prompt]),
                **_greedy(model, processor, max_new_tokens),
                logits_processor=_sampling(temperature, top_p, seed, model.device),
                stopping_criteria=[halted],
                streamer=_Tokens(events),
            )
            events.put(None)
        except BaseException as error:  # handed to the consumer, who raises it
            events.put(error)

    ids: list[int] = []
    times: list[float] = []

    def partial(text: str) -> Partial:
        return Partial.timed(text, len(ids), begun, times)

    thread = threading.Thread(target=work, name="mmdora-generate", daemon=True)
    with _evaluating(model):
        thread.start()
        try:
            while (event := events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                times.append(event[0])
                ids += event[1]
                # bytes of an unfinished character show as U+FFFD; wait for the rest
                yield partial(processor.tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd"))
            yield partial(processor.tokenizer.decode(ids, skip_special_tokens=True))
        finally:
            closed.set()
            thread.join()


def _only(processor: Any, answers: Sequence[str]) -> dict[str, Any]:
    """Generation arguments by which one of the answers comes out, written as training targets are."""
    targets = processor.tokenizer(text_target=list(answers))["input_ids"]
    allowed: dict[tuple[int, ...], set[int]] = {}
    for ids in targets:
        for place, token in enumerate(ids):
            allowed.setdefault(tuple(ids[:place]), set()).add(token)
    padding = {processor.tokenizer.pad_token_id}  # of a row that is complete
    return {
        "prefix_allowed_tokens_fn": lambda _, ids: sorted(allowed.get(tuple(ids[1:].tolist()), padding)),
        "max_new_tokens": max(map(len, targets)),
        "num_beams": 1,
    }


class _Tokens(BaseStreamer):
    """Passes on the new ids with the time they came."""

    def __init__(self, events: SimpleQueue[Any]):
        self.events, self.prompt_seen = events, False

    def put(self, value: torch.Tensor) -> None:
        if self.prompt_seen:
            self.events.put((time.perf_counter(), value.flatten().tolist()))
        self.prompt_seen = True

    def end(self) -> None:
        pass


class _Gumbel(LogitsProcessor):
    """Adds Gumbel(0, 1) noise, drawn from its own generator, to the scores [B, V]."""

    def __init__(self, seed: int, device: torch.device):
        self.generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.empty_like(scores, dtype=torch.float32).exponential_(generator=self.generator)
        return scores.float() - noise.clamp_min(torch.finfo(torch.float32).tiny).log()


def _sampling(temperature: float, top_p: float, seed: int, device: torch.device) -> LogitsProcessorList:
    if temperature == 0:
        return LogitsProcessorList()
    nucleus = [TopPLogitsWarper(top_p)] if top_p < 1 else []
    return LogitsProcessorList([TemperatureLogitsWarper(float(temperature)), *nucleus, _Gumbel(seed, device)])


def _greedy(model: Any, processor: Any, max_new_tokens: int, beams: int = 1) -> dict[str, Any]:
    """Generation arguments, with the KV cache; the checkpoint's own sampling defaults are switched off."""
    stops = model.generation_config.eos_token_id
    if model.config.is_encoder_decoder:  # BART's decoder has so many positions, the start token's among them
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        max_new_tokens = min(max_new_tokens, positions - 1) if positions else max_new_tokens
    return {
        "max_new_tokens": max_new_tokens,
        "do_sample": False,
        "num_beams": beams,
        "use_cache": True,
        "temperature": None,
        "top_p": None,
        "top_k": None,
        "pad_token_id": processor.tokenizer.pad_token_id,
        "eos_token_id": processor.tokenizer.eos_token_id if stops is None else stops,
    }


def _encode(model: Any, processor: Any, prompts: list[Prompt]) -> Any:
    clips = [prompt.features for prompt in prompts]
    if any(clip is not None for clip in clips):  # VL-BART, which reads clips that way
        texts = [render(processor, prompt.messages, generation_prompt=True) for prompt in prompts]
        encoded = processor(text=texts, features=clips)
    else:
        conversations, images = [prompt.messages for prompt in prompts], [prompt.images for prompt in prompts]
        encoded = encode_prompts(processor, conversations, images)
    return encoded.to(model.device, dtype=model.dtype)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Dropout off, and the mode as it was afterwards."""
    training = model.training
    if any(module.training for module in model.modules()):  # to set every module costs as much as a token
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()
