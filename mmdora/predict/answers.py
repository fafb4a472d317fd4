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
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper
from transformers.generation.streamers import BaseStreamer

from mmdora.families import Family, Prompt, family_of
from mmdora.predict.prefix import read_once


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
        answers: the only ones it may give, for a family that can be held to some (`Family.choices`).
        progress: called after each batch with the number of prompts it answered.
    """
    family = family_of(processor)
    longest_first = sorted(range(len(prompts)), key=lambda i: -prompts[i].characters)
    found = [""] * len(prompts)
    with _evaluating(model):
        for start in range(0, len(prompts), batch_size):
            chosen = longest_first[start : start + batch_size]
            inputs = _inputs(model, family, [prompts[i] for i in chosen])
            if beams == 1:  # generate() repeats inputs for a beam search, but not a cache that it is given.
                inputs = read_once(model, family, inputs, [prompts[i].images for i in chosen])
            how = family.generation(model, max_new_tokens, beams) | (family.only(answers) if answers else {})
            new = family.new_ids(model.generate(**inputs, **how), inputs)
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
    begun, family = time.perf_counter(), family_of(processor)
    closed = threading.Event()
    events: SimpleQueue[tuple[float, list[int]] | BaseException | None] = SimpleQueue()

    def halted(input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        halt = closed.is_set() or (stop is not None and stop.is_set())
        return torch.full((input_ids.shape[0],), halt, device=input_ids.device, dtype=torch.bool)

    def work() -> None:
        try:
            model.generate(
                **_inputs(model, family, [prompt]),
                **family.generation(model, max_new_tokens),
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


def _inputs(model: Any, family: Family, prompts: Sequence[Prompt]) -> Any:
    return family.encode_prompts(prompts).to(model.device, dtype=model.dtype)


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
