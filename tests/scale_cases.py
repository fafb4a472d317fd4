"""A small tower with every kind of adapted module, how it is trained, and every way to write to a parameter."""

from typing import Any

import torch
from layer_cases import adapted, shake, weight
from torch import nn


def trained(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


class Block(nn.Module):
    """One adapted module of each method, as a transformer block has them."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.up = adapted(nn.Linear(24, 40), "dora", dropout=dropout)
        self.gate = adapted(nn.Linear(24, 40, bias=False), "lora", dropout=dropout)
        self.down = adapted(nn.Linear(40, 24), "magnitude")

    def forward(self, x):
        y = torch.nn.functional.layer_norm(x, (24,))
        return x + self.down(self.up(y) * torch.sigmoid(self.gate(y)))


class Tower(nn.Module):
    """Ids and pixels in, blocks over them; `compiled` compiles each block by itself."""

    def __init__(self, depth: int = 2):
        super().__init__()
        torch.manual_seed(0)
        self.tokens = adapted(nn.Embedding(30, 24))
        self.patches = adapted(nn.Conv2d(3, 24, 4, stride=4))
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        for module in self.modules():
            if hasattr(module, "lora_A"):
                shake(module)

    def forward(self, ids, pixels):
        x = torch.cat([self.patches(pixels).flatten(2).transpose(1, 2), self.tokens(ids)], 1)
        for block in self.blocks:
            x = block(x)
        return x


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 30, (2, 5), generator=generator), torch.randn(2, 3, 8, 8, generator=generator)


def losses(call, module, steps: int = 3, **options: Any) -> list[float]:
    optimizer = torch.optim.AdamW(trained(module), lr=0.05, **options)
    found = []
    for _ in range(steps):
        loss = call(*batch()).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def step(layer, *, compiled=False, **options):
    optimizer = torch.optim.AdamW(trained(layer), lr=0.1, **options)
    for parameter in trained(layer):
        parameter.grad = torch.randn_like(parameter)
    if compiled:
        torch.compile(optimizer.step, backend="aot_eager", fullgraph=False)()
    else:
        optimizer.step()


def in_place(parameter):
    with torch.no_grad():
        parameter.mul_(2)


def own_optimizer(layer):
    """What a hand-written optimizer does: no step of torch's, no version raised."""
    for parameter in trained(layer):
        parameter.data.add_(torch.randn_like(parameter), alpha=0.3)


WRITES = {
    "AdamW foreach": lambda layer: step(layer, foreach=True),
    "AdamW loop": lambda layer: step(layer, foreach=False),
    "AdamW fused": lambda layer: step(layer, fused=True),
    "AdamW compiled": lambda layer: step(layer, compiled=True),
    "in place": lambda layer: shake(layer, seed=5),
    "load": lambda layer: layer.load_state_dict({k: v * 1.1 + 0.1 for k, v in layer.state_dict().items()}),
    "load assigned": lambda layer: layer.load_state_dict({k: 2 * v for k, v in layer.state_dict().items()}, True, True),
    "base": lambda layer: (weight(layer).data.mul_(2), layer.refresh()),
    "base in place": lambda layer: in_place(weight(layer)),
    "data swapped": lambda layer: setattr(layer.lora_B, "data", layer.lora_B.data * 3),
    "data and refresh": lambda layer: (layer.lora_A.data.normal_(), layer.refresh()),
    "replaced": lambda layer: setattr(layer, "magnitude", nn.Parameter(layer.magnitude.detach() * 2)),
    "float64 and back": lambda layer: layer.double().float(),
}  # fmt: skip


DATA_WRITES = {
    "copy": lambda layer: layer.lora_B.data.copy_(torch.randn_like(layer.lora_B)),
    "init": lambda layer: nn.init.normal_(layer.magnitude.data, 3.0),
    "moving average": lambda layer: [p.data.lerp_(torch.randn_like(p), 0.5) for p in trained(layer)],
    "own optimizer": own_optimizer,
    "foreach": lambda layer: torch._foreach_add_([p.data for p in trained(layer)], 0.7),  # pyright: ignore
    "base": lambda layer: weight(layer).data.mul_(2),
    "one value": lambda layer: layer.magnitude.data[1].mul_(3),
}  # fmt: skip
