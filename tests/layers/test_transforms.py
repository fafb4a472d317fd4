"""`torch.func`'s transforms, `functional_call` and a second backward: beside dense float64 equations and PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from layer_cases import BASES, METHODS, Dense, Peft, adapted, inputs, make, max_rel, output, shake
from peft import PeftModel
from shrunken import llava_inputs, shrunken_llava
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmdora.adapt.inject import inject, trainable_parameters
from mmdora.adapter_files.adapters import save_adapter
from mmdora.errors import MmdoraError

KIND = pytest.mark.parametrize("kind", BASES)
METHOD = pytest.mark.parametrize("method", METHODS)
OWN = ("lora_A", "lora_B", "magnitude")


class Called(nn.Module):
    """A layer as a module with one input, which `functional_call` can call."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return output(self.layer, x)


@pytest.fixture(autouse=True)
def _attention_in_plain_operations() -> Any:
    """torch's fused attention knows neither a second backward nor forward mode, in plain modules either."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def cases(kind: str, method: str) -> tuple[dict[str, Tensor], Any, Any, Tensor]:
    """What is trained in float64, ours and the dense equations as functions (trained, x) -> y, and an input."""
    _, layer = make(kind, method, torch.float64)
    shake(layer)
    dense, called = Dense(layer), Called(layer)
    trained = {name: getattr(layer, name).detach().clone() for name in OWN if getattr(layer, name) is not None}
    x = inputs(kind, rows=3)

    def ours(own: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(called, {f"layer.{name}": tensor for name, tensor in own.items()}, (x,))

    def theirs(own: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(dense, own, (x,))

    return trained, ours, theirs, x.double() if x.is_floating_point() else x


def loss_of(function: Any) -> Any:
    return lambda own, x: function(own, x).square().sum() / 10


def same(found: Any, expected: Any, bound: float = 1e-11) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.abs().max() > 0 and max_rel(found[name], tensor) < bound, name


@KIND
@METHOD
def test_functional_call(kind: str, method: str) -> None:
    """Also with tensors that are not the layer's own, for which the scale it keeps is not right."""
    trained, ours, theirs, x = cases(kind, method)
    for share in (1.0, 1.5):
        other = {name: share * tensor for name, tensor in trained.items()}
        assert max_rel(ours(other, x), theirs(other, x)) < 1e-11


@KIND
@METHOD
def test_grad(kind: str, method: str) -> None:
    trained, ours, theirs, x = cases(kind, method)
    other = {name: 1.5 * tensor for name, tensor in trained.items()}
    same(grad(loss_of(ours))(other, x), grad(loss_of(theirs))(other, x))


@KIND
@METHOD
def test_gradients_of_each_row(kind: str, method: str) -> None:
    """vmap over rows of grad: what differential privacy and influence functions ask for."""
    trained, ours, theirs, x = cases(kind, method)

    def alone(function: Any) -> Any:
        return vmap(grad(lambda own, row: loss_of(function)(own, row[None])), (None, 0))(trained, x)

    same(alone(ours), alone(theirs))


@KIND
@METHOD
def test_several_adapters_at_once(kind: str, method: str) -> None:
    """vmap over adapters; one of them cancels the base, where the sum without B A would lose its digits."""
    trained, ours, theirs, x = cases(kind, method)
    several = {name: torch.stack([tensor, -tensor, 2 * tensor]) for name, tensor in trained.items()}
    assert max_rel(vmap(ours, (0, None))(several, x), vmap(theirs, (0, None))(several, x)) < 1e-11
    same(vmap(grad(loss_of(ours)), (0, None))(several, x), vmap(grad(loss_of(theirs)), (0, None))(several, x))


@KIND
@METHOD
def test_forward_mode(kind: str, method: str) -> None:
    trained, ours, theirs, x = cases(kind, method)
    tangents = {name: torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view_as(t) for name, t in trained.items()}
    found, expected = (jvp(lambda own, f=f: f(own, x), (trained,), (tangents,)) for f in (ours, theirs))
    for a, b in zip(found, expected, strict=True):
        assert max_rel(a, b) < 1e-11


@pytest.mark.parametrize("kind", ["linear", "embedding"])
@METHOD
def test_hessian(kind: str, method: str) -> None:
    trained, ours, theirs, x = cases(kind, method)
    name = "magnitude" if method == "magnitude" else "lora_B"

    def second(function: Any) -> Tensor:
        return hessian(lambda tensor: loss_of(function)({**trained, name: tensor}, x))(trained[name])

    assert max_rel(second(ours), second(theirs)) < 1e-11


@pytest.mark.parametrize(
    ("kind", "bias"), [(kind, bias) for kind in BASES for bias in (False, True) if kind != "embedding" or not bias]
)
@METHOD
def test_a_second_backward(kind: str, bias: bool, method: str) -> None:
    """The gradient of a gradient penalty, for the input, the adapter and a bias that is trained."""
    _, layer = make(kind, method, torch.float64)
    shake(layer)
    dense: Any = Dense(layer)
    if bias:
        layer.base_bias.requires_grad_()
        dense.plain.get_parameter(type(layer).bias_name).requires_grad_()
    results = []
    for module in (layer, dense):
        x = inputs(kind, rows=3)
        x = x.double().requires_grad_() if x.is_floating_point() else x
        trained = [p for p in module.parameters() if p.requires_grad]
        names = [name.rpartition(".")[2] for name, p in module.named_parameters() if p.requires_grad]
        of = [*trained, *([x] if x.requires_grad else [])]
        first = torch.autograd.grad(output(module, x).pow(3).sum(), of, create_graph=True)
        penalty = torch.stack([g.square().sum() for g in first]).sum()
        second = torch.autograd.grad(penalty, of)
        results.append([dict(zip([*names, "x"], grads, strict=False)) for grads in (first, second)])
    for found, expected in zip(*results, strict=True):
        same(found, expected, 1e-10)


def test_an_input_that_depends_on_a_factor() -> None:
    """The gradient of each input is that of the layer alone: nothing is counted twice."""
    _, layer = make("linear", "dora", torch.float64)
    shake(layer)
    results = []
    modules: tuple[Any, Any] = layer, Dense(layer)
    for module in modules:
        x = inputs("linear", 3).double() * module.lora_A.sum()
        (first,) = torch.autograd.grad(module(x).pow(2).sum(), module.lora_A, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), module.lora_A)[0])
    assert max_rel(*results) < 1e-10


def test_a_second_backward_that_lacks_the_input_says_so() -> None:
    x = inputs("linear", 3).requires_grad_()
    layer = adapted(nn.Linear(24, 40), "lora", dropout=0.3)
    with pytest.raises(MmdoraError, match=r"a second backward through dropout.*call eval"):
        torch.autograd.grad(layer(x).sum(), layer.lora_B, create_graph=True)
    layer = adapted(nn.Linear(24, 40), "magnitude")
    with torch.no_grad():
        layer.magnitude[3] = 0
    with pytest.raises(MmdoraError, match="a second backward through magnitudes near 0"):
        torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)


def test_dropout_under_a_transform_is_torchs() -> None:
    """PEFT's dropout draws the same mask, so the gradients are PEFT's too."""
    _, layer = make("linear", "dora", dropout=0.3, dropout_mode="reference")
    shake(layer)
    theirs = Peft(layer, 0.3).train()
    own = {name: getattr(layer, name).detach() for name in OWN}
    x = inputs("linear")
    torch.manual_seed(3)
    found = grad(lambda own: functional_call(layer, own, (x,)).square().sum())(own)
    torch.manual_seed(3)
    theirs(x).square().sum().backward()
    for name, key in (("lora_A", "lora_A"), ("lora_B", "lora_B"), ("magnitude", "lora_magnitude_vector")):
        assert max_rel(found[name], theirs.own(key).grad.view_as(found[name])) < 1e-5, name


def test_an_adapted_model_beside_peft(tmp_path: Path) -> None:
    """The gradient of `functional_call` on a whole model is PEFT's."""
    model = shrunken_llava()
    plan = {part: {"method": "dora", "rank": 4} for part in ("vision", "projector", "language")}
    inject(model, plan)
    torch.manual_seed(0)
    with torch.no_grad():
        for _, parameter, _, _ in trainable_parameters(model):
            parameter *= 1 + 0.1 * torch.rand_like(parameter)
            parameter += 0.05 * torch.randn_like(parameter)
    save_adapter(model, tmp_path / "adapter")
    theirs: Any = PeftModel.from_pretrained(shrunken_llava(), str(tmp_path / "adapter"), is_trainable=True)
    batch = llava_inputs()
    own = {name: parameter.detach() for name, parameter, _, _ in trainable_parameters(model)}
    found = grad(lambda own: functional_call(model, own, (), {**batch, "labels": batch["input_ids"]}).loss)(own)
    theirs(**batch, labels=batch["input_ids"]).loss.backward()
    expected = {}
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            ours = name.removeprefix("base_model.model.").replace(".default", "").removesuffix(".weight")
            expected[ours.replace("lora_magnitude_vector", "magnitude")] = parameter.grad
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        if gradient is not None:
            assert max_rel(found[name], gradient.view_as(found[name])) < 1e-4, name
