"""Modules of fused experts of several families, and tiny mixtures of two; the dense equations for their experts."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from shrunken import QWEN, ROPE, TEXT
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText
from transformers.models.aria import modeling_aria
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextExperts

from mmdora.layers import AdaptedExperts, expert_weights, kind_of, place_of
from mmdora.ops import reference

EXPERTS, HIDDEN = 4, 24
SIZES = {"narrow": 8, "square": 12, "wide": 16}
"""Widths I of an expert: 2I < H, 2I = H and 2I > H. A kernel of torch wants multiples of 4."""
CLASSES: dict[str, Any] = {
    "qwen3_vl_moe": Qwen3VLMoeTextExperts,  # [E, O, I]
    "aria": modeling_aria.AriaExperts,  # [E, I, O], as is_transposed says
    "gpt_oss": GptOssExperts,  # the same with biases
    "llama4": Llama4TextExperts,  # [E, I, O], as only its code shows; all experts in one product
}
if hasattr(modeling_aria, "AriaGroupedExpertsGemm"):  # In older versions of transformers they are modules, not fused.
    del CLASSES["aria"]
IMPLEMENTATIONS = ("eager", "grouped_mm", "batched_mm")


def experts(name: str, width: int = 8, implementation: str = "eager") -> Any:
    torch.manual_seed(0)
    config = SimpleNamespace(
        num_experts=EXPERTS, num_local_experts=EXPERTS, moe_num_experts=EXPERTS, hidden_size=HIDDEN,
        intermediate_size=width, moe_intermediate_size=width, hidden_act="silu", swiglu_alpha=1.7, swiglu_limit=7.0,
        _experts_implementation=implementation,
    )  # fmt: skip
    module = CLASSES[name](config).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def adapt(base: Any, method: Any = "dora", rank: int = 4, leaves: tuple[str, ...] = (), **options: Any) -> Any:
    """The module with all its parameters adapted, or those in `leaves`, moved away from where they start."""
    whole: Any = base
    for name in expert_weights("experts", base):
        leaf = name.rpartition(".")[2]
        if leaves and leaf not in leaves:
            continue
        place = expert_weights("experts", whole)[name] if whole is base else weight_beside(whole, leaf)
        kind: Any = kind_of(place)
        own = kind(place, method, rank=0 if method == "magnitude" else rank, scaling=2.0, **options)
        whole = own.install()
    return whole


def weight_beside(whole: AdaptedExperts, leaf: str) -> Any:
    return place_of(nn.ModuleDict({"experts": whole}), f"experts.{leaf}")


def shake(module: nn.Module, size: float = 0.3) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("magnitude"):
                parameter *= 1 + size * torch.rand_like(parameter)
            elif name.rpartition(".")[2] in ("lora_A", "lora_B"):
                parameter += size * torch.randn_like(parameter)
    return module


def inputs(name: str, tokens: int = 9, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Hidden states, and for most the chosen experts with their weights. One expert gets no token."""
    generator = torch.Generator().manual_seed(7)
    if name == "llama4":
        return (torch.randn(EXPERTS * tokens, HIDDEN, generator=generator).to(dtype),)
    chosen = torch.stack([torch.randperm(EXPERTS - 1, generator=generator)[:2] for _ in range(tokens)])
    weights = torch.rand(tokens, 2, generator=generator)
    return torch.randn(tokens, HIDDEN, generator=generator).to(dtype), chosen, weights.to(dtype)


class Dense(nn.Module):
    """The base's own forward in float64, with W' of every expert computed densely on autograd."""

    def __init__(self, whole: AdaptedExperts):
        super().__init__()
        self.adapters: Any = {own.leaf: own for own in copy.deepcopy(whole).adapters()}
        self.own = {
            (leaf, name): getattr(own, name).detach().double().requires_grad_()
            for leaf, own in self.adapters.items()
            for name in ("lora_A", "lora_B", "magnitude")
            if getattr(own, name) is not None
        }
        self.plain: Any = copy.deepcopy(whole.shell).double()
        self.plain._modules = {}
        self.plain.act_fn = nn.SiLU()
        if hasattr(self.plain, "config"):
            self.plain.config = SimpleNamespace(_experts_implementation="eager")

    def weights(self) -> dict[str, Tensor]:
        return {leaf: self.weight(leaf) for leaf in self.adapters}

    def weight(self, leaf: str) -> Tensor:
        own = self.adapters[leaf]
        factors = [self.own.get((leaf, name)) for name in ("lora_A", "lora_B", "magnitude")]
        stored = own.base_weight.detach().double()
        dense = [
            reference.adapted_weight(w, *(f if f is None else f[e] for f in factors), scaling=2.0)
            for e, w in enumerate(stored.mT if own.transposed else stored)
        ]
        return torch.stack([w.T for w in dense] if own.transposed else dense)

    def forward(self, x: Tensor, *routing: Tensor) -> Tensor:
        wide = (tensor.double() if tensor.is_floating_point() else tensor for tensor in (x, *routing))
        return torch.func.functional_call(self.plain, self.weights(), tuple(wide))


CONFIGS: dict[str, Any] = {
    "qwen3_vl_moe": {
        "vision_config": {
            **QWEN, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 24, "deepstack_visual_indexes": [0],
            "num_position_embeddings": 16,
        },
        "text_config": {**TEXT, **ROPE, "num_experts": EXPERTS, "num_experts_per_tok": 2},
    },
    "aria": {
        "vision_config": {
            "model_type": "idefics3_vision", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 8, "patch_size": 4,
        },
        "text_config": {
            **TEXT, "model_type": "aria_text", "moe_num_experts": EXPERTS, "moe_topk": 2, "moe_num_shared_experts": 1,
        },
        "projector_patch_to_query_dict": {4: 4},
    },
}  # fmt: skip


def mixture(name: str, width: int = 8) -> Any:
    """A tiny random mixture on the CPU, in eval mode."""
    torch.manual_seed(0)
    sizes = copy.deepcopy(CONFIGS[name])
    sizes["text_config"]["intermediate_size" if name == "aria" else "moe_intermediate_size"] = width
    if name not in CLASSES:
        pytest.skip(f"this transformers has no fused experts in {name}")
    return AutoModelForImageTextToText.from_config(CONFIG_MAPPING[name](**sizes)).eval()


def tokens() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(10, 60, (2, 9), generator=torch.Generator().manual_seed(5))}
