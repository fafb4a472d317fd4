"""Compares the memory that weights need with the memory there is, before any of them is read.

The system ends a process that takes more than there is, without a line.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from mmdora.errors import MmdoraError
from mmdora.layers.dequantize import form_of, held_bytes, sizes
from mmdora.models.dtypes import DTYPES, DtypeName, dtype_in_config

Device = str | torch.device | None
_GROUPS = {
    "": ("memory.max", "memory.current", ("inactive_file", "active_file")),
    "memory": (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
}
"""Controller in /proc/self/cgroup, which is empty in version 2 -> the files with the limit and with what is in use, and
the lines of `memory.stat` with the pages of files, which count as in use and are given back when memory is needed."""


def free_memory(device: Device = None, root: Path = Path("/")) -> int:
    """Bytes that this process may still take on a device, within the limits of machine and container.

    Args:
        device: a CUDA device; None or "cpu" for main memory.
        root: where `proc` and `sys` are.
    """
    if on_gpu(device):
        return torch.cuda.mem_get_info(device)[0]
    return min([_available(root), *_left_in_groups(root)])


def on_gpu(device: Device) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def own_dtype(config: Any) -> DtypeName:
    """The dtype of a checkpoint's weights, as its config names it; like transformers, fp32 if it names none."""
    return dtype_in_config(str(getattr(config, "dtype", None)).removeprefix("torch."))


def check_memory(
    name: str,
    model: nn.Module,
    dtype: DtypeName,
    device: Device = None,
    *,
    beside: int = 0,
    what: str = "",
    processes: int = 1,
    instead: str = "",
) -> None:
    """Raise an MmdoraError if the weights of a model, in a dtype and on a device, take more memory than is free.

    Main memory: weights in the dtype of their files are mapped. The system can drop their pages and read them again, so
    they are not counted. Weights in another dtype are copies, which are made in main memory before a GPU gets them.

    Args:
        name: of the base, for the message.
        model: with the base's config and shapes; it may be on the meta device.
        beside: bytes that will be taken on the device beside the weights.
        what: what these bytes are for, as in "the optimizer".
        processes: the processes on this machine that each load the model.
        instead: another way to the same end, half a sentence for the message.
    """
    elements, own = sum(sizes(model).values()), own_dtype(model.config)
    packed = packed_bytes(model)
    wide = sum(p.numel() for p in model.parameters() if p.is_floating_point()) * DTYPES[dtype].itemsize
    copies = packed + (0 if dtype == own else wide)
    if on_gpu(device) and packed:
        copies = 0  # Weights that are quantised are read and quantised one by one where they will be.
    needs: list[tuple[Device, int]] = [(None, processes * (copies + (0 if on_gpu(device) else beside)))]
    if on_gpu(device):
        needs.append((device, packed + wide + beside))
    for place, need in needs:
        free = free_memory(place)
        if need <= free:
            continue
        ways = [instead] if instead else []
        if dtype != own and (place is None or DTYPES[own].itemsize < DTYPES[dtype].itemsize):
            ways.append(f"take {own}, the dtype of its files (--dtype, or model.dtype in a config)")
        if place is None:
            ways.append("free some, or raise the limit of the container")
        else:
            ways.append("free some, or take another device")
        if not packed:
            ways.append("quantise them (--quantize nf4, or model.quantize in a config)")
        where = "main memory" if place is None else f"memory on {place}"
        each = f" in {processes} processes" if processes > 1 and place is None else ""
        raise MmdoraError(
            f"model {name!r}: {elements:,} weights as {_shown_as(model, dtype)}{f' and {what}' if what else ''} need "
            f"{shown(need)} of {where}{each}, and {shown(free)} is free; {'; or '.join(ways)}"
        )


def packed_bytes(model: nn.Module) -> int:
    """Bytes of the quantised weights of a model, with their scales."""
    return sum(held_bytes(module) for module in model.modules() if form_of(module) is not None)


def _shown_as(model: nn.Module, dtype: DtypeName) -> str:
    forms = {form for module in model.modules() if (form := form_of(module)) is not None}
    return " and ".join([*sorted(forms), dtype])


def shown(count: int) -> str:
    """A number of bytes for people."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1000:.1f} kB"


def _available(root: Path) -> int:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):  # Not Linux.
        return psutil.virtual_memory().available


def _left_in_groups(root: Path) -> Iterator[int]:
    """Bytes left below the limit of each control group that this process is in, outer ones included."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller, names in _GROUPS.items():
            if controller not in controllers.split(","):
                continue
            top = root / "sys/fs/cgroup" / controller
            # In a container the path may be that of the machine, of which only the container's own folder, the top, is
            # to be seen here.
            inner = [] if ".." in Path(path).parts else [part for part in path.split("/") if part]
            for depth in range(len(inner) + 1):
                left = _left(top.joinpath(*inner[:depth]), *names)
                if left is not None:
                    yield left


def _left(group: Path, limit: str, used: str, cached: tuple[str, ...]) -> int | None:
    """Bytes left in one group; None if it has no limit, or is not there."""
    try:
        most, taken = int((group / limit).read_text()), int((group / used).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # The limit may be "max".
        return None
    return max(0, most - taken + sum(int(stat.get(name, 0)) for name in cached))
