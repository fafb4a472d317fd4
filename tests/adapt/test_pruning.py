"""Masks of pruning against loops over rows, and the norms of inputs against those of the inputs themselves."""

import pytest
import torch
from shrunken import llava_inputs, shrunken_llava
from torch import nn

from mmdora.adapt.modality import find_parts
from mmdora.adapt.pruning import input_norms, kept, prunable, prune
from mmdora.errors import MmdoraError


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.73])
@pytest.mark.parametrize("wanda", [True, False])
def test_the_smallest_of_each_row_go(sparsity, wanda):
    torch.manual_seed(0)
    weight, norms = torch.randn(9, 40), torch.rand(40).double() if wanda else None
    mask = kept(weight, norms, sparsity, "row")
    for row, own in zip(weight, mask, strict=True):
        scores = row.abs().double() * (norms if norms is not None else 1)
        order = sorted(range(40), key=lambda j: float(scores[j]))
        assert sorted(order[: int(40 * sparsity)]) == (~own).nonzero().flatten().tolist()


@pytest.mark.parametrize("wanda", [True, False])
def test_two_of_every_four_neighbours_are_left(wanda):
    torch.manual_seed(0)
    weight, norms = torch.randn(6, 24), torch.rand(24).double() if wanda else None
    mask = kept(weight, norms, 0.5, "2:4")
    scores = weight.abs().double() * (norms if norms is not None else 1)
    assert (mask.unflatten(1, (-1, 4)).sum(-1) == 2).all()
    for group, own in zip(scores.view(-1, 4), mask.view(-1, 4), strict=True):
        assert group[own].min() >= group[~own].max()


def test_equal_scores_leave_an_exact_number():
    assert kept(torch.ones(3, 10), None, 0.5, "row").sum(1).tolist() == [5, 5, 5]
    assert kept(torch.zeros(3, 8), None, 0.5, "2:4").sum(1).tolist() == [4, 4, 4]


def test_norms_are_those_of_all_inputs_and_hooks_go():
    torch.manual_seed(0)
    linear, inputs = nn.Linear(6, 4), [torch.randn(2, 3, 6), torch.randn(5, 6)]
    with input_norms({"a": linear, "never": nn.Linear(2, 2)}) as norms:
        for x in inputs:
            linear(x)
    whole = torch.cat([x.reshape(-1, 6) for x in inputs])
    assert norms.keys() == {"a"} and norms["a"].tolist() == pytest.approx(whole.double().norm(dim=0).tolist())
    assert not linear._forward_pre_hooks


def test_a_pruned_model_has_exact_zeros_and_nothing_else_changed():
    model = shrunken_llava()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    linears = prunable(model, find_parts(model), ["vision", "language"])
    assert "lm_head" not in linears and not any("vision_tower.encoder.layers.2" in name for name in linears)
    with input_norms(linears) as norms, torch.no_grad():
        model(**llava_inputs())
    shares = prune(linears, norms, 0.5, "2:4")
    assert shares.keys() == linears.keys() and set(shares.values()) == {0.5}
    for name, tensor in model.state_dict().items():
        if name.removesuffix(".weight") in linears and name.endswith(".weight"):
            assert torch.equal(tensor, before[name] * (tensor != 0))
        else:
            assert torch.equal(tensor, before[name]), name


def test_what_cannot_be_pruned_is_left_as_it_is():
    model = shrunken_llava()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    linears = prunable(model, find_parts(model), ["language"])
    with pytest.raises(MmdoraError, match=r"no row reaches .*\(14 of 14 layers\)"):
        prune(linears, {}, 0.5, "row")
    odd = {**linears, "odd": nn.Linear(6, 4)}
    with pytest.raises(MmdoraError, match=r"odd has 6 inputs, no multiple of 4"):
        prune(odd, None, 0.5, "2:4")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
