"""Models that write into a layer's output, which backward would read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextModel
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.olmo.modeling_olmo import OlmoAttention

from mmdora.adapt.in_place import writes_into
from mmdora.layers import AdaptedLinear


class Writes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scaled, self.viewed, self.copied = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        one: Tensor = self.scaled(x)
        one *= 2
        two = self.viewed(x).view(-1, 2, 2)
        two[:, 0] = 1
        three = self.copied(x) * 2
        three.clamp_(max=3)
        return one + two.flatten(1) + three


@pytest.mark.parametrize(
    ("parent", "leaf", "writes"),
    [
        (Writes, "scaled", True),
        (Writes, "viewed", True),
        (Writes, "copied", False),
        (Gemma3nTextModel, "per_layer_model_projection", True),
        (OlmoAttention, "q_proj", True),
        (LlamaAttention, "q_proj", False),
    ],
)
def test_the_source_shows_it(parent: type[nn.Module], leaf: str, writes: bool) -> None:
    assert writes_into(parent, leaf) is writes


@pytest.mark.parametrize("method", ["dora", "magnitude"])
def test_gradients_are_those_without_writing(method) -> None:
    torch.manual_seed(0)
    base, x = nn.Linear(4, 4), torch.randn(5, 4)

    def gradients(written: bool) -> list[Tensor]:
        layer = AdaptedLinear(base, method, rank=2 if method == "dora" else 0)
        layer.output_written = written
        y = layer(x)
        y = y.mul_(3) if written else y * 3
        y.square().sum().backward()
        return [parameter.grad for parameter in layer.parameters() if parameter.grad is not None]

    torch.manual_seed(1)
    expected = gradients(False)
    torch.manual_seed(1)
    found = gradients(True)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
