"""The Triton kernels in Triton's interpreter, on the CPU, against float64. `test_kernels.py` runs this file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from ops.cases import both, case, max_rel
from torch import Tensor, nn
from triton.runtime import interpreter

from mmdora.ops import backend, kernels, norm
from mmdora.ops.compose import compose, scale_and_reduce
from mmdora.ops.linear import adapted_linear, scale

HALF = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2**-22}
"""Half a step of each dtype, relative, at its largest; for fp32, what sums in another order may differ by."""
DTYPE = pytest.mark.parametrize("dtype", HALF, ids=str)


@pytest.fixture(scope="module", autouse=True)
def _as_on_a_gpu():
    """bf16 as a GPU has it: the interpreter cuts it off instead of rounding, and multiplies the bits as integers."""
    builder: Any = interpreter.InterpreterBuilder
    cast, dot = builder.cast_impl, builder.create_dot

    def rounding_cast(self, source, target):
        if source.dtype.scalar != tl.float32 or target.scalar != tl.bfloat16:
            return cast(self, source, target)
        rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16().view(torch.uint16).numpy()
        return interpreter.TensorHandle(rounded, target.scalar)

    def dot_of_bf16(self, a, b, *rest):
        a, b = (cast(self, t, tl.float32) if t.dtype.scalar == tl.bfloat16 else t for t in (a, b))
        return dot(self, a, b, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "cast_impl", rounding_cast)
        patch.setattr(builder, "create_dot", dot_of_bf16)
        patch.setattr(backend, "on_triton", lambda tensor: tensor.dtype != torch.float64)
        assert isinstance(kernels.compose_kernel, interpreter.InterpretedFunction)
        yield


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def rounded_once(found: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype and found.shape == exact.shape
    slack = 1e-6 * (1 + exact.abs().max()) if exact.numel() else 0
    assert bool(((found.double() - exact).abs() <= HALF[dtype] * exact.abs() + slack).all())


@DTYPE
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("keep", [True, False], ids=["keep", "y"])
@pytest.mark.parametrize("rank", [None, 1, 20, 70])
def test_compose(dtype, bias, keep, rank):
    rows, columns = {None: (33, 150), 1: (1, 1), 20: (130, 129), 70: (5, 300)}[rank]
    z, c = torch.randn(rows, columns), torch.randn(columns)
    c[: columns // 3] = torch.tensor([0.0, 1e-30, -1e-4]).repeat(columns)[: columns // 3]
    shift = torch.randn(columns) if bias else None
    exact = z.double()
    hidden = up = None
    if rank is not None:
        hidden, up = torch.randn(rows, rank).to(dtype), torch.randn(columns, rank).to(dtype)
        exact = exact + hidden.double() @ up.double().T
    y, kept = compose(z, hidden, up, c, shift, dtype, keep=keep)
    rounded_once(y, c.double() * exact + (0 if shift is None else shift.double()), dtype)
    assert (kept is not None) == keep
    if kept is not None:
        rounded_once(kept, exact, dtype)


def test_the_trial_launch():
    assert backend._tried(torch.device("cpu")) is None


def test_smaller_tiles_before_compute_capability_8(monkeypatch):
    """The same values; the sums of `compose` go over the rank, which is not cut otherwise."""
    z, hidden, up, c = torch.randn(70, 150), torch.randn(70, 40).half(), torch.randn(150, 40).half(), torch.randn(150)
    weight, lora_A, lora_B = torch.randn(70, 90), torch.randn(37, 90), torch.randn(70, 37)
    lora_B[33], lora_A[3] = 0, weight[33]
    lora_B[33, 3] = -0.495
    found = []
    for capability in ((8, 0), (7, 5)):
        monkeypatch.setattr(backend, "emulates_bf16", lambda device, major=capability[0]: major < 8)
        n = norm.row_norm(weight, lora_A, lora_B, 2.0, norm.squared_norm(weight))
        found.append((compose(z, hidden, up, c, None, torch.float16, keep=False)[0], n))
    assert kernels._blocks(z.device) == kernels.BEFORE_8
    assert torch.equal(found[0][0], found[1][0]) and max_rel(found[0][1], found[1][1]) < 1e-6


@DTYPE
@pytest.mark.parametrize("shift", [True, False], ids=["shift", "no-shift"])
@pytest.mark.parametrize("shape", [(1, 1), (64, 128), (65, 129), (200, 40)], ids=str)
def test_scale_and_reduce(dtype, shift, shape):
    g, saved, c = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype), torch.randn(shape[1])
    c[0] = 0
    taken = torch.randn(shape[1]) if shift else None
    scaled, total = scale_and_reduce(g, saved, c, taken)
    rounded_once(scaled, g.double() * c.double(), dtype)
    exact = (g.double() * (saved.double() - (0 if taken is None else taken.double()))).sum(0)
    assert total.dtype == torch.float32 and max_rel(total, exact) < 1e-6
    again = scale_and_reduce(g, saved, c, taken)
    assert torch.equal(again[0], scaled) and torch.equal(again[1], total)


def test_inputs_of_any_strides():
    z, hidden, up, c = torch.randn(50, 33).T, torch.randn(20, 33, 2)[..., 0].T, torch.randn(20, 50).T, torch.randn(100)
    exact = (z.double() + hidden.bfloat16().double() @ up.bfloat16().double().T) * c[::2].double()
    y, _ = compose(z, hidden.bfloat16(), up.bfloat16(), c[::2], None, torch.bfloat16, keep=False)
    rounded_once(y, exact, torch.bfloat16)
    g, saved = torch.randn(1, 50).expand(33, 50), torch.randn(50, 33).T
    scaled, total = scale_and_reduce(g, saved, c[::2], None)
    assert torch.equal(scaled, g * c[::2]) and max_rel(total, (g.double() * saved.double()).sum(0)) < 1e-6


def test_no_rows_at_all():
    empty, c = torch.empty(0, 40), torch.ones(40)
    y, kept = compose(empty, None, None, c, None, torch.bfloat16, keep=True)
    assert y.shape == (0, 40) and kept is not None and kept.shape == (0, 40)
    scaled, total = scale_and_reduce(empty, empty, c, None)
    assert scaled.shape == (0, 40) and torch.equal(total, torch.zeros(40))


def test_offsets_beyond_32_bits(tmp_path):
    """Row 2 of these begins 2^31 elements in. The files have holes: little of the 4 GB is ever there."""
    stride = 2**30
    g, saved = (
        torch.from_file(str(tmp_path / name), shared=True, size=2 * stride + 40, dtype=torch.bfloat16)
        .as_strided((3, 40), (stride, 1)).copy_(torch.randn(3, 40)) for name in "gs"
    )  # fmt: skip
    c = torch.randn(40)
    scaled, total = scale_and_reduce(g, saved, c, None)
    assert torch.equal(scaled, (g.float() * c).bfloat16())
    assert max_rel(total, (g.double() * saved.double()).sum(0)) < 1e-6


@DTYPE
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
def test_row_norm(dtype, transposed):
    weight, lora_A, lora_B = torch.randn(70, 90), torch.randn(37, 90) * 0.3, torch.randn(70, 37) * 0.3
    if transposed:
        weight = weight.T.contiguous().T
    weight = weight.to(dtype)
    weight[5], lora_B[5] = 0, 0
    weight[6] = 0
    lora_A[3] = weight[33]
    lora_B[33] = 0
    lora_B[33, 3] = -0.495  # V is a hundredth of W0 there
    base = norm.squared_norm(weight)
    exact = torch.linalg.vector_norm(weight.double() + 2.0 * lora_B.double() @ lora_A.double(), dim=1)
    found = norm.row_norm(weight, lora_A, lora_B, 2.0, base)
    assert found.dtype == torch.float32 and found[5] == 0
    others = torch.arange(70) != 5
    # bf16 pieces leave 2^-17 of each factor; over the thousands of inputs of a real layer this averages out.
    bound = 5e-6 if dtype == torch.bfloat16 else 1e-6
    assert ((found - exact).abs() / exact)[others].max() < bound
    # Without looking at the host, so always: the same where a compiled graph asks for no dense rows.
    assert torch.equal(norm.row_norm(weight, lora_A, lora_B, 2.0, base, exact=False), found)


def test_norm_of_a_bf16_base_in_the_width_of_a_layer():
    weight = (torch.randn(48, 2048) * 0.02).bfloat16()
    lora_A, lora_B = torch.rand(64, 2048) * 0.04 - 0.02, torch.randn(48, 64) * 0.25
    exact = torch.linalg.vector_norm(weight.double() + lora_B.double() @ lora_A.double(), dim=1)
    assert exact.mean() > 1.2 * torch.linalg.vector_norm(weight.double(), dim=1).mean()  # s B A is as large as W0
    found = norm.row_norm(weight, lora_A, lora_B, 1.0, norm.squared_norm(weight))
    assert ((found - exact).abs() / exact).max() < 1e-6  # the bound of the issue is 1e-5


@pytest.mark.parametrize("method", ["lora", "dora", "magnitude"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("keep", [True, None], ids=["keep", "y"])
def test_the_whole_function_in_fp32(method, bias, keep):
    both(case(method, bias), 2e-6, keep=keep)


@pytest.mark.parametrize("tiny", [0.0, 1e-9, -1e-4])
def test_magnitude_near_zero_has_its_gradient(tiny):
    t = case("dora", True)
    with torch.no_grad():
        t["magnitude"][7] = tiny
    both(t, 2e-6)
    assert t["magnitude"].grad[7] != 0


@pytest.mark.parametrize("keep", [True, None], ids=["keep", "y"])
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "plain"])
@pytest.mark.parametrize("method", ["lora", "dora", "magnitude"])
def test_the_whole_function_in_bf16(method, autocast, keep):
    t = case(method, True, base=torch.bfloat16, columns=48)
    t["x"] = t["x"].detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        both(t, 2**-7, keep=keep)
    assert {t[name].grad.dtype for name in ("lora_A", "lora_B", "magnitude") if t[name] is not None} == {torch.float32}


def test_bf16_output_shows_a_magnitude_change_of_2_to_minus_10():
    x, weight = torch.randn(64, 32).bfloat16(), torch.randn(128, 32).bfloat16()
    n = norm.squared_norm(weight).sqrt()

    def call(magnitude):
        return adapted_linear(x, weight, None, None, None, 1.0, magnitude, scale(magnitude, n))

    changed = (call(n) != call(n * (1 + 2**-10))).float().mean().item()
    assert 0.05 < changed < 0.5  # 2^-10 is a quarter or an eighth of a bf16 step


def test_compiles_without_a_graph_break():
    class Layer(nn.Module):
        def forward(self, x, weight, bias, A, B, m):
            n = norm.row_norm(weight, A, B, 2.0, norm.squared_norm(weight), exact=False)
            return adapted_linear(x, weight, bias, A, B, 2.0, m, scale(m, n, keep=False))

    def run(layer):
        t = case("dora", True, base=torch.bfloat16)
        x = t["x"].detach().bfloat16().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x, t["weight"], t["bias"], t["lora_A"], t["lora_B"], t["magnitude"])
        y.backward(torch.ones_like(y))
        return y, x.grad, *(t[name].grad for name in ("lora_A", "lora_B", "magnitude"))

    compiled = run(torch.compile(Layer(), backend="aot_eager", fullgraph=True))
    for a, b in zip(compiled, run(Layer()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
