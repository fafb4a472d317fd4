"""The adapted `nn.MultiheadAttention` against torch's own with the merged weights, and against PEFT."""

import copy
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layer_cases import METHODS, Dense, adapted, make, max_rel, same_as_peft, shake
from torch import Tensor, nn

from mmdora.errors import MmdoraError
from mmdora.layers import AdaptedLinear

E, HEADS, B, L, S = 24, 4, 3, 5, 7


def case(method: Any = "dora", out: bool = True, dropout: float = 0.0, mode: Any = "branch", **options: Any) -> Any:
    """An adapted attention away from its start, its biases and, if `out`, its out_proj too."""
    torch.manual_seed(0)
    base = nn.MultiheadAttention(E, HEADS, **options)
    for parameter in base.parameters():
        nn.init.normal_(parameter, std=0.2)
    layer = adapted(base, method, dropout=dropout, dropout_mode=mode)
    shake(layer)
    if out:
        layer.out_proj = adapted(layer.out_proj, method, dropout=dropout, dropout_mode=mode)
        shake(layer.out_proj)
    return layer


def merged(layer: Any) -> Any:
    """torch's own module."""
    plain: Any = copy.deepcopy(layer).merge()
    if isinstance(plain.out_proj, AdaptedLinear):
        plain.out_proj = plain.out_proj.merge()
    assert type(plain) is nn.MultiheadAttention and type(plain.out_proj) is not AdaptedLinear
    return plain


def shape(layout: str, length: int) -> tuple[int, ...]:
    return {"batch first": (B, length, E), "length first": (length, B, E), "single": (length, E)}[layout]


def given(sharing: str, layout: str) -> tuple[Tensor, Tensor, Tensor]:
    query = torch.randn(shape(layout, L))
    if sharing == "self":
        return query, query, query
    key = torch.randn(shape(layout, S))
    return query, key, key if sharing == "cross" else torch.randn(shape(layout, S))


MASKS: dict[str, Any] = {
    "none": lambda batch, length: {},
    "bool": lambda batch, length: {"attn_mask": torch.ones(L, length).tril(1) == 0},
    "float": lambda batch, length: {"attn_mask": torch.randn(L, length)},
    "by head": lambda batch, length: {
        "attn_mask": (torch.rand(batch * HEADS, L, length) < 0.4) & (torch.arange(length) > 0)
    },
    "padding": lambda batch, length: {"key_padding_mask": torch.arange(length).expand(batch, -1) > 3},
    "float padding": lambda batch, length: {"key_padding_mask": torch.randn(batch, length)},
    "both": lambda batch, length: MASKS["bool"](batch, length) | MASKS["padding"](batch, length),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("layout", ["batch first", "length first", "single"])
def test_is_torchs_attention_with_the_merged_weights(layout, mask):
    """Slow path, fast path (evaluation without gradients) and attention dropout with its seed; weights too."""
    layer = case(batch_first=layout == "batch first", dropout=0.0)
    layer.shell.dropout = 0.3
    theirs = merged(layer)
    for sharing, (need, average), mode in product(
        ("self", "cross", "apart"), ((False, True), (True, True), (True, False)), ("train", "eval", "no_grad")
    ):
        inputs = given(sharing, layout)
        batch = 1 if layout == "single" else B
        masks = MASKS[mask](batch, L if sharing == "self" else S)
        if layout == "single" and "key_padding_mask" in masks:
            masks["key_padding_mask"] = masks["key_padding_mask"][0]
        results = []
        for module in (layer, theirs):
            module.train(mode == "train")
            torch.manual_seed(1)
            with torch.set_grad_enabled(mode != "no_grad"):
                results.append(module(*inputs, need_weights=need, average_attn_weights=average, **masks))
        (y, weights), (expected, their_weights) = results
        assert y.shape == expected.shape and max_rel(y, expected) <= 1e-5, (sharing, need, mode)
        assert (weights is None) == (their_weights is None) == (not need)
        if need:
            assert weights.shape == their_weights.shape and max_rel(weights, their_weights) <= 1e-5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sharing", ["self", "cross", "apart"])
def test_gradients_are_the_dense_equations(sharing, method):
    """Of A, B and m of both matrices, and of each input, in float64."""
    layer = case(method, batch_first=True)
    exact = Dense(layer)
    exact.plain.out_proj = exact.plain.out_proj.unload().double().requires_grad_(False)
    exact_out: Any = Dense(layer.out_proj)
    ours = [x.requires_grad_() for x in given(sharing, "batch first")]
    wide = {id(x): x.detach().double().requires_grad_() for x in ours}
    theirs = [wide[id(x)] for x in ours]
    weights = {"in_proj_weight": exact.weight(), "out_proj.weight": exact_out.weight()}
    y = layer(*ours, need_weights=False)[0]
    expected = torch.func.functional_call(exact.plain, weights, tuple(theirs), {"need_weights": False})[0]
    assert max_rel(y, expected) <= 1e-5
    gradient = torch.randn_like(y)
    y.backward(gradient)
    expected.backward(gradient.double())
    assert all(max_rel(a.grad, b.grad) <= 1e-5 for a, b in zip(ours, theirs, strict=True))  # pyright: ignore
    for module, dense in ((layer, exact), (layer.out_proj, exact_out)):
        for name in ("lora_A", "lora_B", "magnitude"):
            if (parameter := getattr(module, name)) is not None:
                assert max_rel(parameter.grad, getattr(dense, name).grad) <= 1e-5, name
    assert layer.in_proj_weight.grad is None and layer.out_proj.weight.grad is None


def test_equals_pefts_lora():
    _, layer = make("attention", "lora")
    shake(layer)
    same_as_peft(layer, torch.randn(B, L, E))


@pytest.mark.parametrize("mode", ["branch", "reference"])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_dropout_is_that_of_a_linear_of_the_same_matrix(method, mode):
    layer = case(method, out=False, dropout=0.4, mode=mode, batch_first=True)
    linear: Any = nn.Linear(E, 3 * E)
    linear.load_state_dict({"weight": layer.in_proj_weight, "bias": layer.in_proj_bias})
    linear = adapted(linear, method, dropout=0.4, dropout_mode=mode)
    own = {name: p for name, p in layer.named_parameters(recurse=False) if not name.startswith("in_proj")}
    linear.load_state_dict(own, strict=False)
    x = torch.randn(B, L, E)
    torch.manual_seed(2)
    q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in linear(x).chunk(3, -1))
    expected = layer.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    torch.manual_seed(2)
    y = layer(x, x, x, need_weights=False)[0]
    assert max_rel(y, expected) <= 1e-6
    assert max_rel(y, layer.eval()(x, x, x)[0]) > 1e-2


@pytest.mark.parametrize("need", [True, False])
def test_autocast_is_torchs(need):
    layer = case(batch_first=True)
    theirs, x = merged(layer), torch.randn(B, L, E)
    mask = torch.randn(L, L)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = (module(x, x, x, need_weights=need, attn_mask=mask)[0] for module in (layer, theirs))
    assert y.dtype == expected.dtype and max_rel(y, expected) <= 0.03


def test_a_causal_hint_needs_its_mask():
    layer, x = case(batch_first=True), torch.randn(B, L, E)
    with pytest.raises(MmdoraError, match="is_causal is a hint about attn_mask"):
        layer(x, x, x, is_causal=True)
    mask = nn.Transformer.generate_square_subsequent_mask(L)
    expected = merged(layer)(x, x, x, need_weights=False, attn_mask=mask, is_causal=True)[0]
    assert max_rel(layer(x, x, x, need_weights=False, attn_mask=mask, is_causal=True)[0], expected) <= 1e-5


def test_a_layer_of_torch_that_reads_weights_cannot_use_it_silently():
    block = nn.TransformerEncoderLayer(E, HEADS, batch_first=True).eval()
    block.self_attn = adapted(block.self_attn)
    with torch.no_grad(), pytest.raises(AttributeError, match="_qkv_same_embed_dim"):
        block(torch.randn(B, L, E))


def test_as_many_products_as_inputs_and_never_the_dense_update():
    from torch.utils._python_dispatch import TorchDispatchMode

    shapes: list[tuple[int, ...]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if "mm" in str(func) and isinstance(result, Tensor):
                shapes.append(tuple(result.shape))
            return result

    layer = case(out=False, batch_first=True)
    for sharing, widths in {"self": [3 * E], "cross": [E, 2 * E], "apart": [E, E, E]}.items():
        inputs = given(sharing, "batch first")
        layer.refresh()
        shapes.clear()
        with Watch():
            y = layer(*inputs, need_weights=False)[0]
            found = [width for rows, width in shapes if rows in (B * L, B * S) and width % E == 0]
            y.sum().backward()
        assert len(found) >= len(widths) and set(widths) <= set(found)
        assert (3 * E, E) not in shapes


def test_compiled_it_is_one_graph_and_the_same():
    layer = case(batch_first=True)
    mask = torch.rand(L, L) < 0.3
    x = torch.randn(B, L, E)

    def loss(call: Any) -> tuple[Tensor, list[Tensor]]:
        layer.zero_grad()
        y = call(x, x, x, attn_mask=mask.fill_diagonal_(False), need_weights=False)[0]
        y.square().sum().backward()
        return y, [p.grad.clone() for p in layer.parameters() if p.grad is not None]

    torch._dynamo.reset()
    (y, gradients), (expected, wanted) = loss(torch.compile(layer, backend="aot_eager", fullgraph=True)), loss(layer)
    torch._dynamo.reset()
    assert len(wanted) == 6 and max_rel(y, expected) <= 1e-6
    assert all(max_rel(a, b) <= 1e-5 for a, b in zip(gradients, wanted, strict=True))
