"""Adapters on quantised linears: against float64 on the dequantised weight, and against PEFT's QLoRA and QDoRA."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from layer_cases import METHODS, adapted, max_rel, shake
from quantized_bases import FORMS, bnb, quantized, values
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmdora.errors import MmdoraError
from mmdora.layers import AdaptedQuantizedLinear
from mmdora.layers.dequantize import QuantizedMatrix, held_bytes, sizes
from mmdora.ops import reference


def layer_on(form: str, method: str, **options: Any) -> Any:
    layer = adapted(quantized(form), method, **options)
    shake(layer)
    return layer.train()


def doubled(layer: Any) -> dict[str, Any]:
    named = ((name, getattr(layer, name)) for name in ("lora_A", "lora_B", "magnitude"))
    return {name: None if own is None else own.detach().double().requires_grad_() for name, own in named}


@pytest.mark.parametrize("columns", [48, 50, 80, 1040])
@pytest.mark.parametrize("form", FORMS)
def test_rows_are_those_of_the_library_to_the_bit(form: str, columns: int):
    module = quantized(form, columns, rows=1100)
    matrix, whole = QuantizedMatrix(module), values(module)
    assert torch.equal(matrix[:], whole) and torch.equal(matrix[3:17], whole[3:17])
    for rows in (1, 7, 1024):
        assert torch.equal(torch.cat(list(matrix.split(rows))), whole)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", FORMS)
def test_output_and_gradients_are_those_of_the_dequantised_weight_in_float64(form: str, method: str):
    layer = layer_on(form, method)
    assert isinstance(layer, AdaptedQuantizedLinear)
    whole, own = values(layer.quantized).double(), doubled(layer)
    x = torch.randn(5, 3, 48, requires_grad=True)
    fine = x.detach().double().requires_grad_()
    y = layer(x)
    exact = fine @ reference.adapted_weight(whole, *own.values(), 2.0).T + layer.bias.double()  # pyright: ignore
    g = torch.randn_like(y)
    y.backward(g)
    exact.backward(g.double())
    assert max_rel(y, exact) < 1e-5 and max_rel(x.grad, fine.grad) < 1e-5  # pyright: ignore
    for name, tensor in own.items():
        if tensor is not None:
            assert max_rel(getattr(layer, name).grad, tensor.grad) < 1e-5
    assert layer.weight.grad is None and max_rel(layer.merge()(x), exact) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_it_begins_as_the_quantised_linear_and_unload_gives_that_back(form: str):
    module = quantized(form)
    x = torch.randn(4, 48)
    before, weight = module(x), module.weight
    layer = adapted(module, "dora")
    torch.testing.assert_close(layer(x), before)
    torch.testing.assert_close(layer.magnitude.detach(), values(layer.quantized).norm(dim=1))
    plain = layer.unload()
    assert type(plain) is type(module) and plain.weight is weight and torch.equal(plain(x), before)


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_it_is_what_peft_computes(form: str, use_dora: bool):
    peft = pytest.importorskip("peft")
    layer = layer_on(form, "dora" if use_dora else "lora")
    holder: Any = nn.Sequential(quantized(form))
    holder.is_loaded_in_8bit, holder.is_loaded_in_4bit = form == "int8", form != "int8"
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0"], use_dora=use_dora)
    theirs: Any = peft.get_peft_model(holder, config)
    lora: Any = theirs.base_model.model[0]
    assert type(lora).__module__ == "peft.tuners.lora.bnb"
    with torch.no_grad():
        lora.lora_A["default"].weight.copy_(layer.lora_A)
        lora.lora_B["default"].weight.copy_(layer.lora_B)
        if use_dora:
            torch.testing.assert_close(
                lora.lora_magnitude_vector["default"].weight, QuantizedMatrix(layer.quantized)[:].norm(dim=1)
            )
            lora.lora_magnitude_vector["default"].weight.copy_(layer.magnitude)
    x = torch.randn(6, 48)
    ours, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, z = layer(ours), lora(other)
    torch.testing.assert_close(y, z, rtol=1e-5, atol=1e-5)
    g = torch.randn_like(y)
    y.backward(g)
    z.backward(g)
    torch.testing.assert_close(ours.grad, other.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.lora_A.grad, lora.lora_A["default"].weight.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.lora_B.grad, lora.lora_B["default"].weight.grad, rtol=1e-4, atol=1e-5)
    if use_dora:
        torch.testing.assert_close(
            layer.magnitude.grad, lora.lora_magnitude_vector["default"].weight.grad, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("mode", ["branch", "reference"])
def test_dropout_keeps_the_expectation_and_checkpointing_the_gradients(mode: Any):
    layer = layer_on("nf4", "dora", dropout=0.3, dropout_mode=mode)
    x = torch.randn(4, 48, requires_grad=True)
    grads = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        torch.manual_seed(3)
        y: Any = run(x)
        grads.append([*torch.autograd.grad(y.square().sum(), [x, layer.lora_A, layer.lora_B, layer.magnitude]), y])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    with torch.no_grad():
        mean = torch.stack([layer(x) for _ in range(400)]).mean(0)
        assert max_rel(mean, layer.eval()(x)) < 0.2


def test_norms_are_computed_once_per_step_and_nothing_dense_is_kept(monkeypatch: pytest.MonkeyPatch):
    layer = layer_on("nf4", "dora")
    reads: list[Any] = []
    monkeypatch.setattr(
        QuantizedMatrix, "split", lambda own, rows, split=QuantizedMatrix.split: reads.append(rows) or split(own, rows)
    )
    optimizer = torch.optim.AdamW([layer.lora_A, layer.lora_B, layer.magnitude])
    for step in range(1, 4):
        for _ in range(3):
            layer(torch.randn(2, 48)).sum().backward()
        assert len(reads) == step
        optimizer.step()
    kept = [value for value in vars(layer.scales).values() if isinstance(value, torch.Tensor)]
    assert all(tensor.numel() <= 96 for tensor in kept)


def test_bf16_rounds_its_product_and_keeps_parameters_in_fp32():
    layer = adapted(quantized("nf4", dtype=torch.bfloat16), "dora")
    shake(layer)
    assert layer.magnitude.dtype == torch.float32
    x = torch.randn(4, 48, dtype=torch.bfloat16)
    exact = x.double() @ layer.merged_weight().double().T + layer.bias.double()
    assert layer(x).dtype == torch.bfloat16 and max_rel(layer(x), exact) < 2e-2
    with torch.autocast("cpu", torch.bfloat16):
        assert max_rel(layer(x.float()), exact) < 2e-2
    assert layer.merge().weight.dtype == torch.bfloat16 and layer.merge(torch.float32).weight.dtype == torch.float32


def test_a_copy_and_a_move_keep_what_it_computes():
    layer, x = layer_on("nf4", "dora").eval(), torch.randn(3, 48)
    before = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), before) and torch.equal(layer.to(torch.float32)(x), before)


def test_sizes_count_values_and_held_bytes_count_bytes():
    module = quantized("nf4", 128, 64)
    assert sizes(module) == {"weight": 128 * 64, "bias": 64}
    # Half a byte for each value, one for each 64 of them, four for each 256 of these, and two codes.
    assert held_bytes(module) == 128 * 64 // 2 + 128 + 4 + 4 * 16 + 4 * 256
    assert held_bytes(quantized("int8", 128, 64)) == 128 * 64 + 4 * 64


def test_what_cannot_be_done_is_said_in_one_line():
    layer = layer_on("nf4", "dora")
    with pytest.raises(MmdoraError, match=r"torch\.func cannot look into a quantised module"):
        torch.func.grad(lambda x: layer(x).sum())(torch.randn(2, 48))
    x = torch.randn(2, 48, requires_grad=True)
    with pytest.raises(MmdoraError, match="a second backward through a quantised module"):
        torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    fresh = bnb.nn.Linear8bitLt(48, 96, has_fp16_weights=True)
    with pytest.raises(MmdoraError, match="quantised anew in each forward"):
        adapted(fresh, "dora")


def test_tensors_of_torchao_are_refused_although_they_say_they_are_floats():
    packed = type("Int8Tensor", (torch.Tensor,), {"__module__": "torchao.quantization"})
    linear = nn.Linear(48, 96)
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(packed))
    with pytest.raises(MmdoraError, match="its weight is torchao's Int8Tensor, quantised by a library"):
        adapted(linear, "dora")
