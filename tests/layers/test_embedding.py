"""Embeddings against PEFT, and their memory."""

from typing import Any

import pytest
import torch
from layer_cases import adapted, same_as_peft, shake
from torch import nn

METHOD = pytest.mark.parametrize("method", ["lora", "dora"])


def case(method: Any = "dora", padding: int | None = 0, **options: Any) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    layer = adapted(nn.Embedding(30, 12, padding_idx=padding), method, **options)
    shake(layer)
    return layer, torch.randint(0, 30, (4, 9))


@METHOD
@pytest.mark.parametrize("padding", [None, 0, -1])
def test_equals_peft(method, padding):
    layer, ids = case(method, padding)
    ids[0, :3] = layer.padding_idx or 0
    same_as_peft(layer, ids)


@METHOD
def test_has_no_dropout_as_in_peft(method):
    layer, ids = case(method, dropout=0.5, dropout_mode="reference")
    same_as_peft(layer, ids, dropout=0.5)


def test_starts_as_peft_starts():
    torch.manual_seed(0)
    layer: Any = adapted(nn.Embedding(300, 64), "dora", rank=8)
    assert layer.lora_A.shape == (8, 300) and layer.lora_A.abs().max() == 0
    assert layer.lora_B.shape == (64, 8) and 0.8 < layer.lora_B.std() < 1.2
    torch.testing.assert_close(layer.magnitude, layer.weight.norm(dim=0))


def test_keeps_only_ids_for_backward():
    layer, ids = case()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(ids)
    parameters = {p.data_ptr() for p in layer.parameters()}
    assert max(t.numel() for t in kept if t.data_ptr() not in parameters) == ids.numel()


def test_any_shape_of_ids():
    layer, ids = case()
    assert layer(ids[0, 0]).shape == (12,) and layer(ids[:0]).shape == (0, 9, 12)
    assert torch.equal(layer(ids.int()), layer(ids))
