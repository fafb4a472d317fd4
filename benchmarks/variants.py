"""The models that `step.py` and `decode.py` measure: LLaVA-shaped ones, and the variants that train them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import mmdora

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Case:
    """A LLaVA-shaped model with random weights, and one batch for it."""

    hidden: int = 1024
    intermediate: int = 2816
    layers: int = 2
    batch: int = 4  # sequences per micro-batch, each with one image
    length: int = 192  # tokens per sequence, visual ones included
    accumulation: int = 1  # micro-batches per optimizer step
    vocabulary: int = 2048
    large_tower: bool = False  # whether the tower is LLaVA-1.5's CLIP-L/336; else it has two small layers
    rank: int = 16
    dtype: str = "fp32"
    device: str = "cpu"
    threads: int = 1
    checkpointing: bool = False
    quantised: bool = False  # whether the linears of the language model are in nf4, with double quantisation

    @property
    def tokens(self) -> int:
        """Tokens per optimizer step."""
        return self.batch * self.length * self.accumulation


SMALL = Case()
GROWTH = replace(SMALL, layers=1)
"""The case on which the growth of cost with rank and tokens is measured: a single layer."""
WIDTH_7B = Case(
    hidden=4096,
    intermediate=11008,
    layers=8,
    batch=2,
    length=2048,
    accumulation=4,
    vocabulary=32064,
    large_tower=True,
    rank=128,
    dtype="bf16",
    device="cuda",
)
"""The case for a GPU: LLaVA-1.5-7B's dimensions, but 8 of its 32 layers, and 16,384 tokens per optimizer step."""


def build(case: Case) -> nn.Module:
    """The base with random weights, frozen."""
    torch.manual_seed(0)
    torch.set_num_threads(case.threads)
    vision: dict[str, Any]
    if case.large_tower:
        vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        vision |= {"image_size": 336, "patch_size": 14}
    else:
        vision = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
        vision |= {"image_size": 64, "patch_size": 16}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=LlamaConfig(
            vocab_size=case.vocabulary,
            hidden_size=case.hidden,
            intermediate_size=case.intermediate,
            num_hidden_layers=case.layers,
            num_attention_heads=case.hidden // 128,
            num_key_value_heads=case.hidden // 128,
            max_position_embeddings=4096,
        ),
        image_token_index=case.vocabulary - 1,
        vision_feature_layer=-2,
    )
    with torch.device(case.device):
        model: Any = LlavaForConditionalGeneration(config)
    model.to({"fp32": torch.float32, "bf16": torch.bfloat16}[case.dtype])
    if case.quantised:
        _quantise(model)
    return model.requires_grad_(False).train()


def _quantise(model: Any) -> None:
    """Put bitsandbytes's linears in nf4 in the places of the language model's, as transformers does when it loads."""
    import bitsandbytes

    bnb: Any = bitsandbytes
    for name, linear in list(model.model.language_model.named_modules()):
        if name.rpartition(".")[2] not in LINEARS:
            continue
        rows, columns = linear.weight.shape
        packed = bnb.nn.Linear4bit(columns, rows, bias=False, compute_dtype=linear.weight.dtype, quant_type="nf4")
        packed.weight = bnb.nn.Params4bit(linear.weight.data, quant_type="nf4", module=packed).to(linear.weight.device)
        model.model.language_model.set_submodule(name, packed)
    model.is_loaded_in_4bit = True  # PEFT asks the model, and not its linears.


def batch_of(case: Case, model: Any) -> dict[str, torch.Tensor]:
    """A batch of token ids [B, T] that begin with the visual tokens, labels on the text, and one picture per row."""
    vision = model.config.vision_config
    visual = (vision.image_size // vision.patch_size) ** 2
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, case.vocabulary - 1, (case.batch, case.length), generator=generator)
    ids[:, 1 : 1 + visual] = case.vocabulary - 1
    labels = ids.masked_fill(ids == case.vocabulary - 1, -100)
    pixels = torch.randn(case.batch, 3, vision.image_size, vision.image_size, generator=generator)
    inputs = {"input_ids": ids, "labels": labels, "pixel_values": pixels.to(model.dtype)}
    return {name: tensor.to(case.device) for name, tensor in inputs.items()}


def _twin(base: nn.Module) -> Any:
    """A copy that shares the frozen weights."""
    return copy.deepcopy(base, {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())})


def floor(base: nn.Module, case: Case, dropout: float) -> Any:
    """The frozen model: nothing trains, but gradients flow from the loss to the language model's input."""
    model = _twin(base)
    model.enable_input_require_grads()
    return model


def full(base: nn.Module, case: Case, dropout: float) -> Any:
    model: Any = copy.deepcopy(base)
    model.model.language_model.requires_grad_(True)
    return model


def peft(base: nn.Module, case: Case, dropout: float, dora: bool) -> Any:
    names = "|".join(LINEARS)
    config = LoraConfig(
        r=case.rank,
        lora_alpha=2 * case.rank,
        lora_dropout=dropout,
        target_modules=rf".*language_model.*\.({names})",
        use_dora=dora,
    )
    return get_peft_model(_twin(base), config)


def ours(base: nn.Module, case: Case, dropout: float, method: str) -> Any:
    model = _twin(base)
    adapt = {"method": method, "rank": case.rank, "alpha": 2 * case.rank, "dropout": dropout, "targets": list(LINEARS)}
    mmdora.inject(model, {"language": adapt})
    return model


PEER = "PEFT LoRA"
VARIANTS: dict[str, Callable[[nn.Module, Case, float], Any]] = {
    PEER: lambda *given: peft(*given, dora=False),
    f"{PEER} again": lambda *given: peft(*given, dora=False),
    "PEFT DoRA": lambda *given: peft(*given, dora=True),
    "mmdora LoRA": lambda *given: ours(*given, method="lora"),
    "mmdora DoRA": lambda *given: ours(*given, method="dora"),
    "frozen floor": floor,
    "full fine-tuning": full,
}
NO_DROPOUT = ("frozen floor", "full fine-tuning")


class Step:
    """One training step of one variant."""

    def __init__(self, name: str, base: nn.Module, case: Case, dropout: float):
        torch.manual_seed(2)
        self.case, self.model = case, VARIANTS[name](base, case, dropout)
        self.batch = batch_of(case, base)
        if case.checkpointing:
            self.model.enable_input_require_grads()
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        trained = [p for p in self.model.parameters() if p.requires_grad]
        # For a model of a GPU's size, the moments of full fine-tuning would not fit, so its step leaves AdamW out.
        steps = trained and not (name == "full fine-tuning" and case.device == "cuda")
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4) if steps else None
        self.trained = trained
        with torch.no_grad():  # At the start B is zero, which would make some products cheaper.
            for key, parameter in self.model.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(std=0.01)

    def __call__(self) -> float:
        half = self.case.dtype == "bf16"
        for _ in range(self.case.accumulation):
            with torch.autocast(self.case.device, torch.bfloat16) if half else nullcontext():
                loss = self.model(**self.batch, use_cache=False).loss / self.case.accumulation
            loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
        for parameter in self.trained:
            parameter.grad = None
        return float(loss.detach())
