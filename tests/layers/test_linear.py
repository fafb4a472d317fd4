"""The adapted linear as a module: names, cache, conversions, refusals."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmdora.errors import MmdoraError
from mmdora.layers.linear import AdaptedLinear
from mmdora.ops import reference


def make(method: Any = "dora", dtype=torch.float32, **kwargs) -> tuple[nn.Linear, Any]:
    torch.manual_seed(0)
    base = nn.Linear(24, 40).to(dtype)
    options = {} if method == "magnitude" else {"rank": 4, "scaling": 2.0}
    return base, AdaptedLinear(base, method, **options, **kwargs)


def shake(layer, seed=1):
    torch.manual_seed(seed)
    with torch.no_grad():
        if layer.lora_B is not None:
            layer.lora_B.normal_(std=0.3)
        if layer.magnitude is not None:
            layer.magnitude *= 1 + 0.3 * torch.rand_like(layer.magnitude)


def expected(layer, x):
    return reference.adapted_linear(
        x, layer.weight, layer.bias, layer.lora_A, layer.lora_B, layer.magnitude, layer.scaling
    )


def close(layer, x):
    torch.testing.assert_close(layer(x), expected(layer, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["lora", "dora", "magnitude"])
def test_starts_as_the_base(method, dtype):
    base, layer = make(method, dtype)
    x = torch.randn(7, 24).to(dtype)
    torch.testing.assert_close(layer(x), base(x), rtol=1e-6 if dtype == torch.float32 else 2**-7, atol=1e-6)


def test_names_are_the_bases_and_parameters_are_the_same_objects():
    base, layer = make()
    assert layer.weight is base.weight and layer.bias is base.bias
    assert list(layer.state_dict()) == ["weight", "bias", "lora_A", "lora_B", "magnitude"]
    assert [n for n, p in layer.named_parameters() if p.requires_grad] == ["lora_A", "lora_B", "magnitude"]


def test_adapter_is_fp32_on_a_half_base_and_stays_so():
    _, layer = make(dtype=torch.bfloat16)
    assert {p.dtype for p in (layer.lora_A, layer.lora_B, layer.magnitude)} == {torch.float32}
    _, layer = make()
    layer.to(torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16 and layer.magnitude.dtype == torch.float32


@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
def test_norm_is_fresh_after_optimizer_steps(options):
    _, layer = make()
    shake(layer)
    x = torch.randn(7, 24)
    optimizer = torch.optim.AdamW([p for p in layer.parameters() if p.requires_grad], lr=0.1, **options)
    for _ in range(3):
        layer(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        close(layer, x)


def test_norm_is_computed_once_per_step(monkeypatch):
    _, layer = make()
    calls = []
    original = AdaptedLinear.row_norm
    monkeypatch.setattr(AdaptedLinear, "row_norm", lambda self, **kw: calls.append(1) or original(self, **kw))
    x = torch.randn(7, 24, requires_grad=True)
    optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=0.1)
    for step in (1, 2):
        for _ in range(4):
            checkpoint(layer, x, use_reentrant=False).sum().backward()
        assert len(calls) == step
        optimizer.step()


def test_norm_is_fresh_after_everything_else():
    _, layer = make()
    x = torch.randn(7, 24)
    close(layer, x)
    shake(layer)
    close(layer, x)
    other = copy.deepcopy(layer)
    shake(other, seed=5)
    close(other, x)
    close(layer, x)
    layer.load_state_dict(other.state_dict())
    torch.testing.assert_close(layer(x), other(x), rtol=0, atol=0)
    layer.to(torch.float64)
    close(layer, x.double())
    changed = {**layer.state_dict(), "weight": layer.weight * 2}
    layer.load_state_dict(changed)
    close(layer, x.double())
    layer.load_state_dict({**changed, "lora_A": layer.lora_A * 3}, assign=True)
    close(layer, x.double())


def test_gradients_through_checkpointing_are_the_same():
    _, layer = make()
    shake(layer)
    x: Any = torch.randn(7, 24, requires_grad=True)
    layer(x).square().sum().backward()
    plain = [p.grad.clone() for p in (x, layer.lora_A, layer.lora_B, layer.magnitude)]
    for p in (x, layer.lora_A, layer.lora_B, layer.magnitude):
        p.grad = None
    checkpoint(layer, x, use_reentrant=False).square().sum().backward()
    for before, p in zip(plain, (x, layer.lora_A, layer.lora_B, layer.magnitude), strict=True):
        assert torch.equal(before, p.grad)


@pytest.mark.parametrize("method", ["lora", "dora", "magnitude"])
def test_merge_gives_a_plain_linear_with_the_same_weight_object(method):
    base, layer = make(method)
    shake(layer)
    x = torch.randn(7, 24)
    y = layer(x)
    plain = layer.merge()
    assert type(plain) is nn.Linear and plain.weight is base.weight and plain.weight.requires_grad
    torch.testing.assert_close(plain(x), y, rtol=1e-5, atol=1e-5)


def test_merge_rounds_once():
    _, layer = make()
    shake(layer)
    exact = layer.merged_weight()
    assert torch.equal(layer.merge(torch.bfloat16).weight, exact.bfloat16())


def test_unload_gives_back_the_base():
    base, layer = make()
    before = base.weight.detach().clone()
    shake(layer)
    plain = layer.unload()
    assert plain.weight is base.weight and torch.equal(plain.weight, before) and plain.weight.requires_grad


def test_dropout_only_in_training():
    _, layer = make(dropout=0.5)
    shake(layer)
    x = torch.randn(64, 24, requires_grad=True)
    layer.eval()
    close(layer, x)
    layer.train()
    torch.manual_seed(0)
    y = layer(x)
    torch.manual_seed(0)
    dropped = torch.nn.functional.dropout(x, 0.5)
    factor = layer.magnitude / layer.row_norm()
    z = x @ layer.weight.T + 2.0 * dropped @ layer.lora_A.T @ layer.lora_B.T
    wanted = factor.detach() * z + layer.bias
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
    gradient = torch.randn_like(y)
    found = torch.autograd.grad(y, [x, layer.lora_A, layer.lora_B], gradient)
    for a, b in zip(found, torch.autograd.grad(wanted, [x, layer.lora_A, layer.lora_B], gradient), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


class OwnForward(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.MultiheadAttention(8, 2).out_proj, "read, not called"),
        (OwnForward(4, 4), "forward of its own"),
        (nn.Conv2d(3, 4, 2), "not an nn.Linear"),
    ],
    ids=["attention", "own-forward", "conv"],
)
def test_refuses_what_it_would_break(module, message):
    with pytest.raises(MmdoraError, match=message):
        AdaptedLinear(module, "lora", rank=2)
