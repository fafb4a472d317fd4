"""Convolutions against PEFT, and where PEFT fails or is wrong against the dense equations."""

from typing import Any

import pytest
import torch
from layer_cases import Dense, Peft, adapted, max_rel, same_as_peft, shake
from torch import nn

from mmdora.adapter_files.tensors import unlike_peft

METHOD = pytest.mark.parametrize("method", ["lora", "dora"])


def case(base: Any, shape: tuple[int, ...], method: Any = "dora", **options: Any) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    layer = adapted(base, method, **options)
    shake(layer)
    return layer, torch.randn(shape)


@METHOD
@pytest.mark.parametrize(
    ("base", "shape"),
    [
        (lambda: nn.Conv1d(6, 8, 3, padding=1), (2, 6, 9)),
        (lambda: nn.Conv2d(3, 8, 4, stride=4, bias=False), (2, 3, 8, 8)),
        (lambda: nn.Conv2d(6, 8, (3, 5), stride=(2, 1), padding=(1, 2)), (2, 6, 9, 7)),
        (lambda: nn.Conv2d(6, 8, 3, padding="same"), (2, 6, 5, 5)),
        (lambda: nn.Conv2d(6, 8, 1), (2, 6, 5, 5)),
        (lambda: nn.Conv3d(3, 8, 2, stride=2), (2, 3, 4, 4, 4)),
    ],
    ids=["1d", "patches", "strided", "same", "pointwise", "3d"],
)
def test_equals_peft(base, shape, method):
    same_as_peft(*case(base(), shape, method))


def test_groups_equal_peft_for_lora():
    layer, x = case(nn.Conv2d(6, 8, 3, padding=1, groups=2), (2, 6, 5, 5), "lora")
    assert layer.lora_A.shape == (4, 3, 3, 3) and layer.lora_B.shape == (8, 2, 1, 1)
    same_as_peft(layer, x)
    assert unlike_peft(layer, magnitude=False) is None


@pytest.mark.parametrize("method", ["lora", "dora", "magnitude"])
@pytest.mark.parametrize(
    "options",
    [
        {"groups": 2},
        {"groups": 2, "padding": 2, "dilation": 2, "padding_mode": "reflect"},
        {"dilation": (2, 1), "stride": 2},
        {"padding": 1, "padding_mode": "circular"},
    ],
    ids=str,
)
def test_what_peft_cannot_do_equals_the_dense_equations(options, method):
    """peft#2549 and others: the convolution of the merged kernel, in float64."""
    layer, x = case(nn.Conv2d(6, 8, 3, **options), (2, 6, 7, 7), method)
    exact = Dense(layer)
    y, expected = layer(x.requires_grad_()), exact(x64 := x.detach().double().requires_grad_())
    assert max_rel(y, expected) <= 1e-5
    gradient = torch.randn_like(y)
    y.backward(gradient)
    expected.backward(gradient.double())
    assert max_rel(x.grad, x64.grad) <= 1e-5  # pyright: ignore
    wanted: dict[str, Any] = dict(exact.named_parameters())
    for name, parameter in layer.named_parameters():
        if parameter.requires_grad:
            assert max_rel(parameter.grad, wanted[name].grad) <= 1e-5, name
    assert max_rel(layer.merge()(x), y) <= 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 2}, "groups of this convolution"),
        ({"dilation": 2}, "no dilation"),
        ({"padding": 1, "padding_mode": "circular"}, "padded with zeros"),
    ],
)
def test_where_peft_differs_is_known(options, message):
    layer, x = case(nn.Conv2d(6, 8, 3, **options), (2, 6, 7, 7))
    assert message in str(unlike_peft(layer, magnitude=True))
    theirs = Peft(layer)
    try:
        assert max_rel(theirs(x), layer(x)) > 1e-3
    except RuntimeError as error:  # dilation: base and branch have other shapes
        assert "size of tensor" in str(error)


@pytest.mark.parametrize("mode", ["branch", "reference"])
@METHOD
def test_dropout(method, mode):
    layer, x = case(nn.Conv2d(6, 8, 3, padding=1), (2, 6, 5, 5), method, dropout=0.4, dropout_mode=mode)
    if (method, mode) == ("dora", "branch"):
        # c (W0 x + s B A d(x)) + bias
        torch.manual_seed(3)
        y = layer(x)
        torch.manual_seed(3)
        dropped = nn.functional.dropout(x, 0.4)
        plain, low = layer.unload(), (layer.lora_A, layer.lora_B)
        z = (
            plain(x)
            - plain.bias.view(-1, 1, 1)
            + 2 * nn.functional.conv2d(nn.functional.conv2d(dropped, low[0], padding=1), low[1])
        )
        factor = layer.magnitude / layer.row_norm()
        assert max_rel(y, z * factor.view(-1, 1, 1) + plain.bias.view(-1, 1, 1)) <= 1e-5
    else:
        same_as_peft(layer, x, dropout=0.4)
    layer.eval()
    same_as_peft(layer, x, dropout=0.4)


def test_the_dense_update_is_never_formed():
    from torch.utils._python_dispatch import TorchDispatchMode

    shapes = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if "mm" in str(func) and isinstance(result, torch.Tensor):
                shapes.add(result.numel())
            return result

    layer, x = case(nn.Conv2d(6, 10, 3), (2, 6, 7, 7))
    layer.refresh()
    with Watch():
        layer(x).sum().backward()
    assert shapes and layer.weight.numel() not in shapes


def test_no_gradient_for_pixels_and_none_for_the_kernel():
    layer, x = case(nn.Conv2d(3, 8, 4, stride=4), (2, 3, 8, 8))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = layer(x)
    assert layer.weight.data_ptr() not in {t.data_ptr() for t in saved}
    y.sum().backward()
    assert layer.weight.grad is None and layer.lora_A.grad is not None
