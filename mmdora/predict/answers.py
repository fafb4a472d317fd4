"""Generates answers of a model: many prompts in batches (greedy), or one prompt as a stream.

Neither function changes the global random state. For sampling, Gumbel noise from a separate generator is added to the
logits; the argmax of the sum is then a sample of the softmax (the Gumbel-max trick). A seed thus gives the same answer
whatever else runs at the same time, and models that are compared get the same noise.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
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
    stop: threading.Event | None = None,
) -> list[str]:
    """Generate the greedy answers, in the order of the prompts. Prompts of similar length are batched together.

    Args:
        beams: number of beams; with more than 1, beam search replaces greedy decoding.
        answers: the only answers that are allowed, in families that can be restricted to some (`Family.choices`).
        progress: called after each batch with the number of prompts it answered.
        stop: cuts every answer short at its next token when it is set.
    """
    family = family_of(processor)
    longest_first = sorted(range(len(prompts)), key=lambda i: -prompts[i].characters)
    texts = [""] * len(prompts)
    with evaluating(model):
        for start in range(0, len(prompts), batch_size):
            chosen = longest_first[start : start + batch_size]
            inputs = _inputs(model, family, [prompts[i] for i in chosen])
            if beams == 1:  # generate() repeats inputs for a beam search, but not a cache that it is given.
                inputs = read_once(model, family, inputs, [prompts[i].images for i in chosen])
            how = family.generation(model, max_new_tokens, beams) | (family.only(answers) if answers else {})
            how |= {} if stop is None else {"stopping_criteria": [_halting(stop)]}
            new = family.new_ids(model.generate(**inputs, **how), inputs)
            decoded = family.tokenizer.batch_decode(new, skip_special_tokens=True)
            for i, text in zip(chosen, decoded, strict=True):
                texts[i] = text.strip()
            if progress:
                progress(len(chosen))
    return texts


TIMED = 5
"""The fewest tokens of an answer for which a rate is given; the rate of a shorter answer is mostly noise."""


WATCHED = 16
"""The tokens of an answer whose probabilities are kept: two models that part mostly do so in their first words."""
LIKELIEST = 5
"""The most likely tokens that are told at each place."""


@dataclass(frozen=True)
class Token:
    """A token of an answer, and what the model would have said there, before temperature and top-p.

    Attributes:
        p: its probability.
        likeliest: the most likely tokens at its place, each with its probability.
    """

    text: str
    p: float
    likeliest: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Partial:
    """An answer as far as it has been generated."""

    text: str
    tokens: int  # tokens generated so far, the end-of-turn token included
    first_token_s: float | None  # seconds from the question to its first token, image preprocessing included
    tokens_per_s: float | None  # tokens per second after the first token; None while there are fewer than `TIMED`
    first_tokens: tuple[Token, ...] = ()  # the first `WATCHED` tokens; empty if the model does not tell probabilities

    @classmethod
    def timed(
        cls, text: str, tokens: int, begun: float, times: Sequence[float], first_tokens: Sequence[Token] = ()
    ) -> Partial:
        """Make a partial answer with its rates.

        Args:
            begun: the time in seconds at which the question was asked.
            times: the times in seconds at which tokens came, in order.
        """
        took = times[-1] - times[0] if times else 0.0
        rate = (tokens - 1) / took if tokens >= TIMED and took > 0 else None
        return cls(text.strip(), tokens, times[0] - begun if times else None, rate, tuple(first_tokens))


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
    """Yield the answer after each token; the last item is the whole answer.

    Closing the iterator or setting `stop` ends generation at the next token. An exception in the model is raised in the
    caller.

    Args:
        temperature: 0 decodes greedily; otherwise tokens are sampled from the `top_p` nucleus.
        seed: equal seeds give equal samples.
        stop: ends the answer when it is set.
    """
    begun, family = time.perf_counter(), family_of(processor)
    closed = threading.Event()
    events: SimpleQueue[Event] = SimpleQueue()
    watch = _Watch(family.tokenizer)

    def work() -> None:
        model.generate(
            **_inputs(model, family, [prompt]),
            **family.generation(model, max_new_tokens),
            logits_processor=LogitsProcessorList([watch, *_sampling(temperature, top_p, seed, model.device)]),
            stopping_criteria=[_halting(closed, *([] if stop is None else [stop]))],
            streamer=_Tokens(events),
        )

    ids: list[int] = []
    times: list[float] = []
    with evaluating(model), closing(_beside(work, events, closed)) as arriving:
        for came, new in arriving:
            times.append(came)
            ids += new
            watch.chosen(ids)
            # The first bytes of a character decode to U+FFFD, which is left out until the other bytes come.
            text = family.tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd")
            yield Partial.timed(text, len(ids), begun, times, watch.tokens)
        whole = family.tokenizer.decode(ids, skip_special_tokens=True)
        yield Partial.timed(whole, len(ids), begun, times, watch.tokens)


Event = tuple[float, list[int]] | BaseException | None
"""A report of a thread that generates: (time in seconds, ids) of new tokens, an error, or None at its end."""


def _beside(
    work: Callable[[], None], events: SimpleQueue[Event], closed: threading.Event
) -> Generator[tuple[float, list[int]], None, None]:
    """Run `work` in a thread, and yield what it puts into `events` until it ends.

    An error of `work` is raised here. When this generator is closed, it sets `closed` and waits for the thread.
    """

    def run() -> None:
        try:
            work()
            events.put(None)
        except BaseException as error:  # The error goes to the thread of the caller, which raises it there.
            events.put(error)

    thread = threading.Thread(target=run, name="mmdora-generate", daemon=True)
    thread.start()
    try:
        while (event := events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        closed.set()
        thread.join()


class _Tokens(BaseStreamer):
    """Puts new ids into a queue, with the time at which they came."""

    def __init__(self, events: SimpleQueue[Any]):
        self.events, self.prompt_seen = events, False

    def put(self, value: torch.Tensor) -> None:
        if self.prompt_seen:
            self.events.put((time.perf_counter(), value.flatten().tolist()))
        self.prompt_seen = True

    def end(self) -> None:
        pass


class _Watch(LogitsProcessor):
    """Keeps the log-probabilities [V] of the first `WATCHED` tokens of one answer, and changes no score.

    It is called in the thread that generates; `chosen` and `tokens` belong to the one that reads the stream. A token
    comes out of the queue after its scores were kept.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.tokens = tokenizer, list[Token]()
        self._kept: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if len(self._kept) < WATCHED:
            self._kept.append(scores[0].float().log_softmax(-1))
        return scores

    def chosen(self, ids: Sequence[int]) -> None:
        """Tell what was chosen so far; `tokens` then holds a token for each of the first."""
        for place in range(len(self.tokens), min(len(ids), len(self._kept))):
            kept = self._kept[place]
            best = kept.topk(min(LIKELIEST, len(kept)))
            likeliest = zip(best.indices.tolist(), best.values.exp().tolist(), strict=True)
            told = tuple((self.tokenizer.decode([token]), p) for token, p in likeliest)
            self.tokens.append(Token(self.tokenizer.decode([ids[place]]), float(kept[ids[place]].exp()), told))


class _Gumbel(LogitsProcessor):
    """Adds Gumbel(0, 1) noise from its own generator to the scores [B, V]."""

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


def _halting(*events: threading.Event) -> Callable[..., torch.Tensor]:
    """A criterion by which generation stops at the next token once one of the events is set."""

    def halted(input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        halt = any(event.is_set() for event in events)
        return torch.full((input_ids.shape[0],), halt, device=input_ids.device, dtype=torch.bool)

    return halted


def _inputs(model: Any, family: Family, prompts: Sequence[Prompt]) -> Any:
    for prompt in prompts:
        family.check_videos(prompt.messages)
    return family.encode_prompts(prompts).to(model.device, dtype=model.dtype)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put the model into eval mode inside the block, and back into its former mode afterwards."""
    training = model.training
    if any(module.training for module in model.modules()):  # Setting the mode of every module takes as long as a token.
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()
