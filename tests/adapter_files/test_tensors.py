"""Tensors of every kind as PEFT's files hold them: PEFT's own names and shapes, there and back."""

import copy
from typing import Any

import pytest
import torch
from layer_cases import BASES, METHODS, adapted, inputs, make, output, shake
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import nn

from mmdora.adapter_files.tensors import file_shapes, from_file, to_file, unlike_peft

GROUPED = nn.Conv2d(6, 8, 3, groups=2)


ONE_BY_ONE = [make() for kind, make in BASES.items() if kind != "attention"]  # PEFT adapts that with its out_proj


@pytest.mark.parametrize("base", [*ONE_BY_ONE, GROUPED, nn.Conv1d(4, 6, 3)], ids=str)
@pytest.mark.parametrize("dora", [True, False], ids=["dora", "lora"])
def test_names_and_shapes_are_those_that_peft_writes(base, dora):
    holder: Any = nn.Sequential(copy.deepcopy(base))
    peft = get_peft_model(holder, LoraConfig(r=4, target_modules=["0"], use_dora=dora))
    written = get_peft_model_state_dict(peft, save_embedding_layers=False)
    prefix = "base_model.model.0."
    expected = {name.removeprefix(prefix): tuple(tensor.shape) for name, tensor in written.items()}
    assert file_shapes(base, 4, magnitude=dora) == expected


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [*BASES, "grouped"])
def test_there_and_back(kind, method):
    base = nn.Conv2d(6, 8, 3, groups=2) if kind == "grouped" else BASES[kind]()
    x = torch.randn(2, 6, 9, 8) if kind == "grouped" else inputs(kind)
    other = copy.deepcopy(base)
    layer = adapted(base, method)
    shake(layer)
    tensors = to_file(layer, magnitude=True)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    assert shapes == file_shapes(other, layer.rank, magnitude=True)
    fresh = adapted(other, method)
    output(fresh, x)  # so that a norm is kept, which must go
    from_file(fresh, {f"some.module.{key}": tensor for key, tensor in tensors.items()}, "some.module.")
    assert torch.equal(output(fresh, x), output(layer, x))


def test_filters_that_mix_groups_are_told():
    layer = adapted(nn.Conv2d(6, 8, 3, groups=2), "lora")
    lora_A = to_file(layer, magnitude=False)["lora_A.weight"]
    assert lora_A.shape == (4, 6, 3, 3) and lora_A[0, 3:].abs().max() == 0 and lora_A[0, :3].abs().max() > 0
    assert unlike_peft(GROUPED, lora_A, magnitude=False) is None
    assert "no grouped convolution can hold" in str(unlike_peft(GROUPED, lora_A + 1, magnitude=False))


@pytest.mark.parametrize("kind", BASES)
def test_lora_among_magnitudes_and_a_magnitude_alone(kind):
    _, layer = make(kind, "lora")
    shake(layer)
    merged = layer.matrix(layer.merged_weight())
    written = to_file(layer, magnitude=True)["lora_magnitude_vector"]
    torch.testing.assert_close(written.flatten(), torch.linalg.vector_norm(merged, dim=1))
    _, layer = make(kind, "magnitude")
    first, second, _ = to_file(layer, magnitude=True).values()
    assert not first.any() and not second.any() and first.shape[0] == 1
