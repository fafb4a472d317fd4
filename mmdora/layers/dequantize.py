"""The weight of a quantised linear as a matrix whose rows are dequantised when somebody asks for them.

The values are those that the libraries' own functions give for the whole weight, to the bit. bitsandbytes packs blocks
of so many values of the flattened weight with one scale each, so some rows can be taken apart from the others if they
begin where a block begins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

Form = Literal["nf4", "fp4", "int8"]
"""How bitsandbytes stores a weight."""
PIECE_ELEMENTS = 1 << 22
"""Elements that are dequantised at a time: 16 MiB in fp32, a tenth of a weight of a model of 7 billion parameters."""


def form_of(module: nn.Module) -> Form | None:
    """How the weight of a linear is quantised; None if it is not, or by no library known here."""
    # Classes are told by their names, so that nothing is imported which a model without quantisation does not need.
    if not hasattr(module, "out_features"):
        return None
    match type(module._parameters.get("weight")).__name__:
        case "Params4bit":
            return module.weight.quant_type  # pyright: ignore
        case "Int8Params":
            return "int8"
    return None


def sizes(model: nn.Module) -> dict[str, int]:
    """Name of a parameter -> the number of values that it stands for: of a packed one, more than its elements."""
    linears: list[Any] = [module for module in model.modules() if form_of(module)]
    packed = {id(linear.weight): linear.out_features * linear.in_features for linear in linears}
    return {name: packed.get(id(own), own.numel()) for name, own in model.named_parameters()}


def held_bytes(module: nn.Module) -> int:
    """The bytes of a quantised weight with its scales."""
    weight: Any = module._parameters["weight"]
    if form_of(module) == "int8":
        return weight.nbytes + 4 * len(weight)
    state = _state(module)
    scales = [state.absmax, state.code]
    if state.nested:
        scales += [state.state2.absmax, state.state2.code]
    return weight.nbytes + sum(tensor.nbytes for tensor in scales)


def _state(module: Any) -> Any:
    state = getattr(module.weight, "quant_state", None)
    return module.quant_state if state is None else state  # FSDP and copies of the parameter lose the state.


class QuantizedMatrix:
    """W0 [O, I] of a quantised linear, of which `split`, slices and nothing else can be read.

    Attributes:
        dtype: of the rows: that of the weight before it was quantised; fp32 for int8, whose scales are fp32.
    """

    def __init__(self, module: Any):
        self.module = module
        self.form = form_of(module)
        self.shape = torch.Size([module.out_features, module.in_features])
        self.device = module.weight.device
        self.dtype: torch.dtype = torch.float32 if self.form == "int8" else _state(module).dtype

    def dim(self) -> int:
        return 2

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, step = rows.indices(len(self))
        assert step == 1
        with torch.no_grad():
            return self._eight_bits(start, stop) if self.form == "int8" else self._four_bits(start, stop)

    def split(self, rows: int) -> Iterator[Tensor]:
        """Consecutive pieces of at most so many rows."""
        step = max(1, min(rows, PIECE_ELEMENTS // self.shape[1]))
        if self.form != "int8" and step > self._apart():
            step -= step % self._apart()
        return (self[start : start + step] for start in range(0, len(self), step))

    def whole(self) -> Tensor:
        """All rows at once."""
        return self[:]

    def _apart(self) -> int:
        """How many rows lie between two that both begin with a block."""
        block = _state(self.module).blocksize
        return block // math.gcd(block, self.shape[1])

    def _eight_bits(self, start: int, stop: int) -> Tensor:
        from bitsandbytes.functional import int8_vectorwise_dequant  # pyright: ignore[reportMissingImports]

        module = self.module
        scales = module.state.SCB if module.state.SCB is not None else module.weight.SCB
        return int8_vectorwise_dequant(module.weight.data[start:stop], scales.to(self.device)[start:stop])

    def _four_bits(self, start: int, stop: int) -> Tensor:
        import bitsandbytes.functional as bnb  # pyright: ignore[reportMissingImports]

        state, columns = _state(self.module), self.shape[1]
        first = start - start % self._apart()
        begin, end = first * columns, stop * columns
        scales = slice(begin // state.blocksize, -(-end // state.blocksize))
        absmax = state.absmax[scales]
        if state.nested:
            # The scales are quantised too, in blocks of their own.
            own = state.state2
            outer = slice(scales.start // own.blocksize, -(-scales.stop // own.blocksize))
            inner = slice(outer.start * own.blocksize, min(outer.stop * own.blocksize, len(state.absmax)))
            part = bnb.QuantState(own.absmax[outer], code=own.code, blocksize=own.blocksize, dtype=own.dtype)
            fine = bnb.dequantize_blockwise(state.absmax[inner], part) + state.offset
            absmax = fine[scales.start - inner.start : scales.stop - inner.start].float()
        packed = self.module.weight.data.reshape(-1).view(torch.uint8)
        part = bnb.QuantState(
            absmax,
            shape=torch.Size([stop - first, columns]),
            code=state.code,
            blocksize=state.blocksize,
            quant_type=state.quant_type,
            dtype=state.dtype,
        )
        rows = bnb.dequantize_4bit(packed[begin // 2 : -(-end // 2)].reshape(-1, 1), part)
        return rows[start - first :]
