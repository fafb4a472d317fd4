"""The fused linear against the dense equations, and its edges."""

from typing import Any

import pytest
import torch
from torch import nn

from mmdora.ops import reference
from mmdora.ops.linear import adapted_linear, scale
from mmdora.ops.norm import row_norm, squared_norm

BIAS = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
METHOD = pytest.mark.parametrize("method", ["lora", "dora", "magnitude"])


def case(method, bias, *, dtype=torch.float32, base=None, rows=40, columns=24, rank=4) -> dict[str, Any]:
    torch.manual_seed(1)
    tensors = {
        "x": torch.randn(5, 3, columns, dtype=dtype).requires_grad_(),
        "weight": torch.randn(rows, columns, dtype=dtype).to(base or dtype),
        "bias": torch.randn(rows, dtype=dtype).to(base or dtype) if bias else None,
        "lora_A": None,
        "lora_B": None,
        "magnitude": None,
    }
    if method != "magnitude":
        tensors["lora_A"] = (torch.randn(rank, columns, dtype=dtype) * 0.3).requires_grad_()
        tensors["lora_B"] = (torch.randn(rows, rank, dtype=dtype) * 0.3).requires_grad_()
    if method != "lora":
        tensors["magnitude"] = (3 + torch.rand(rows, dtype=dtype)).requires_grad_()
    return tensors


def fused(t, scaling=2.0, dropped=None):
    scaled = None
    if t["magnitude"] is not None:
        base = squared_norm(t["weight"])
        norm = base.sqrt()
        if t["lora_A"] is not None:
            norm = row_norm(t["weight"], t["lora_A"], t["lora_B"], scaling, base)
        scaled = scale(t["magnitude"], norm)
    return adapted_linear(
        t["x"], t["weight"], t["bias"], t["lora_A"], t["lora_B"], scaling, t["magnitude"], scaled, dropped
    )


def dense(t):
    return reference.adapted_linear(
        t["x"], t["weight"], t["bias"], t["lora_A"], t["lora_B"], t["magnitude"], scaling=2.0
    )


def in_float64(t) -> dict[str, Any]:
    return {k: None if v is None else v.detach().double().requires_grad_(v.requires_grad) for k, v in t.items()}


def max_rel(a, b):
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def both(t, bound):
    exact = in_float64(t)
    expected = dense(exact)
    found = fused(t)
    torch.manual_seed(2)
    gradient = torch.randn_like(found)
    found.backward(gradient)
    expected.backward(gradient.double())
    assert max_rel(found, expected) <= bound
    for name in ("x", "lora_A", "lora_B", "magnitude"):
        if t[name] is not None:
            assert max_rel(t[name].grad, exact[name].grad) <= bound, name


@METHOD
@BIAS
def test_equals_the_dense_equations(method, bias):
    both(case(method, bias), 2e-6)


@BIAS
@pytest.mark.parametrize("tiny", [0.0, 1e-9, -1e-4])
def test_magnitude_near_zero_has_its_gradient(bias, tiny):
    t = case("dora", bias)
    with torch.no_grad():
        t["magnitude"][7] = tiny
    both(t, 2e-6)
    assert t["magnitude"].grad[7] != 0


def test_a_large_bias_does_not_drown_the_magnitude():
    t = case("dora", True)
    t["bias"] *= 50
    both(t, 1e-5)


@METHOD
@BIAS
def test_gradcheck(method, bias):
    t = case(method, bias, dtype=torch.float64, rows=5, columns=4, rank=2)
    scaled = None if t["magnitude"] is None else torch.rand(5, dtype=torch.float64) + 1
    names = [name for name, value in t.items() if value is not None and value.requires_grad]

    def call(*values):
        s = {**t, **dict(zip(names, values, strict=True))}
        fixed = None if scaled is None else scale(s["magnitude"], scaled)
        return adapted_linear(s["x"], s["weight"], s["bias"], s["lora_A"], s["lora_B"], 1.5, s["magnitude"], fixed)

    assert torch.autograd.gradcheck(call, [t[name] for name in names])


def test_zero_rows_learn_and_give_no_nan():
    t = case("dora", True)
    with torch.no_grad():
        t["weight"][4] = 0
        t["lora_B"][4] = 0
        t["magnitude"][4] = 0
    y = fused(t)
    y.square().sum().backward()
    assert torch.equal(y[..., 4], t["bias"][4].expand(5, 3))
    assert all(t[name].grad.isfinite().all() for name in ("x", "lora_A", "lora_B", "magnitude"))
    assert t["lora_B"].grad[4].abs().sum() > 0


def test_bf16_output_shows_a_magnitude_change_of_2_to_minus_10():
    torch.manual_seed(0)
    x, weight = torch.randn(64, 32).bfloat16(), torch.randn(128, 32).bfloat16()
    norm = squared_norm(weight).sqrt()

    def call(magnitude):
        return adapted_linear(x, weight, None, None, None, 1.0, magnitude, scale(magnitude, norm))

    before, after = call(norm), call(norm * (1 + 2**-10))
    assert before.dtype == torch.bfloat16
    assert torch.equal(before, (x.float() @ weight.float().T).bfloat16())
    changed = (before != after).float().mean().item()
    assert 0.05 < changed < 0.5  # 2^-10 is a quarter or an eighth of a bf16 step


@METHOD
def test_bf16_base_keeps_gradients_of_the_adapter_in_fp32(method):
    t = case(method, True, base=torch.bfloat16)
    t["x"] = t["x"].detach().bfloat16().requires_grad_()
    exact = in_float64(t)
    y = fused(t)
    expected = dense(exact)
    assert y.dtype == torch.bfloat16 and max_rel(y, expected) < 2**-8
    y.backward(torch.ones_like(y))
    expected.backward(torch.ones_like(expected))
    assert t["x"].grad.dtype == torch.bfloat16
    for name in ("lora_A", "lora_B", "magnitude"):
        if t[name] is not None:
            assert t[name].grad.dtype == torch.float32
            assert max_rel(t[name].grad, exact[name].grad) < 5e-3, name


def test_dropout_touches_the_low_rank_branch_only():
    t = case("dora", True)
    y = fused(t, dropped=torch.zeros_like(t["x"]).requires_grad_())
    plain = {**t, "lora_B": torch.zeros_like(t["lora_B"])}
    factor = t["magnitude"] / row_norm(t["weight"], t["lora_A"], t["lora_B"], 2.0, squared_norm(t["weight"]))
    expected = (fused({**plain, "magnitude": None}) - t["bias"]) * factor + t["bias"]
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    assert t["lora_A"].grad.abs().max() == 0 and t["lora_B"].grad.abs().max() == 0


def test_no_gradient_where_none_is_wanted():
    t = case("dora", True)
    t["x"] = t["x"].detach()
    y = fused(t)
    y.sum().backward()
    assert t["x"].grad is None and t["weight"].grad is None and t["lora_A"].grad is not None


def test_the_dense_update_is_never_formed(monkeypatch):
    """No product of the shape of W0, forward or backward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    shapes = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and "mm" in str(func):
                shapes.add(tuple(result.shape))
            return result

    t = case("dora", True)
    with Watch():
        fused(t).sum().backward()
    assert shapes and (40, 24) not in shapes and (24, 40) not in shapes


def test_autocast_computes_in_its_dtype():
    from mmdora.layers.linear import AdaptedLinear

    torch.manual_seed(0)
    layer = AdaptedLinear(nn.Linear(24, 40), "dora", rank=4, scaling=2.0)
    x = torch.randn(6, 24, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
    assert {p.grad.dtype for p in layer.parameters() if p.grad is not None} == {torch.float32}
    expected = layer(x)
    assert max_rel(y, expected) < 2**-7
