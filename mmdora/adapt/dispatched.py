"""A base that accelerate has spread over devices, main memory or disk, as `device_map="auto"` does."""

from __future__ import annotations

from torch import nn

from mmdora.errors import MmdoraError

HOOK = "_hf_hook"
"""The attribute under which accelerate keeps the hook that moves a module's inputs, or fetches its weights."""


def check_in_one_place(model: nn.Module) -> None:
    """Raise an MmdoraError if accelerate's hooks have replaced the forward of a model's modules.

    An adapter takes the place of a module, whose forward would then no longer be called, nor its hook. Of a part that
    is offloaded there are no weights either.
    """
    hooked = [name for name, module in model.named_modules() if name and hasattr(module, HOOK)]
    if hooked:
        raise MmdoraError(
            f"this base is spread by device_map, or offloaded ({hooked[0]} has a hook of accelerate's), and an adapter "
            "would pass the hooks by; load it onto one device (device_map={'': 0}), in 4 bits if it does not fit, or "
            "shard it over several with mmdora train and FSDP2 (docs/processes.md)"
        )
