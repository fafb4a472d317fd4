"""The work of each of the two processes of test_sharded.py: training with torch's fully_shard over gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from shrunken import llava_inputs, shrunken_llava
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from mmdora import inject
from mmdora.adapter_files.adapters import save_adapter
from mmdora.train.sharded import spread_state, whole, whole_state

ADAPT = {
    "vision": {"method": "dora", "rank": 2, "targets": ["attention"]},
    "projector": {"method": "full"},
    "language": {"method": "lora", "rank": 4},
}
STEPS = 3


def adapted() -> Any:
    model = shrunken_llava(vision_feature_layer=-2)
    torch.manual_seed(1)
    inject(model, ADAPT)
    return model.train()


def batches(masked: bool) -> list[dict[str, torch.Tensor]]:
    """A batch with an image for one process, one of text for the other; with `masked` this holds the first row too."""
    pictured = llava_inputs(1)
    text = {"input_ids": torch.randint(4, 64, (1, 10), generator=torch.Generator().manual_seed(2))}
    image = pictured | {"labels": pictured["input_ids"].masked_fill(pictured["input_ids"] == 3, -100)}
    words = text | {"labels": text["input_ids"].clone()}
    if not masked:
        return [image, words]
    beside = {
        "input_ids": torch.cat([text["input_ids"], pictured["input_ids"]]),
        "labels": torch.cat([text["input_ids"], torch.full_like(pictured["input_ids"], -100)]),
        "pixel_values": pictured["pixel_values"],
    }
    return [image, beside]


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.0)


def items() -> int:
    return sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches(False))


def alone() -> tuple[Any, torch.optim.Optimizer]:
    """Train on both rows in one process."""
    model = adapted()
    optimizer = optimizer_of(model)
    for _ in range(STEPS):
        for batch in batches(False):
            model(**batch, num_items_in_batch=items()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def main(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    model, mesh = adapted(), init_device_mesh("cpu", (2,))
    inner = model.model
    for block in [*inner.vision_tower.encoder.layers, *inner.language_model.layers]:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = optimizer_of(model)
    for step in range(STEPS):
        (model(**batches(True)[rank], num_items_in_batch=items()).loss * 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 1:  # what a resumed run does
            kept = whole_state(optimizer.state_dict(), keep=True)
            optimizer = optimizer_of(model)
            optimizer.load_state_dict(spread_state(kept, optimizer))
    spread = {name: isinstance(p, DTensor) for name, p in model.named_parameters()}
    moments = [type(value).__name__ for state in optimizer.state.values() for value in state.values() if value.ndim]
    with whole(model):
        if rank == 0:
            save_adapter(model, folder / "adapter", base="test")
    again = {name: isinstance(p, DTensor) for name, p in model.named_parameters()}
    state = whole_state(optimizer.state_dict(), keep=True)
    torch.save({"spread": spread, "again": again, "moments": moments, "state": state}, folder / f"{rank}.pt")
    dist.destroy_process_group()
