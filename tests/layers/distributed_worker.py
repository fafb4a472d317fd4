"""One of two processes of test_distributed.py: `python distributed_worker.py RANK FOLDER`. Writes FOLDER/RANK.pt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).parents[1]))

from layer_cases import adapted, shake

from mmdora.layers import stamp


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = adapted(nn.MultiheadAttention(24, 2, batch_first=True), "dora")
        self.attention.out_proj = adapted(self.attention.out_proj, "lora")
        self.up = adapted(nn.Linear(24, 41), "dora")
        self.gate = adapted(nn.Linear(24, 41), "lora")
        self.down = adapted(nn.Linear(41, 24), "magnitude")

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.layer_norm(x, (24,))
        x = x + self.attention(y, y, y, need_weights=False)[0]
        y = nn.functional.layer_norm(x, (24,))
        return x + self.down(self.up(y) * torch.sigmoid(self.gate(y)))


class Net(nn.Module):
    def __init__(self, recompute: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.recompute = recompute
        self.tokens = adapted(nn.Embedding(30, 24))
        self.patches = adapted(nn.Conv2d(3, 24, 4, stride=4))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        for module in self.modules():
            if hasattr(module, "lora_A"):
                shake(module)

    def forward(self, ids: Tensor, pixels: Tensor) -> Tensor:
        x = torch.cat([self.patches(pixels).flatten(2).transpose(1, 2), self.tokens(ids)], 1)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)  # pyright: ignore
        return x


def batch(rank: int | None) -> tuple[Tensor, Tensor]:
    """All four rows, or the two rows of a rank."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randint(0, 30, (4, 5), generator=generator), torch.randn(4, 3, 8, 8, generator=generator)
    return rows if rank is None else tuple(part[2 * rank : 2 * rank + 2] for part in rows)  # pyright: ignore


def gradients(call: Any, net: nn.Module, rank: int | None) -> dict[str, Tensor]:
    call(*batch(rank)).square().mean().backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def train(net: nn.Module, rank: int | None, **options: Any) -> dict[str, Any]:
    """Take three steps, then write to parameters in other ways, each followed by a forward.

    Returns:
        The output after each write, and the parameters at the end.
    """
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.05, **options)
    for _ in range(3):
        net(*batch(rank)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    outputs = {}
    with torch.no_grad():
        outputs["stepped"] = net(*batch(None))
        reshard(net)
        for name, parameter in net.named_parameters():
            if name.endswith("lora_B"):
                parameter.mul_(2)
        outputs["written"] = net(*batch(None))
        reshard(net)
        net.load_state_dict({name: tensor * 1.1 for name, tensor in net.state_dict().items()})
        outputs["loaded"] = net(*batch(None))
        reshard(net)
    return outputs | {name: whole(parameter) for name, parameter in net.named_parameters()}


def reshard(net: nn.Module) -> None:
    """Shard the parameters again, because writes to them would be lost while they are gathered."""
    for module in net.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def sharded(mesh: Any, recompute: bool, **options: Any) -> nn.Module:
    net = Net(recompute)
    for block in net.blocks:
        fully_shard(block, mesh=mesh, **options)
    fully_shard(net, mesh=mesh, **options)
    return net


def main(rank: int, folder: Path) -> None:
    # On CUDA a gathered parameter often gets the same address again; on a CPU only by chance, so they are left out.
    # So neither addresses nor values may be what shows a write here.
    stamp.Stamp._is_of = lambda self, tensors: True
    stamp._readable = lambda tensor: False
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    net = Net()
    found = {
        "ddp": gradients(DistributedDataParallel(net), net, rank),
        "fsdp": train(sharded(mesh, recompute=False), rank),
        "fsdp kept": train(sharded(mesh, recompute=True, reshard_after_forward=False), rank),
    }
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
