"""The Triton forms of `compose`, `scale_and_reduce` and the row norm; `backend` says when they run.

Every kernel computes in fp32, masks its edges and counts elements in 64 bits. The kernels are operators of
`torch.library`, which `torch.compile` takes as they are. cuBLAS makes all matrix products except h B^T: R is short,
so multiplying it inside a kernel saves writing z once and reading it twice.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmdora.ops import backend
from mmdora.ops.products import UPCAST_ROWS, mm


class Blocks(NamedTuple):
    """The most rows of T and O in a tile of `compose`, and columns of W0 that `row_norm` takes at a time."""

    t: int
    o: int
    i: int


SINCE_8, BEFORE_8 = Blocks(t=64, o=128, i=64), Blocks(t=32, o=64, i=32)
"""By compute capability. Before 8.0 there are no tensor cores for bf16, and the larger tiles do not fit into the
registers: `compose` would spill 4,456 bytes a thread at 7.5, and `row_norm` 24."""


@triton.jit
def _places(size_t, size_o, BT: tl.constexpr, BO: tl.constexpr):
    """Rows and columns of this program's tile of [T, O]; neighbouring programs share rows."""
    across = tl.cdiv(size_o, BO)
    t = (tl.program_id(0) // across).to(tl.int64) * BT + tl.arange(0, BT)
    o = (tl.program_id(0) % across).to(tl.int64) * BO + tl.arange(0, BO)
    return t, o


@triton.jit
def _tile(matrix, rows, columns, row_stride, column_stride, size_rows, size_columns):
    """A tile of a matrix of any strides; zeros where the tile reaches over the edge."""
    at = rows[:, None].to(tl.int64) * row_stride + columns[None, :].to(tl.int64) * column_stride
    return tl.load(matrix + at, (rows < size_rows)[:, None] & (columns < size_columns)[None, :], 0.0)


@triton.jit(do_not_specialize=["size_t"])
def compose_kernel(
    z, hidden, up, factor, bias, y, kept, size_t, size_o, size_r, z_t, z_o, hidden_t, hidden_r, up_o, up_r,
    BT: tl.constexpr, BO: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """A tile of y = c (z + h (s B)^T) + bias; y and kept are contiguous."""
    t, o = _places(size_t, size_o, BT, BO)
    total = _tile(z, t, o, z_t, z_o, size_t, size_o)
    if hidden is not None:
        for start in range(0, size_r, BR):
            r = start + tl.arange(0, BR)
            h = _tile(hidden, t, r, hidden_t, hidden_r, size_t, size_r)
            total = tl.dot(h, _tile(up, r, o, up_r, up_o, size_r, size_o), total)
    at, inside = t[:, None] * size_o + o[None, :], (t < size_t)[:, None] & (o < size_o)[None, :]
    if kept is not None:
        tl.store(kept + at, total.to(kept.dtype.element_ty), inside)
    total *= tl.load(factor + o, o < size_o, 0.0)[None, :]
    if bias is not None:
        total += tl.load(bias + o, o < size_o, 0.0)[None, :]
    tl.store(y + at, total.to(y.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["size_t"])
def scale_and_reduce_kernel(
    g, saved, factor, shift, scaled, partial, size_t, size_o, g_t, g_o, saved_t, saved_o,
    BT: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """A tile of g * c, and its sum over t of g * (saved - shift), a row of `partial` [T / BT, O]."""
    t, o = _places(size_t, size_o, BT, BO)
    fine = _tile(g, t, o, g_t, g_o, size_t, size_o).to(tl.float32)
    value = _tile(saved, t, o, saved_t, saved_o, size_t, size_o).to(tl.float32)
    if shift is not None:
        value -= tl.load(shift + o, o < size_o, 0.0)[None, :]
    row = (tl.program_id(0) // tl.cdiv(size_o, BO)).to(tl.int64)
    tl.store(partial + row * size_o + o, tl.sum(fine * value, 0), o < size_o)
    fine *= tl.load(factor + o, o < size_o, 0.0)[None, :]
    at, inside = t[:, None] * size_o + o[None, :], (t < size_t)[:, None] & (o < size_o)[None, :]
    tl.store(scaled + at, fine.to(scaled.dtype.element_ty), inside)


@triton.jit
def row_norm_kernel(
    weight, lora_A, lora_B, base, projected, mixed, norm, scaling, cancelled, size_o, size_i, size_r,
    weight_o, weight_i, lora_A_r, lora_A_i, lora_B_o, lora_B_r,
    PIECES: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """n of BO rows; W0 A^T and B A A^T are each the sum of PIECES blocks of a contiguous [O, PIECES R]."""
    o = tl.program_id(0).to(tl.int64) * BO + tl.arange(0, BO)
    squares = tl.load(base + o, o < size_o, 0.0)
    total = tl.zeros([BO], tl.float32)
    for start in range(0, size_r, BR):
        r = start + tl.arange(0, BR)
        b = _tile(lora_B, o, r, lora_B_o, lora_B_r, size_o, size_r)
        for piece in range(PIECES):
            p = _tile(projected + piece * size_r, o, r, PIECES * size_r, 1, size_o, size_r)
            q = _tile(mixed + piece * size_r, o, r, PIECES * size_r, 1, size_o, size_r)
            total += tl.sum(b * (2 * p + scaling * q), 1)
    total = tl.maximum(squares + scaling * total, 0.0)
    lost = total < cancelled * squares
    if tl.max(lost.to(tl.int32), 0) > 0:  # pyright: ignore[reportOperatorIssue]
        dense = tl.zeros([BO], tl.float32)
        for first in range(0, size_i, BI):
            i = first + tl.arange(0, BI)
            product = tl.zeros([BO, BI], tl.float32)
            for start in range(0, size_r, BR):
                r = start + tl.arange(0, BR)
                b = _tile(lora_B, o, r, lora_B_o, lora_B_r, size_o, size_r)
                a = _tile(lora_A, r, i, lora_A_r, lora_A_i, size_r, size_i)
                product = tl.dot(b, a, product, input_precision="ieee")
            v = _tile(weight, o, i, weight_o, weight_i, size_o, size_i).to(tl.float32) + scaling * product
            dense += tl.sum(v * v, 1)
        total = tl.where(lost, dense, total)
    tl.store(norm + o, tl.sqrt_rn(total), o < size_o)


@torch.library.custom_op("mmdora::compose", mutates_args=())
def compose(
    z: Tensor,
    hidden: Tensor | None,
    up: Tensor | None,
    factor: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """y and, if `keep`, the rounded z + h (s B)^T (else empty): see `mmdora.ops.compose.compose`."""
    size_t, size_o = z.shape
    y = z.new_empty(size_t, size_o, dtype=dtype)
    kept = z.new_empty((size_t, size_o) if keep else 0, dtype=dtype)
    size_r = 0 if hidden is None else hidden.shape[1]
    blocks = _blocks(z.device)
    BT, BO = _up_to(blocks.t if size_r else 32, size_t), blocks.o
    with torch.cuda.device_of(z):
        _launch(
            compose_kernel, triton.cdiv(size_t, BT) * triton.cdiv(size_o, BO),
            z, hidden, up, factor.contiguous(), _contiguous(bias), y, kept if keep else None, size_t, size_o, size_r,
            *z.stride(), *_strides(hidden), *_strides(up), BT=BT, BO=BO, BR=_up_to(32, size_r), num_warps=4,
        )  # fmt: skip
    return y, kept


@compose.register_fake
def _(z, hidden, up, factor, bias, dtype, keep):
    return z.new_empty(z.shape, dtype=dtype), z.new_empty(z.shape if keep else 0, dtype=dtype)


@torch.library.custom_op("mmdora::scale_and_reduce", mutates_args=())
def scale_and_reduce(g: Tensor, saved: Tensor, factor: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """g * c and sum_t g * (saved - shift). Two stages without atomics give the same bits each time."""
    size_t, size_o = g.shape
    BT, BO = 64, 128
    scaled = g.new_empty(size_t, size_o)
    partial = g.new_empty(triton.cdiv(size_t, BT), size_o, dtype=torch.float32)
    with torch.cuda.device_of(g):
        _launch(
            scale_and_reduce_kernel, triton.cdiv(size_t, BT) * triton.cdiv(size_o, BO),
            g, saved, factor.contiguous(), _contiguous(shift), scaled, partial, size_t, size_o,
            *g.stride(), *saved.stride(), BT=BT, BO=BO, num_warps=8,
        )  # fmt: skip
    return scaled, partial.sum(0)


@scale_and_reduce.register_fake
def _(g, saved, factor, shift):
    return g.new_empty(g.shape), g.new_empty(g.shape[1], dtype=torch.float32)


@torch.library.custom_op("mmdora::row_norm", mutates_args=())
def row_norm(weight: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float, base: Tensor, cancelled: float) -> Tensor:
    """n [O]. The device itself decides which rows are computed densely: those under `cancelled` of their base.

    A bf16 W0 is multiplied as it is, by the two bf16 pieces of A, and the small products are made of such pieces too.
    That is exact to 2^-17 on tensor cores, whatever torch's setting for TF32; an fp32 W0 follows that setting.
    """
    (size_o, size_i), size_r = weight.shape, lora_A.shape[0]
    if weight.dtype == torch.bfloat16:
        a, b = torch.cat(_pieces(lora_A)), torch.cat(_pieces(lora_B), 1)
        projected = mm(weight, a.T, torch.float32)
        gram = mm(a, a.T, torch.float32).view(2, size_r, 2, size_r).sum((0, 2))
        mixed = mm(b, torch.cat(_pieces(gram), 1).repeat(2, 1), torch.float32)
    else:
        projected = torch.cat([part.to(torch.float32) @ lora_A.T for part in weight.split(UPCAST_ROWS)])
        mixed = lora_B @ (lora_A @ lora_A.T)
    norm = base.new_empty(size_o)
    BO, BI = 16, _blocks(weight.device).i
    with torch.cuda.device_of(weight):
        _launch(
            row_norm_kernel, triton.cdiv(size_o, BO),
            weight, lora_A, lora_B, base.contiguous(), projected, mixed, norm,
            scaling, cancelled, size_o, size_i, size_r, *weight.stride(), *lora_A.stride(), *lora_B.stride(),
            PIECES=projected.shape[1] // size_r, BO=BO, BI=BI, BR=_up_to(32, size_r), num_warps=4,
        )  # fmt: skip
    return norm


@row_norm.register_fake
def _(weight, lora_A, lora_B, scaling, base, cancelled):
    return base.new_empty(base.shape)


def try_launch(device: torch.device) -> None:
    """Launch a small `compose` and wait for it; raises whatever Triton, its compilers or the driver raise."""
    ones = torch.ones(16, 16, device=device)
    y, _ = compose(ones, ones.half(), ones.half(), ones[0], None, torch.float32, False)
    y.sum().item()


def _blocks(device: torch.device) -> Blocks:
    return BEFORE_8 if backend.emulates_bf16(device) else SINCE_8


def _pieces(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Two bf16 tensors that sum to this one, to a relative error of 2^-17."""
    high = tensor.to(torch.bfloat16)
    return high, (tensor - high).to(torch.bfloat16)


def _launch(kernel, programs: int, *args, **options) -> None:
    if programs:
        kernel[(programs,)](*args, enable_fp_fusion=True, **options)


def _up_to(most: int, size: int) -> int:
    """A power of two for the side of a block: at most `most`, and at least 16, which `tl.dot` wants."""
    return min(most, max(16, triton.next_power_of_2(size)))


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _strides(tensor: Tensor | None) -> tuple[int, int]:
    return (0, 0) if tensor is None else (tensor.stride(0), tensor.stride(1))
