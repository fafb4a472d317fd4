"""Mixtures: which targets mean their experts, what the plan says of them, and that a whole model trains and merges."""

import copy
import re
from io import StringIO
from typing import Any

import pytest
import torch
from expert_cases import Dense, mixture, shake, tokens
from layer_cases import max_rel
from rich.console import Console
from torch import nn

from mmdora.adapt.inject import adapted_modules, inject, make_plan, merge, trainable_parameters, unload
from mmdora.adapt.plan import Plan
from mmdora.adapt.switch import disable
from mmdora.adapter_files.adapters import load_adapter, restore_adapter, save_adapter
from mmdora.errors import MmdoraError
from mmdora.train.overview import module_tree

MIXTURES = pytest.mark.parametrize("name", ["qwen3_vl_moe", "aria"])
EXPERTS = {"language": {"method": "dora", "rank": 4, "targets": ["experts"]}}


def logits(model: Any) -> Any:
    return model(**tokens()).logits


def language(**settings: Any) -> dict[str, Any]:
    return {"language": {"method": "lora", "rank": 4, **settings}}


@MIXTURES
def test_the_role_and_the_names_that_mean_experts(name):
    model = mixture(name)
    first = "model.language_model.layers.0.mlp.experts"

    def meant(*targets: str) -> list[str]:
        return [entry.name for entry in make_plan(model, language(targets=targets)).entries]

    found = meant("experts")
    assert found[:2] == [f"{first}.gate_up", f"{first}.down"] and len(found) == 4
    assert make_plan(model, language(targets=("experts",))).entries[0].weight == f"{first}.gate_up_proj"
    assert meant("gate_up") == meant("gate_up_proj") == meant("*.experts.gate_up_proj") == [found[0], found[2]]
    assert not set(found) & set(meant("all", "mlp") if name == "aria" else meant("all"))


def test_routers_are_adapted_by_name_alone():
    """GLM's router is a module of its own; this one is a linear, as in older mixtures."""
    model = mixture("qwen3_vl_moe")
    for layer in model.model.language_model.layers:
        layer.mlp.gate = nn.Linear(24, 4, bias=False)
    plan = make_plan(model, language(targets=("all", "experts")))
    assert len(plan.entries) == 2 * (4 + 2) and not any(entry.name.endswith(".gate") for entry in plan.entries)
    assert [entry.name[-8:] for entry in make_plan(model, language(targets=("gate",))).entries] == ["mlp.gate"] * 2


@MIXTURES
def test_the_base_is_there_for_a_while(name):
    """`disable` takes both adapters of a module of experts off, and puts them on again."""
    model = mixture(name).eval()
    base = logits(model)
    inject(model, EXPERTS)
    shake(model)
    adapted, modules = logits(model), adapted_modules(model)
    assert not torch.equal(adapted, base)
    with disable(model):
        assert torch.equal(logits(model), base) and not adapted_modules(model)
    assert torch.equal(logits(model), adapted) and adapted_modules(model) == modules
    model.train()
    with disable(model):
        model.eval()
    assert not any(module.training for module in adapted_modules(model).values())


@MIXTURES
def test_the_plan_says_what_share_of_the_experts_it_is(name):
    model = mixture(name)
    held = sum(
        p.numel()
        for path, p in model.named_parameters()
        if path.endswith(("experts.gate_up_proj", "experts.down_proj"))
    )
    plan = make_plan(model, EXPERTS)
    own, part = sum(entry.parameters for entry in plan.entries), plan.base_sizes["language"]
    said = next(note for note in plan.notes if "experts hold" in note)
    assert said == (
        f"language: experts hold {held:,} parameters, {held / part:.1%} of it, in 4 tensors, of which 4 are adapted by "
        f"{own:,} parameters, {own / held:.2%} of the experts'"
    )
    none = make_plan(model, language(targets=("attention",))).notes
    assert any("of which none is adapted; the target experts means them" in note for note in none)
    assert Plan.from_dict(plan.to_dict()) == plan
    console = Console(width=200, record=True, file=StringIO())
    console.print(module_tree(model, plan.parts, plan))
    assert re.search(r"experts  \w+Experts  [\d,]+  ← dora r 4", console.export_text())


@MIXTURES
@pytest.mark.parametrize("method", ["lora", "dora", "magnitude"])
def test_starts_as_the_base_and_unloads_to_it(name, method):
    model = mixture(name)
    before, state = logits(model), copy.deepcopy(model.state_dict())
    plan = inject(
        model, language(method=method, targets=("experts", "attention"), rank=4) if method != "magnitude" else EXPERTS
    )
    assert plan.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert {path for path, *_ in trainable_parameters(model)} == {
        p for p, v in model.named_parameters() if v.requires_grad
    }
    torch.testing.assert_close(logits(model), before, rtol=1e-6, atol=1e-6)
    shake(model)
    unload(model)
    assert torch.equal(logits(model), before)
    assert all(torch.equal(value, state[path]) for path, value in model.state_dict().items())


@MIXTURES
def test_trains_as_the_dense_equations_with_checkpointing_and_merges(name):
    """Gradients of the whole model, recomputed, against float64; then a step, and a merge that computes the same."""
    model = mixture(name)
    inject(model, EXPERTS)
    shake(model, 0.1)
    exact = copy.deepcopy(model).double()
    dense = []
    for layer in exact.model.language_model.layers:
        dense.append(Dense(layer.mlp.experts))
        layer.mlp.experts = dense[-1]
    expected = logits(exact)
    expected.square().mean().backward()
    model.train()
    model.activation_checkpointing_enable() if hasattr(
        model, "activation_checkpointing_enable"
    ) else model.gradient_checkpointing_enable()
    y = logits(model)
    y.square().mean().backward()
    assert max_rel(y, expected) <= 1e-5
    for index, layer in enumerate(model.model.language_model.layers):
        for own in layer.mlp.experts.adapters():
            for leaf in ("lora_A", "lora_B", "magnitude"):
                assert max_rel(getattr(own, leaf).grad, dense[index].own[own.leaf, leaf].grad) <= 1e-5, (own.leaf, leaf)
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2).step()
    after = logits(model.eval())
    assert max_rel(after, y) > 1e-3
    merge(model)
    assert not adapted_modules(model) and max_rel(logits(model), after) <= 1e-5


@MIXTURES
@pytest.mark.parametrize("method", ["lora", "dora", "magnitude"])
@pytest.mark.filterwarnings("ignore:.*PEFT has no DoRA")
def test_saved_loaded_and_resumed(name, method, tmp_path):
    adapt = {"language": {"method": method, "targets": ["experts", "o_proj"]}}
    model = mixture(name)
    inject(model, adapt)
    shake(model)
    save_adapter(model, tmp_path)
    loaded, resumed = mixture(name), mixture(name)
    load_adapter(loaded, tmp_path)
    inject(resumed, adapt)
    restore_adapter(resumed, tmp_path)
    for other in (loaded, resumed):
        assert torch.equal(logits(other), logits(model))
        pairs = zip(model.state_dict().items(), other.state_dict().items(), strict=True)
        assert all(a == b and torch.equal(v, w) for (a, v), (b, w) in pairs)


def test_experts_of_an_unknown_make_are_refused_by_name():
    model = mixture("qwen3_vl_moe")
    for layer in model.model.language_model.layers:
        layer.mlp.experts = nn.Module()
        layer.mlp.experts.down_proj = nn.Parameter(torch.zeros(4, 24, 8))
    with pytest.raises(MmdoraError, match=r"mlp\.experts\.down: the code of Module does not show which axis"):
        make_plan(model, language(targets=("down_proj",)))
    assert any("left out" in note and "experts.down" in note for note in make_plan(model, language()).notes)
