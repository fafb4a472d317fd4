"""Gates on the components of B A: the equation, closed components, and what is left of them in files."""

import copy
from typing import Any

import pytest
import torch
from expert_cases import adapt as adapt_experts
from expert_cases import experts
from expert_cases import inputs as expert_inputs
from expert_cases import shake as shake_experts
from layer_cases import BASES, Dense, Peft, adapted, inputs, make, max_rel, output, shake
from torch import nn

from mmdora.adapter_files.tensors import from_file, to_file
from mmdora.layers.gates import fold_gate, open_gate

OPTIONS = {"branch": {}, "reference": {"dropout": 0.3, "dropout_mode": "reference"}}
CLOSED = (1, 3)


def gated(kind: str, method: str = "dora", **options: Any) -> Any:
    """An adapted module with gates, of which two are closed."""
    _, layer = make(kind, method, **options)
    shake(layer)
    open_gate(layer)
    with torch.no_grad():
        layer.gate.copy_(torch.tensor([0.7, 0.0, -1.3, 0.0]))
    return layer


def without(layer: Any, components: tuple[int, ...]) -> Any:
    """The module of the components that are left, made anew: A[kept] and B[:, kept], with g in A."""
    kept = [index for index in range(layer.rank) if index not in components]
    fresh = adapted(copy.deepcopy(layer).unload(), layer.method, len(kept))
    with torch.no_grad():
        fresh.lora_A.copy_((layer.lora_A * layer.gate.view(layer.gate_shape))[kept])
        fresh.lora_B.copy_(layer.lora_B[:, kept])
        if layer.magnitude is not None:
            fresh.magnitude.copy_(layer.magnitude)
    return fresh


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_gates_change_nothing_at_first(kind, method):
    base, layer = make(kind, method)
    shake(layer)
    x = inputs(kind)
    before = output(layer, x)
    open_gate(layer)
    assert torch.equal(output(layer, x), before) and layer.gate.tolist() == [1.0] * 4
    fresh = adapted(base if kind != "attention" else BASES[kind](), method)
    plain = output(copy.deepcopy(fresh).unload(), x)
    open_gate(fresh)
    assert max_rel(output(fresh, x), plain) < 1e-5  # B A = 0: the base


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_output_and_gradients_are_those_of_the_dense_equation(kind, method):
    """W' = diag(m / n) (W0 + s B diag(g) A), n of the gated matrix and constant in backward."""
    layer, x = gated(kind, method).train(), inputs(kind)
    x = x.clamp_min(1) if kind == "embedding" else x  # The padding token gets no gradient, which the equation has.
    dense = Dense(layer)
    gate = nn.Parameter(layer.gate.detach().double())
    lora_A: Any = dense.lora_A
    scaled = {"lora_A": lora_A * gate.view(layer.gate_shape)}
    exact = torch.func.functional_call(dense, scaled, (x,))
    ours = output(layer, x)
    assert max_rel(ours, exact) < 1e-5
    weights = torch.randn(exact.shape, generator=torch.Generator().manual_seed(2)).double()
    (exact * weights).sum().backward()
    (ours * weights.float()).sum().backward()
    for name in ("lora_A", "lora_B", "magnitude"):
        if getattr(layer, name) is not None:
            assert max_rel(getattr(layer, name).grad, getattr(dense, name).grad) < 1e-4, name
    assert gate.grad is not None and max_rel(layer.gate.grad, gate.grad) < 1e-4
    assert layer.gate.grad[list(CLOSED)].abs().min() > 0  # a closed gate may open again


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_closed_component_is_as_if_it_were_not_there(kind, method):
    layer, x = gated(kind, method), inputs(kind)
    small = without(layer, CLOSED)
    assert max_rel(output(layer, x), output(small, x)) < 1e-6
    merged = layer.merged_weight()
    assert max_rel(merged, small.merged_weight()) < 1e-6
    with torch.no_grad():  # Whatever the closed component holds, it changes nothing, to the bit.
        layer.lora_B[:, CLOSED[0]] += 5
    assert torch.equal(layer.merged_weight(), merged)
    fold_gate(layer)
    assert layer.gate is None and layer.rank == 2 and layer.lora_A.shape == small.lora_A.shape
    assert torch.equal(layer.lora_A, small.lora_A) and torch.equal(layer.lora_B, small.lora_B)
    assert torch.equal(output(layer, x), output(small, x))
    assert isinstance(layer.lora_A, nn.Parameter) and layer.lora_A.requires_grad


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_module_of_which_all_components_are_closed(kind, method):
    layer, x = gated(kind, method), inputs(kind)
    with torch.no_grad():
        layer.gate.zero_()
    before = output(layer, x)
    fold_gate(layer)
    assert (layer.method, layer.rank) == (("magnitude", 0) if method == "dora" else ("lora", 1))
    assert max_rel(output(layer, x), before) < 1e-6
    if method == "lora":
        assert max_rel(before, output(copy.deepcopy(layer).unload(), x)) < 1e-6


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_files_hold_the_gated_product_which_peft_computes(kind, method):
    layer, x = gated(kind, method), inputs(kind)
    tensors = to_file(layer, magnitude=method == "dora")
    fresh = adapted(copy.deepcopy(layer).unload(), method)
    from_file(fresh, tensors)
    assert max_rel(output(fresh, x), output(layer, x)) < 1e-6
    assert torch.equal(fresh.merged_weight(), layer.merged_weight())
    if not (kind == "attention" and method == "dora"):  # PEFT has none.
        assert max_rel(output(layer, x), Peft(layer)(x)) < 1e-5
    again = copy.deepcopy(layer)
    from_file(again, tensors)
    assert torch.equal(again.merged_weight(), layer.merged_weight()) and again.gate.tolist() == [1.0] * 4


def test_dropout_as_in_peft_meets_the_gated_product():
    layer, x = gated("linear", **OPTIONS["reference"]).train(), inputs("linear")
    small = copy.deepcopy(layer)
    fold_gate(small)
    outputs = []
    for module in (layer, small):
        torch.manual_seed(5)
        outputs.append(module(x))
    assert max_rel(*outputs) < 1e-6


def test_the_norm_follows_a_gate_that_is_written_to():
    """The optimizer writes to gates alone in a step; a norm that was kept would be the one before."""
    layer, x = gated("linear").train(), inputs("linear")
    layer(x)
    with torch.no_grad():
        layer.gate.fill_(2.0)
    fresh = copy.deepcopy(layer)
    fold_gate(fresh)
    assert max_rel(layer(x), fresh(x)) < 1e-6
    assert max_rel(layer.row_norm(), torch.linalg.vector_norm(
        layer.weight + 2.0 * layer.lora_B @ (2.0 * layer.lora_A), dim=1)) < 1e-6  # fmt: skip


def test_a_compiled_module_has_its_gates():
    layer, x = gated("linear"), inputs("linear")
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert max_rel(compiled(x), layer(x)) < 1e-6
    with torch.no_grad():
        layer.gate.fill_(0.5)
    assert max_rel(compiled(x), layer(x)) < 1e-6


def test_filters_of_a_grouped_convolution_stay_as_zeros():
    torch.manual_seed(0)
    layer = adapted(nn.Conv2d(6, 10, 3, groups=2))
    shake(layer)
    open_gate(layer)
    with torch.no_grad():
        layer.gate.copy_(torch.tensor([0.5, 0.0, 2.0, 1.0]))
    x = inputs("conv")
    before = layer(x)
    fold_gate(layer)
    assert layer.rank == 4 and max_rel(layer(x), before) < 1e-6 and not layer.lora_A[1].any()


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_experts_share_the_gates_of_a_parameter(method):
    module = shake_experts(adapt_experts(experts("qwen3_vl_moe"), method))
    given = expert_inputs("qwen3_vl_moe")
    for adapter in module.adapters():
        before = module(*given)
        open_gate(adapter)
        assert max_rel(module(*given), before) < 1e-6
        with torch.no_grad():
            adapter.gate.copy_(torch.tensor([0.7, 0.0, -1.3, 0.0]))
        closed = module(*given)
        assert max_rel(closed, before) > 1e-3
        merged = adapter.merged_weight()
        fold_gate(adapter)
        assert adapter.rank == 2 and adapter.lora_A.shape[1] == 2
        assert max_rel(module(*given), closed) < 1e-6 and max_rel(adapter.merged_weight(), merged) < 1e-6
