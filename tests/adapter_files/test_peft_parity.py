"""Outputs, gradients and 20 optimizer steps against PEFT and against the dense equations in float64.

max-rel is max|a - b| / max|b| per tensor: 1e-5 for outputs and gradients, 1e-4 for parameters after 20 steps.
"""

import copy
from typing import Any

import layer_cases
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from shrunken import llava_inputs, shrunken_llava
from torch import nn

from mmdora.adapt.inject import adapted_modules, inject, trainable_parameters
from mmdora.adapter_files.adapters import load_adapter, save_adapter
from mmdora.adapter_files.tensors import keys_of
from mmdora.layers import AdaptedLinear
from mmdora.ops import reference

METHOD = pytest.mark.parametrize("method", ["lora", "dora"])
STEPS = 20


def max_rel(a, b):
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.01)


class Ours(nn.Module):
    """One adapted linear with weights away from their start."""

    def __init__(self, method, bias):
        super().__init__()
        torch.manual_seed(0)
        base = nn.Linear(48, 96, bias=bias)
        self.plain = copy.deepcopy(base)
        self.layer: Any = AdaptedLinear(base, method, rank=8, scaling=2.0)
        with torch.no_grad():
            self.layer.lora_B.normal_(std=0.05)
            if self.layer.magnitude is not None:
                self.layer.magnitude *= 1 + 0.1 * torch.randn(96)

    def trained(self):
        own = {"A": self.layer.lora_A, "B": self.layer.lora_B, "m": self.layer.magnitude}
        return {name: p for name, p in own.items() if p is not None}


class Peft(nn.Module):
    def __init__(self, ours):
        super().__init__()
        holder = nn.Sequential(copy.deepcopy(ours.plain))
        dora = ours.layer.magnitude is not None
        config = LoraConfig(r=8, lora_alpha=16, target_modules=["0"], use_dora=dora)
        get_peft_model(holder, config)
        self.layer: Any = holder[0]
        with torch.no_grad():
            for name, parameter in self.trained().items():
                parameter.copy_(ours.trained()[name])

    def trained(self):
        found = {"A": self.layer.lora_A["default"].weight, "B": self.layer.lora_B["default"].weight}
        if len(self.layer.lora_magnitude_vector):
            found["m"] = self.layer.lora_magnitude_vector["default"].weight
        return found


class Dense(nn.Module):
    """The paper's equations in float64."""

    def __init__(self, ours):
        super().__init__()
        self.plain = copy.deepcopy(ours.plain).double()
        self.own = nn.ParameterDict({k: nn.Parameter(p.detach().double()) for k, p in ours.trained().items()})

    def layer(self, x):
        own = self.trained()
        return reference.adapted_linear(x, self.plain.weight, self.plain.bias, own["A"], own["B"], own.get("m"), 2.0)

    def trained(self):
        return dict(self.own.items())


@METHOD
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("other", [Peft, Dense])
def test_linear(method, bias, other):
    ours = Ours(method, bias)
    theirs = other(ours)
    dtype = next(iter(theirs.trained().values())).dtype
    torch.manual_seed(1)
    x, gradient = torch.randn(4, 9, 48, requires_grad=True), torch.randn(4, 9, 96)
    x2 = x.detach().to(dtype).requires_grad_()
    y, y2 = ours.layer(x), theirs.layer(x2)
    assert max_rel(y, y2) <= 1e-5
    y.backward(gradient)
    y2.backward(gradient.to(dtype))
    assert max_rel(x.grad, x2.grad) <= 1e-5
    for name, parameter in ours.trained().items():
        assert max_rel(parameter.grad, theirs.trained()[name].grad) <= 1e-5, name


@METHOD
@pytest.mark.parametrize("other", [Peft, Dense])
def test_linear_after_20_steps(method, other):
    ours = Ours(method, True)
    theirs = other(ours)
    start = {name: p.detach().clone() for name, p in ours.trained().items()}
    dtype = next(iter(theirs.trained().values())).dtype
    torch.manual_seed(1)
    batches = [(torch.randn(16, 48), torch.randn(16, 96)) for _ in range(STEPS)]
    for model, kind in ((ours, torch.float32), (theirs, dtype)):
        optimizer = adamw(model.trained().values())
        for x, target in batches:
            optimizer.zero_grad()
            (model.layer(x.to(kind)) - target.to(kind)).square().mean().backward()
            optimizer.step()
    for name, parameter in ours.trained().items():
        assert max_rel(parameter, start[name]) > 1e-2, name
        assert max_rel(parameter, theirs.trained()[name]) <= 1e-4, name


FIRST = {"vision": ["patch_embedding", "position_embedding", "all"], "language": ["embed_tokens", "all"]}
"""Convolution and embeddings too; otherwise all linears."""


@pytest.fixture(params=["lora", "dora", "lora first", "dora first"])
def pair(request, tmp_path):
    """A small LLaVA adapted by us, and by PEFT from our files."""
    method, _, first = request.param.partition(" ")
    targets = FIRST if first else {"vision": ["all"], "language": ["all"]}
    ours = shrunken_llava()
    inject(
        ours,
        {
            "vision": {"method": method, "rank": 4, "targets": targets["vision"]},
            "projector": {"method": method, "rank": 2},
            "language": {"method": method, "rank": 8, "alpha": 12, "targets": targets["language"]},
        },
    )
    torch.manual_seed(3)
    with torch.no_grad():
        for module in adapted(ours).values():
            module.lora_B.normal_(std=0.02)
            if module.kind == "embedding":
                module.lora_A.normal_(std=0.5)
            if module.magnitude is not None:
                module.magnitude *= 1 + 0.05 * torch.rand_like(module.magnitude)
    save_adapter(ours, tmp_path)
    theirs = PeftModel.from_pretrained(shrunken_llava(), tmp_path, is_trainable=True).eval()
    return ours, theirs


def named(ours, theirs):
    """(name, our parameter, theirs)."""
    found, modules = dict(theirs.named_parameters()), adapted(ours)
    for name, parameter, _, _ in trainable_parameters(ours):
        path, _, own = name.rpartition(".")
        key = keys_of(type(modules[path]))[own]
        leaf = f"{key.removesuffix('.weight')}.default" + ("" if key.startswith("lora_embedding") else ".weight")
        yield name, parameter, found[f"base_model.model.{path}.{leaf}"]


def adapted(model) -> dict[str, Any]:
    return dict(adapted_modules(model))


def loss(model, batch):
    return model(**batch, labels=batch["input_ids"].masked_fill(batch["input_ids"] == 3, -100)).loss


def test_llava_outputs_and_gradients(pair):
    ours, theirs = pair
    batch = llava_inputs()
    assert max_rel(ours(**batch).logits, theirs(**batch).logits) <= 1e-5
    pixels = [batch["pixel_values"].clone().requires_grad_() for _ in range(2)]
    for model, pixel in zip(pair, pixels, strict=True):
        loss(model, {**batch, "pixel_values": pixel}).backward()
    assert max_rel(pixels[0].grad, pixels[1].grad) <= 1e-5
    for name, a, b in named(ours, theirs):
        assert max_rel(a.grad, b.grad.view(a.shape)) <= 1e-5, name


def test_llava_against_the_dense_equations_in_float64(pair):
    ours, _ = pair
    batch = llava_inputs()
    exact = copy.deepcopy(ours).double()
    for module in adapted(exact).values():
        module.forward = (dense := layer_cases.Dense(module)).forward
        for name in ("lora_A", "lora_B", "magnitude"):
            setattr(dense, name, getattr(module, name))
    wide = {**batch, "pixel_values": batch["pixel_values"].double()}
    assert max_rel(ours(**batch).logits, exact(**wide).logits) <= 1e-5
    loss(ours, batch).backward()
    loss(exact, wide).backward()
    pairs = zip(trainable_parameters(ours), trainable_parameters(exact), strict=True)
    for (name, a, _, _), (_, b, _, _) in pairs:
        assert max_rel(a.grad, b.grad) <= 1e-5, name


def test_llava_parameters_after_20_steps(pair):
    ours, theirs = pair
    for model in pair:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        for step in range(STEPS):
            batch = llava_inputs()
            batch["pixel_values"] = batch["pixel_values"] + 0.1 * step
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
    for name, a, b in named(ours, theirs):
        assert max_rel(a, b.view(a.shape)) <= 1e-4, name


def test_llava_with_gradient_checkpointing_and_accumulation(tmp_path):
    """The same gradients, recomputed and accumulated, in training mode."""
    results = []
    for recompute in (False, True):
        model = shrunken_llava()
        inject(model, {"vision": {"method": "dora"}, "language": {"method": "dora"}})
        torch.manual_seed(3)
        with torch.no_grad():
            for module in adapted(model).values():
                module.lora_B.normal_(std=0.02)
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        for _ in range(2):
            loss(model, llava_inputs()).backward()
        results.append({name: p.grad for name, p, _, _ in trainable_parameters(model)})
    assert all(torch.equal(gradient, results[1][name]) for name, gradient in results[0].items())


def test_zero_rows_where_peft_gives_nan(tmp_path):
    """peft#2049: a row of W0 that is all zero."""
    model = shrunken_llava()
    with torch.no_grad():
        model.model.language_model.layers[0].mlp.up_proj.weight[3] = 0
    clean = copy.deepcopy(model)
    inject(model, {"language": {"method": "dora", "targets": "up_proj"}})
    value = loss(model, llava_inputs())
    value.backward()
    assert value.isfinite() and all(
        p.grad is not None and p.grad.isfinite().all() for _, p, _, _ in trainable_parameters(model)
    )
    torch.optim.AdamW([p for _, p, _, _ in trainable_parameters(model)], lr=1e-2).step()
    assert loss(model, llava_inputs()).isfinite()
    save_adapter(model, tmp_path)
    load_adapter(clean, tmp_path)
    assert torch.equal(loss(clean, llava_inputs()), loss(model, llava_inputs()))
