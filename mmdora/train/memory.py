"""Estimates the memory of a training step before training, by running a step without its arithmetic.

Every operation of forward and backward is called with its shapes alone (torch's meta kernels), and its results are
tensors whose memory is reserved and never touched. The estimate thus includes, for any architecture, what autograd
keeps, what gradient checkpointing frees, what the loss in chunks saves and what an adapted layer holds. Integers (ids,
masks, places of images) are computed, because shapes depend on them.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmdora.adapt.inject import apply, trainable_parameters
from mmdora.adapt.plan import Plan
from mmdora.config import RunConfig
from mmdora.families import Family
from mmdora.layers.dequantize import form_of, held_bytes
from mmdora.train.checkpointing import checkpoint_activations
from mmdora.train.ledger import BACKWARD, Ledger
from mmdora.train.loss import ChunkedLoss

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
"""`model.dtype` -> bytes of one weight."""
PHOTO_SIZE = (640, 480)
"""Width and height in pixels of the picture in a typical row: the usual size in COCO."""
ANSWER_TOKENS = 128
"""Tokens of the answer in a typical row if the config has no `data.max_length`, enough for a few sentences."""


@dataclass(frozen=True)
class Held:
    """A parameter of the adapted model: its name, bytes, and bytes of an element."""

    name: str
    modality: str
    shape: tuple[int, ...]
    size: int
    width: int
    trains: bool


@dataclass(frozen=True)
class Estimate:
    """Bytes on one device at the peak of a step; dictionaries are modality -> bytes.

    Attributes:
        frozen: weights that do not train.
        trained: weights that train.
        gradients: gradients of the trained weights.
        moments: state of the optimizer.
        activations: tensors that forward keeps for backward; "other" is batch, masks and loss.
        buffers: other tensors that backward makes.
        rows: number of rows in a micro-batch.
        tokens: number of tokens in a row.
        gathered: weights that are whole on a device while they compute, though it holds only a shard of them.
        sent: buffers in which gradients are sent to other devices.
        held: the parameters, whose bytes are those of `frozen` and `trained`.
    """

    frozen: dict[str, int]
    trained: dict[str, int]
    gradients: dict[str, int]
    moments: dict[str, int]
    activations: dict[str, int]
    buffers: int
    rows: int
    tokens: int
    gathered: int = 0
    sent: int = 0
    held: tuple[Held, ...] = field(default=(), repr=False)

    @property
    def peak(self) -> int:
        held = (self.frozen, self.trained, self.gradients, self.moments, self.activations)
        return sum(sum(part.values()) for part in held) + self.buffers + self.gathered + self.sent

    def __str__(self) -> str:
        return f"{self.peak / 2**30:.1f} GiB for {self.rows} rows of {self.tokens:,} tokens"


def estimate(model: Any, plan: Plan, config: RunConfig, batch: Mapping[str, Tensor]) -> Estimate:
    """Estimate the memory at the peak of a training step, including the state of the optimizer.

    Args:
        model: the untouched base or its skeleton; only its shapes are read, and it is not changed.
        plan: the plan that was made for this model.
        batch: a micro-batch as the collator makes it, on the CPU.
    """
    training, dtype = config.training, {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    ledger, twin = Ledger(), _without_memory(model, dtype[config.model.dtype])
    with ledger:
        apply(twin, plan)
        trained, parameters = _trained(twin, config.training.precision == "bf16")
        held = _held(model, twin, plan, config)
        if training.gradient_checkpointing:
            twin.enable_input_require_grads()
            checkpoint_activations(twin, training.gradient_checkpointing, plan.parts)
        twin.train()
        inputs = ledger.given(batch)
        kept = ledger.live - sum(value.nbytes for value in inputs.values() if value.is_floating_point())
        ledger.start(kept)
        # With accumulation, gradients exist during forward from the second micro-batch on, so two are run.
        for _ in range(min(training.accumulation, 2)):
            _step(twin, inputs, plan, config, ledger)
    gradients = {m: sum(p.grad.nbytes for p in ps if p.grad is not None) for m, ps in parameters.items()}
    each = {"adamw": lambda p: 2 * p.nbytes, "adamw_8bit": lambda p: 2 * p.numel()}[training.optimizer]
    moments = {m: sum(map(each, ps)) for m, ps in parameters.items()}
    frozen = _by_modality(one for one in held if not one.trains)
    return replace(_summed(ledger, frozen, trained, gradients, moments, batch), held=held)


def typical_batch(family: Family, config: RunConfig) -> dict[str, Tensor]:
    """A micro-batch of rows with one photo each, as long as `data.max_length` allows."""
    photo = Image.new("RGB", PHOTO_SIZE)
    return family.example_batch(photo, config.training.batch_size, config.data.max_length, ANSWER_TOKENS)


def _held(model: Any, twin: Any, plan: Plan, config: RunConfig) -> tuple[Held, ...]:
    """The parameters of the adapted `twin` of a model, with which it shares packed weights."""
    size = BYTES[config.model.dtype]
    packed: dict[int, int] = {id(m.weight): held_bytes(m) for m in model.modules() if form_of(m) is not None}
    trains = {id(parameter): modality for _, parameter, modality, _ in trainable_parameters(twin)}
    found = []
    for name, parameter in twin.named_parameters():
        modality = trains.get(id(parameter)) or plan.parts.of(name) or "other"
        width = parameter.element_size() if id(parameter) in trains else size
        own = packed.get(id(parameter)) or width * parameter.numel()
        found.append(Held(name, modality, tuple(parameter.shape), own, width, id(parameter) in trains))
    return tuple(found)


def _by_modality(held: Iterable[Held]) -> dict[str, int]:
    """Modality -> bytes."""
    bytes_of = Counter[str]()
    for one in held:
        bytes_of[one.modality] += one.size
    return dict(bytes_of)


def _summed(
    ledger: Ledger,
    frozen: dict[str, int],
    trained: dict[str, int],
    gradients: dict[str, int],
    moments: dict[str, int],
    batch: Mapping[str, Tensor],
) -> Estimate:
    at_peak = dict(ledger.at_peak)
    in_backward = at_peak.pop(BACKWARD, 0)
    # Gradients are part of what backward made. Gradients that did not exist at the peak are made after others are
    # freed.
    present = min(in_backward, sum(gradients.values()))
    rest = sum(at_peak.values()) + in_backward - present
    # During the optimizer's step all gradients exist and no activation does, and this may be the peak.
    after = sum(gradients.values())
    if present + rest < after:
        at_peak, in_backward, present = {}, after, after
    share = present / max(after, 1)
    return Estimate(
        frozen=frozen,
        trained=trained,
        gradients={m: int(n * share) for m, n in gradients.items()},
        moments=moments,
        activations=at_peak,
        buffers=in_backward - present,
        rows=len(batch["input_ids"]),
        tokens=batch["input_ids"].shape[1],
    )


def _step(model: Any, inputs: dict[str, Any], plan: Plan, config: RunConfig, ledger: Ledger) -> None:
    chunked = ChunkedLoss(model) if config.training.chunked_loss else None
    half = config.training.precision == "bf16"
    with ExitStack() as stack:
        stack.enter_context(ledger.by_modality(model, plan))
        stack.enter_context(torch.autocast("cpu", torch.bfloat16) if half else nullcontext())
        try:
            with chunked.applied() if chunked is not None and chunked.head is not None else nullcontext():
                loss = model(**inputs, use_cache=False).loss
        except (RuntimeError, ValueError, IndexError):
            if chunked is None:
                raise
            # This model's loss cannot be computed in chunks.
            loss = model(**inputs, use_cache=False).loss
    ledger.label = BACKWARD
    loss.backward()


def _without_memory(model: Any, dtype: torch.dtype) -> Any:
    """A copy of a model in which each parameter is a single element, expanded to the parameter's shape."""
    # A quantised weight is one number in memory already, and its class knows what it stands for.
    shared = {
        id(p): torch.nn.Parameter(_thin(p, dtype), requires_grad=False) if p.is_floating_point() else p
        for p in model.parameters()
    }
    return copy.deepcopy(model, dict(shared))


def _thin(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    kind = dtype if tensor.is_floating_point() else tensor.dtype
    return torch.zeros((), dtype=kind).expand(tensor.shape)


def _trained(model: Any, upcast: bool) -> tuple[dict[str, int], dict[str, list[Any]]]:
    """Modality -> bytes, and modality -> parameters, of all weights that train."""
    bytes_of: Counter[str] = Counter()
    parameters: dict[str, list[Any]] = {}
    for _, parameter, modality, _ in list(trainable_parameters(model)):
        if upcast:
            parameter.data = parameter.data.float()
        bytes_of[modality] += parameter.numel() * parameter.element_size()
        parameters.setdefault(modality, []).append(parameter)
    return dict(bytes_of), parameters
