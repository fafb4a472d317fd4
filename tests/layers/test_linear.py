"""The adapted linear's dropout, and its place in autocast; what it shares with other kinds is in test_adapted.py."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from layer_cases import adapted, inputs, make, max_rel, same_as_peft, shake
from torch import nn

from mmdora.ops import dropout

METHOD = pytest.mark.parametrize("method", ["lora", "dora"])


@METHOD
def test_equals_peft_without_dropout(method):
    for mode in ("branch", "reference"):
        _, layer = make("linear", method, dropout_mode=mode)
        shake(layer)
        same_as_peft(layer, inputs("linear"))


@METHOD
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_reference_dropout_is_pefts_with_the_same_mask(method, bias):
    torch.manual_seed(0)
    layer = adapted(nn.Linear(24, 40, bias=bias), method, dropout=0.3, dropout_mode="reference")
    shake(layer)
    same_as_peft(layer, torch.randn(3, 7, 24), dropout=0.3)
    same_as_peft(layer.eval(), torch.randn(3, 7, 24), dropout=0.3)


def test_reference_dropout_of_dora_is_another_function_than_branch():
    results = []
    for mode in ("branch", "reference"):
        _, layer = make("linear", dropout=0.3, dropout_mode=mode)
        shake(layer)
        torch.manual_seed(3)
        results.append(layer(inputs("linear")))
    assert max_rel(*results) > 1e-2


def ones_with_zeros(shape, p):
    flat = torch.ones(math.prod(shape))
    return flat.index_fill(0, dropout.zeros(flat.numel(), p), 0).view(shape)


@METHOD
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_branch_dropout(method, dtype):
    """y = c (W0 x + s B A d(x)) + bias, and its gradients with the same d; d is zero or 1 / (1 - p)."""
    _, layer = make("linear", method, dtype, dropout=0.4)
    shake(layer)
    x = inputs("linear", rows=512).to(dtype).requires_grad_()
    torch.manual_seed(3)
    y = layer(x)
    torch.manual_seed(3)
    mask = ones_with_zeros(x.shape, 0.4).double()
    assert abs((mask == 0).double().mean() - 0.4) < 0.02
    own: dict[str, Any] = {n: p.detach().double().requires_grad_() for n, p in layer.named_parameters()}
    x64 = x.detach().double().requires_grad_()
    z = x64 @ own["weight"].T + 2.0 / 0.6 * ((x64 * mask) @ own["lora_A"].T) @ own["lora_B"].T
    factor = own["magnitude"] / layer.row_norm().double() if method == "dora" else 1.0
    expected = factor * z + own["bias"]
    bound = 1e-5 if dtype == torch.float32 else 2**-6
    assert max_rel(y, expected) <= bound
    gradient = torch.randn_like(y)
    y.backward(gradient)
    expected.backward(gradient.double())
    assert max_rel(x.grad, x64.grad) <= bound  # pyright: ignore
    for name, parameter in layer.named_parameters():
        if parameter.requires_grad:
            assert max_rel(parameter.grad, own[name].grad) <= bound, name


@pytest.mark.parametrize("p", [0.01, 0.05, 0.5, 0.9])
def test_dropout_is_independent_draws(p):
    """Share, variance of counts in blocks, and neighbours, as of a Bernoulli process (5 sigma)."""
    torch.manual_seed(0)
    dropped = 1 - ones_with_zeros((1000, 512), p).double()
    sigma = (p * (1 - p) / dropped.numel()) ** 0.5
    assert abs(dropped.mean() - p) < 5 * sigma
    counts = dropped.sum(1)
    variance = counts.var() / (512 * p * (1 - p))
    assert abs(variance - 1) < 5 * (2 / 1000) ** 0.5 + 0.05
    centred = dropped.flatten() - p
    assert abs((centred[1:] * centred[:-1]).mean()) < 5 * p * (1 - p) / dropped.numel() ** 0.5
    edges = torch.stack([ones_with_zeros((3,), p) == 0 for _ in range(3000)]).double().mean(0)
    assert (edges - p).abs().max() < 5 * (p * (1 - p) / 3000) ** 0.5


def test_dropout_goes_on_where_its_first_draws_end(monkeypatch):
    monkeypatch.setattr(
        dropout, "math", SimpleNamespace(sqrt=lambda expected: -expected / 8, log1p=math.log1p)
    )  # 8 at a time
    torch.manual_seed(0)
    found = dropout.zeros(4000, 0.9)
    assert abs(len(found) - 3600) < 5 * (4000 * 0.9 * 0.1) ** 0.5
    assert (found.diff() > 0).all() and found[0] >= 0 and found[-1] < 4000


def test_dropout_only_in_training_and_from_torchs_generator():
    _, layer = make("linear", dropout=0.5)
    shake(layer)
    x = inputs("linear")
    torch.manual_seed(0)
    first, second = layer(x), layer(x)
    torch.manual_seed(0)
    assert torch.equal(layer(x), first) and not torch.equal(first, second)
    assert torch.equal(layer.eval()(x), layer(x))
    state = torch.get_rng_state()
    layer(x)
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_is_repeated_by_recomputation():
    from torch.utils.checkpoint import checkpoint

    _, layer = make("linear", dropout=0.5)
    shake(layer)
    gradients = []
    for recompute in (False, True):
        x = inputs("linear").requires_grad_()
        layer.zero_grad()
        torch.manual_seed(0)
        y: Any = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
        y.square().sum().backward()
        gradients.append([x.grad, layer.lora_A.grad, layer.lora_B.grad, layer.magnitude.grad])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_autocast_computes_in_its_dtype():
    for mode in ("branch", "reference"):
        _, layer = make("linear", dropout=0.1, dropout_mode=mode)
        x = inputs("linear").requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.bfloat16
        y.float().sum().backward()
        trained: list[Any] = [x, layer.lora_A, layer.lora_B, layer.magnitude]
        assert {p.grad.dtype for p in trained} == {torch.float32}
