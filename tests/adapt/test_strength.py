"""How much of an adapter acts: the base at 0, the adapter at 1, and between them the equations, densely in float64."""

import pytest
import torch
from layer_cases import BASES, inputs, make, output, shake
from torch import nn

import mmdora
from mmdora.adapt.inject import trainable_parameters
from mmdora.adapt.strength import Strength
from mmdora.adapt.switch import Adapter, adapters_of, use
from mmdora.ops import reference

PLAN = {
    "projector": {"method": "full"},
    "language": {"method": "dora", "rank": 4, "norms": True, "targets": ["attention"]},
}


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("method", ["lora", "dora", "magnitude"])
def test_every_kind_follows_the_equations(kind, method):
    _, layer = make(kind, method)
    shake(layer)
    x, trained = inputs(kind), output(layer, inputs(kind))
    parts = [None if part is None else part.detach().double() for part in (layer.lora_A, layer.lora_B, layer.magnitude)]
    weight = layer.matrix(layer.base_weight.detach()).double()
    a, b = layer.factors(parts[0], parts[1]) if parts[0] is not None else (None, None)
    norm = weight.norm(dim=1)
    strength = Strength(nn.Module(), Adapter(None, {"layer": layer}, {}))  # pyright: ignore[reportArgumentType]
    for t in (0.5, 1.5, 0.0):
        strength.set(t)
        m = None if parts[2] is None else norm + t * (parts[2] - norm)
        expected = reference.adapted_weight(weight, a, b, m, 2.0 * t)
        torch.testing.assert_close(layer.matrix(layer.merged_weight()).double(), expected, rtol=1e-5, atol=1e-5)
        if t == 0:
            torch.testing.assert_close(output(layer, x), output(layer.base_module(), x), rtol=1e-5, atol=1e-5)
    strength.set(1)
    assert torch.equal(output(layer, x), trained), "the trained values came back changed"


def test_a_model_from_its_base_to_its_adapter_and_back(tmp_path):
    torch.manual_seed(0)
    model, processor = mmdora.load("tiny-llava")
    mmdora.inject(model, PLAN)
    with torch.no_grad():
        for _, parameter, _, _ in trainable_parameters(model):
            parameter.add_(0.05 * torch.randn_like(parameter))
    mmdora.save_adapter(model, tmp_path / "own")
    model, _ = mmdora.load("tiny-llava")
    given = processor(text="what is it?", return_tensors="pt")

    def logits():
        with torch.no_grad():
            return model(**given).logits

    base = logits()
    mmdora.load_adapter(model, tmp_path / "own", name="own")
    whole, found = logits(), {}
    use(model, None)
    strength = Strength(model, adapters_of(model)["own"])
    for t in (0.0, 0.5, 1.0):
        strength.set(t)
        use(model, "own")
        found[t] = logits()
        use(model, None)
        assert torch.equal(logits(), base), "the base was changed"
    torch.testing.assert_close(found[0.0], base, rtol=1e-4, atol=1e-4)
    assert torch.equal(found[1.0], whole)
    assert not torch.allclose(found[0.5], base, atol=1e-2) and not torch.allclose(found[0.5], whole, atol=1e-2)
