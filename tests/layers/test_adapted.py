"""What holds for every kind of adapted module: the equations, names, dtypes, conversions, refusals."""

import copy
import pickle
from typing import Any

import pytest
import torch
from layer_cases import BASES, METHODS, Dense, adapted, inputs, make, max_rel, output, shake, weight
from torch import nn
from torch.nn.utils import parametrizations

from mmdora.errors import MmdoraError
from mmdora.layers import KINDS, kind_of

KIND = pytest.mark.parametrize("kind", BASES)
METHOD = pytest.mark.parametrize("method", METHODS)


def trained(layer) -> dict[str, Any]:
    return {name: p for name, p in layer.named_parameters() if p.requires_grad}


@KIND
@METHOD
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_starts_as_the_base(kind, method, dtype):
    base, layer = make(kind, method, dtype)
    x = inputs(kind)
    x = x.to(dtype) if x.is_floating_point() else x
    found, expected = output(layer, x), output(base, x)
    assert found.dtype == expected.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=1e-6 if dtype == torch.float32 else 2**-7, atol=1e-6)


@KIND
@METHOD
def test_outputs_and_gradients_are_the_dense_equations(kind, method):
    _, layer = make(kind, method)
    shake(layer)
    exact = Dense(layer)
    x: Any = inputs(kind).requires_grad_(kind != "embedding")
    x64: Any = x.detach().double().requires_grad_() if kind != "embedding" else x
    y, expected = output(layer, x), exact(x64)
    assert max_rel(y, expected) <= 1e-5
    gradient = torch.randn_like(y)
    y.backward(gradient)
    expected.backward(gradient.double())
    if kind != "embedding":
        assert max_rel(x.grad, x64.grad) <= 1e-5
    wanted: dict[str, Any] = dict(exact.named_parameters())
    for name, parameter in trained(layer).items():
        expected_gradient = wanted[name].grad
        if (kind, name) == ("embedding", "lora_A"):
            assert expected_gradient[:, 0].abs().max() > 0 and parameter.grad[:, 0].abs().max() == 0
            expected_gradient[:, 0] = 0  # padding_idx
        assert max_rel(parameter.grad, expected_gradient) <= 1e-5, name


@KIND
@pytest.mark.parametrize("tiny", [0.0, 1e-9, -1e-4])
def test_magnitude_near_zero_has_its_gradient(kind, tiny):
    _, layer = make(kind)
    shake(layer)
    with torch.no_grad():
        layer.magnitude[3] = tiny
    exact: Any = Dense(layer)
    y = output(layer, inputs(kind))
    gradient = torch.randn_like(y)
    y.backward(gradient)
    exact(inputs(kind)).backward(gradient.double())
    assert layer.magnitude.grad[3] != 0
    assert max_rel(layer.magnitude.grad, exact.magnitude.grad) <= 1e-5


@KIND
def test_zero_rows_learn_and_give_no_nan(kind):
    base, _ = make(kind)
    with torch.no_grad():
        (weight(base).T if kind == "embedding" else weight(base))[4] = 0
    layer = adapted(base)
    output(layer, inputs(kind)).square().sum().backward()
    torch.optim.AdamW(trained(layer).values(), lr=0.1).step()
    y = output(layer, inputs(kind))
    y.square().sum().backward()
    assert y.isfinite().all() and all(p.grad.isfinite().all() for p in trained(layer).values())


@pytest.mark.parametrize("kind", [kind for kind in BASES if kind != "attention"])  # which rounds several times
def test_bf16_shows_a_magnitude_change_of_2_to_minus_10(kind):
    _, layer = make(kind, "dora", torch.bfloat16)
    shake(layer)  # an embedding of bf16 numbers alone would round back to them
    x = inputs(kind, rows=40)
    x = x.bfloat16() if x.is_floating_point() else x
    before = output(layer, x)
    with torch.no_grad():
        layer.magnitude *= 1 + 2**-10
    changed = (before != output(layer, x)).float().mean().item()
    assert 0.05 < changed < 0.5  # 2^-10 is a quarter or an eighth of a bf16 step


@KIND
def test_names_are_the_bases_and_parameters_are_the_same_objects(kind):
    base, layer = make(kind)
    own, inside = ([name for name in base.state_dict() if ("." in name) == deep] for deep in (False, True))
    assert weight(layer) is weight(base) and not weight(layer).requires_grad
    assert list(layer.state_dict()) == [*own, "lora_A", "lora_B", "magnitude", *inside]
    assert list(trained(layer)) == ["lora_A", "lora_B", "magnitude"]
    assert all(getattr(layer, name) == getattr(base, name) for name in getattr(base, "__constants__", ()))
    assert [*layer.named_modules()][1:] == [*base.named_modules()][1:] and not list(layer.buffers())


@KIND
def test_adapter_is_fp32_on_a_half_base_and_stays_so(kind):
    _, layer = make(kind, dtype=torch.bfloat16)
    assert {p.dtype for p in trained(layer).values()} == {torch.float32}
    _, layer = make(kind)
    layer.to(torch.bfloat16)
    assert weight(layer).dtype == torch.bfloat16 and {p.dtype for p in trained(layer).values()} == {torch.float32}


@KIND
@METHOD
def test_merge_gives_the_plain_module_with_the_same_weight_object(kind, method):
    base, layer = make(kind, method)
    shake(layer)
    y = output(layer, inputs(kind))
    plain: Any = layer.merge()
    assert type(plain) is type(base) and weight(plain) is weight(base) and weight(plain).requires_grad
    assert str(plain) == str(base)
    assert max_rel(output(plain, inputs(kind)), y) <= 1e-5


@KIND
def test_merge_rounds_once(kind):
    _, layer = make(kind)
    shake(layer)
    exact = layer.merged_weight()
    plain: Any = layer.merge(torch.bfloat16)
    assert torch.equal(weight(plain), exact.bfloat16()) and weight(plain).is_contiguous()
    assert {p.dtype for p in plain.parameters(recurse=False)} == {torch.bfloat16}


@KIND
def test_unload_gives_back_the_base(kind):
    base, layer = make(kind)
    before = weight(base).detach().clone()
    shake(layer)
    plain: Any = layer.eval().unload()
    assert weight(plain) is weight(base) and torch.equal(weight(plain), before) and weight(plain).requires_grad
    assert type(plain) is type(base) and not plain.training
    assert torch.equal(output(plain, inputs(kind)), output(base, inputs(kind)))


@KIND
@pytest.mark.parametrize("twin", [copy.deepcopy, copy.copy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_keep_nothing_of_the_originals_norms(kind, twin):
    _, layer = make(kind)
    shake(layer)
    x = inputs(kind)
    before = output(layer, x)
    other = twin(layer)
    assert torch.equal(output(other, x), before)
    assert other.scales is not layer.scales
    if other.lora_B is not layer.lora_B:
        shake(other, seed=5)
        assert max_rel(output(other, x), Dense(other)(x)) <= 1e-5
    assert torch.equal(output(layer, x), before)


def test_a_subclass_without_a_forward_of_its_own_comes_back_as_itself():
    class Tagged(nn.Linear):
        tag = "kept"

    base = Tagged(4, 4)
    plain: Any = adapted(base).unload()
    assert type(plain) is Tagged and plain.weight is base.weight


class OwnLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


class OwnConv(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight / weight.norm(), bias)


class ScaledEmbedding(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) * 2


class OwnAttention(nn.MultiheadAttention):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.MultiheadAttention(8, 2, kdim=6), "another width"),
        (nn.MultiheadAttention(8, 2, add_bias_kv=True), "add_bias_kv"),
        (nn.MultiheadAttention(8, 2, add_zero_attn=True), "add_zero_attn"),
        (OwnAttention(8, 2), "forward of its own"),
        (OwnLinear(4, 4), "forward of its own"),
        (OwnConv(3, 4, 2), "forward of its own"),
        (ScaledEmbedding(4, 4), "forward of its own"),
        (nn.ConvTranspose2d(3, 4, 2), "no linear, convolution, embedding or"),
        (parametrizations.weight_norm(nn.Linear(4, 4)), "parametrisation"),
        (nn.Conv2d(4, 4, 3, groups=4), "multiple of 4, not 2"),
        (nn.Embedding(4, 4, max_norm=1.0), "max_norm"),
        (nn.Embedding(4, 4, sparse=True), "sparse"),
        (nn.Embedding(4, 4, scale_grad_by_freq=True), "scale_grad_by_freq"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_refuses_what_it_would_break(module, message):
    with pytest.raises(MmdoraError, match=message):
        adapted(module, "lora", rank=2)


def test_every_kind_names_what_it_takes():
    plain = r"not an nn\.(Linear|Conv1d or .*|Embedding|MultiheadAttention)"
    for kind in KINDS:
        with pytest.raises(MmdoraError, match=rf"ReLU is ({plain}|no parameter of experts|no quantised linear)$"):
            kind(nn.ReLU(), "lora", rank=2)
    assert kind_of(nn.ReLU()) is None


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@KIND
def test_hooks_of_the_base_stay_with_the_module(kind):
    """Registered before, while adapted, and removed by their handles: each runs around the module as it is then."""
    base = BASES[kind]()
    calls: list[str] = []
    early = base.register_forward_hook(lambda module, args, output: calls.append("early"))
    base.register_forward_pre_hook(lambda module, args, kwargs: calls.append("before"), with_kwargs=True)
    base.register_full_backward_hook(lambda module, grads_in, grads_out: calls.append("backward"))
    base.register_state_dict_post_hook(lambda module, state, prefix, metadata: calls.append("state"))
    layer = adapted(base, "dora")
    output(layer, inputs(kind)).sum().backward()
    assert calls == ["before", "early", "backward"]
    layer.state_dict()
    assert calls.pop() == "state"
    layer.register_forward_hook(lambda module, args, output: calls.append("late"))
    early.remove()
    plain = layer.unload()
    calls.clear()
    output(plain, inputs(kind)).sum().backward()
    assert calls == ["before", "late", "backward"]


@KIND
def test_a_hook_may_replace_the_output(kind):
    base = BASES[kind]()
    base.register_forward_hook(lambda module, args, output: None if isinstance(output, tuple) else output + 1)
    base.register_forward_hook(
        lambda module, args, output: (output[0] + 1, *output[1:]) if isinstance(output, tuple) else None
    )
    expected = output(base, inputs(kind))
    torch.testing.assert_close(output(adapted(base, "dora"), inputs(kind)), expected, rtol=1e-5, atol=1e-5)


@KIND
def test_a_module_whose_own_forward_was_replaced_is_refused(kind):
    base: Any = BASES[kind]()
    base.forward = type(base).forward.__get__(base)
    with pytest.raises(MmdoraError, match=r"forward of this very .* was replaced"):
        adapted(base, "lora")
