"""Small modules of every kind that can be adapted; the same as dense equations in float64, and as PEFT's layers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from mmdora.adapter_files.tensors import _gather, file_rank, keys_of, to_file
from mmdora.layers import AdaptedAttention, kind_of, wrapper
from mmdora.ops import reference

BASES: dict[str, Any] = {
    "linear": lambda: nn.Linear(24, 40),
    "conv": lambda: nn.Conv2d(6, 10, 3, stride=2, padding=1),
    "embedding": lambda: nn.Embedding(30, 12, padding_idx=0),
    "attention": lambda: nn.MultiheadAttention(24, 4, batch_first=True),
}
METHODS = ("lora", "dora", "magnitude")


def adapted(base: nn.Module, method: Any = "dora", rank: int = 4, **options: Any) -> Any:
    rank = 0 if method == "magnitude" else rank
    return wrapper(base, rank)(base, method, rank=rank, scaling=2.0, **options)


def make(kind: str, method: Any = "dora", dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Any, Any]:
    """Make a base module, and an adapted module on it."""
    torch.manual_seed(0)
    base = BASES[kind]().to(dtype)
    return base, adapted(base, method, **options)


def shake(layer: Any, seed: int = 1) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in (layer.lora_A, layer.lora_B):
            if parameter is not None:
                parameter += 0.3 * torch.randn_like(parameter)
        if layer.magnitude is not None:
            layer.magnitude *= 1 + 0.3 * torch.rand_like(layer.magnitude)


def inputs(kind: str, rows: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    if kind == "embedding":
        return torch.randint(0, 30, (rows, 5), generator=generator)
    shapes = {"linear": (rows, 24), "conv": (rows, 6, 9, 8), "attention": (rows, 5, 24)}
    return torch.randn(shapes[kind], generator=generator)


def output(module: Any, x: Tensor) -> Tensor:
    """The output of a module, adapted or not, for x; attention gets x as query, key and value."""
    if kind_of(module) is AdaptedAttention:
        return module(x, x, x, need_weights=False)[0]
    return module(x)


def weight(module: Any) -> Any:
    """The parameter of a plain or adapted module that adapters change."""
    kind: Any = kind_of(module)
    return module.get_parameter(kind.weight_name)


def max_rel(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-300)).item()


class Dense(nn.Module):
    """The paper's equations in float64, computed densely on torch's autograd: B A, W' and the norms of its rows."""

    def __init__(self, layer: Any):
        super().__init__()
        self.plain = copy.deepcopy(layer).unload().double().requires_grad_(False)
        self.scaling = layer.scaling
        for name in ("lora_A", "lora_B", "magnitude"):
            own = getattr(layer, name)
            self.register_parameter(name, None if own is None else nn.Parameter(own.detach().double()))

    def weight(self) -> Tensor:
        own: dict[str, Any] = dict(self._parameters)
        w, a, b, m = weight(self.plain), own["lora_A"], own["lora_B"], own["magnitude"]
        if isinstance(self.plain, nn.Embedding):
            return reference.adapted_weight(w.T, a, b, m, self.scaling).T
        if isinstance(self.plain, (nn.Linear, nn.MultiheadAttention)):
            return reference.adapted_weight(w, a, b, m, self.scaling)
        groups: Any = self.plain.groups
        flat = w.flatten(1)
        if a is not None and b is not None:
            pairs = zip(b.flatten(1).chunk(groups), a.flatten(1).chunk(groups), strict=True)
            flat = flat + self.scaling * torch.cat([rows @ filters for rows, filters in pairs])
        return reference.adapted_weight(flat, None, None, m, 1.0).view(w.shape)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.plain, nn.Embedding):
            return self.weight()[x]
        x = x.double()
        if isinstance(self.plain, nn.MultiheadAttention):
            inputs, options = (x, x, x), {"need_weights": False}
            return torch.func.functional_call(self.plain, {"in_proj_weight": self.weight()}, inputs, options)[0]
        return torch.func.functional_call(self.plain, {"weight": self.weight()}, (x,))


class Peft(nn.Module):
    """PEFT's layer on a copy of the base, with the tensors of our adapter file in it."""

    def __init__(self, layer: Any, dropout: float = 0.0):
        super().__init__()
        from peft import LoraConfig, get_peft_model

        dora = layer.magnitude is not None
        holder: Any = nn.Sequential(copy.deepcopy(layer).unload())
        rank = file_rank(layer, layer.rank)
        config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules=["0"],
            use_dora=dora,
            lora_dropout=dropout,
            init_lora_weights=True,
        )
        get_peft_model(holder, config)
        self.layer: Any = holder[0]
        self.attends = layer.kind == "attention"
        with torch.no_grad():
            for name, tensor in to_file(layer, magnitude=dora).items():
                self.own(name).copy_(tensor)

    def own(self, key: str) -> Any:
        """PEFT's parameter for a key of our files."""
        holder, _, leaf = key.partition(".")
        found = getattr(self.layer, holder)["default"]
        return found if isinstance(found, Tensor) else found.get_parameter(leaf or "weight")

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x, x, need_weights=False)[0] if self.attends else self.layer(x)


def same_as_peft(layer: Any, x: Any, dropout: float = 0.0, seed: int = 3) -> None:
    """Assert that output and gradients of x, A, B and m equal PEFT's, with the same dropout masks."""
    theirs = Peft(layer, dropout).train(layer.training)
    floating = x.is_floating_point()
    results = []
    layer.zero_grad()
    for module in (layer, theirs):
        torch.manual_seed(seed)
        own = x.clone().requires_grad_() if floating else x
        y = output(module, own)
        gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        y.backward(gradient)
        results.append((y, own.grad))
    (y, dx), (y2, dx2) = results
    assert max_rel(y, y2) <= 1e-5
    assert not floating or max_rel(dx, dx2) <= 1e-5
    for name, key in keys_of(type(layer)).items():
        parameter = getattr(layer, name)
        if parameter is None:
            continue
        found = theirs.own(key).grad
        if name == "lora_A" and layer.kind == "conv":
            found = _gather(found, layer.groups)
        assert max_rel(parameter.grad, found.view(parameter.shape)) <= 1e-5, name
