"""Singular values of gradients against those of the dense gradients in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from expert_cases import mixture, tokens
from layer_cases import BASES, output
from shrunken import llava_inputs, shrunken_llava
from torch import Tensor, nn

from mmdora.adapt.inject import make_plan
from mmdora.adapt.spectra import spectra
from mmdora.layers import kind_of, place_of

LANGUAGE = {"method": "lora", "rank": 1}
AUTO = {
    "vision": LANGUAGE | {"targets": ["all", "patch_embedding"]},
    "projector": LANGUAGE,
    "language": LANGUAGE | {"targets": ["all", "embed_tokens"]},
}


def test_experts_have_the_root_of_the_sum_of_squares_over_experts():
    model = mixture("qwen3_vl_moe")
    plan = make_plan(model, {"language": LANGUAGE | {"targets": ["experts"]}})
    counts = {entry.name: 3 for entry in plan.entries}
    own = [tokens() | {"labels": tokens()["input_ids"]}]
    weights: Any = [place_of(model, name).weight for name in counts]
    gradients = torch.autograd.grad(model(**own[0]).loss, weights)  # in fp32: torch has no grouped product in float64
    found = spectra(model, counts, losses_of(model, own), 0)
    for name, gradient in zip(counts, gradients, strict=True):
        exact = torch.linalg.svdvals(gradient.double()).square().sum(0).sqrt()[:3]
        assert torch.allclose(torch.tensor(found[name]).double(), exact, rtol=2e-3), name


def test_the_fused_projection_of_an_attention():
    torch.manual_seed(0)
    x, g = torch.randn(3, 7, 24), torch.randn(3, 7, 24)
    model = Fed(BASES["attention"](), x, g)
    found = spectra(model, {"part.layer": 5}, lambda: iter([model()]), seed=0)["part.layer"]
    copied = copy.deepcopy(model).double()
    copied.x, copied.g = x.double(), g.double()
    weight: Any = copied.part["layer"].in_proj_weight
    (gradient,) = torch.autograd.grad(copied(), weight)
    assert torch.tensor(found).double() == pytest.approx(torch.linalg.svdvals(gradient)[:5], rel=2e-3)


def losses_of(model: Any, batches: list[dict[str, Tensor]]) -> Any:
    return lambda: (model(**batch).loss for batch in batches)


def batches(rows: int = 4) -> list[dict[str, Tensor]]:
    whole = llava_inputs(rows)
    whole["labels"] = whole["input_ids"].clone()
    return [{key: value[i : i + 1] for key, value in whole.items()} for i in range(rows)]


def dense(model: Any, names: list[str], own: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The singular values of the mean gradient of each weight, from dense gradients in float64."""
    model = copy.deepcopy(model).double()
    parameters: Any = {name: place_of(model, name).weight for name in names}
    wide = [{k: v.double() if v.is_floating_point() else v for k, v in batch.items()} for batch in own]
    loss: Any = sum(losses_of(model, wide)()) / len(own)
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    found = {}
    for name, gradient in zip(names, gradients, strict=True):
        kind: Any = kind_of(place_of(model, name))
        assert gradient is not None, name
        found[name] = torch.linalg.svdvals(gradient if kind.kind != "conv" else gradient.flatten(1))
    return found


def test_the_largest_values_are_those_of_the_dense_mean_gradient():
    """Each weight has more values than are asked for, so the sketch has to find the right ones; full-rank ones too."""
    model, own = shrunken_llava(), batches()
    plan = make_plan(model, AUTO)
    counts = {entry.name: 4 for entry in plan.entries}
    exact = dense(model, list(counts), own)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = spectra(model, counts, losses_of(model, own), seed=0)
    assert found.keys() == exact.keys()
    for name, values in found.items():
        assert len(values) == 4
        wanted = exact[name][:4]
        assert torch.allclose(torch.tensor(values).double(), wanted, rtol=2e-3, atol=1e-5 * wanted[0].item()), name
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert found == spectra(model, counts, losses_of(model, own), seed=0)


def test_slowly_falling_values_are_found_by_the_power_iteration():
    """A gradient [96, 80] of which every value is within a factor of three of the largest."""
    torch.manual_seed(0)
    base, x, g = nn.Linear(80, 96), torch.randn(400, 80), torch.randn(400, 96)
    model = Fed(base, x, g)
    found = spectra(model, {"part.layer": 8}, lambda: iter([model()]), seed=0)["part.layer"]
    exact = torch.linalg.svdvals(g.double().T @ x.double())
    assert exact[40] > exact[0] / 3
    assert torch.tensor(found).double() == pytest.approx(exact[:8], rel=0.1)


class Fed(nn.Module):
    """A module of which the loss is <layer(x), g>."""

    def __init__(self, layer: nn.Module, x: Tensor, g: Tensor):
        super().__init__()
        self.part = nn.ModuleDict({"layer": layer})
        self.x, self.g = x, g

    def forward(self) -> Tensor:
        return (output(self.part["layer"], self.x) * self.g).sum()
