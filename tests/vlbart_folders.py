"""A shrunken VL-BART and two adapters on it, as folders, and what transformers itself makes them answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from shrunken_vlbart import small_vlbart

import mmdora
from mmdora.adapt.inject import trainable_parameters

PLANS: dict[str, Any] = {
    "lora": {"language": {"method": "lora", "rank": 2}},
    "dora": {"language": {"method": "dora", "rank": 2}},
}


def save(folder: Path) -> dict[str, str]:
    """Name -> folder of the base, set to search with four beams, and of the adapters."""
    model, processor = small_vlbart("vit")
    model.generation_config.num_beams = 4
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    for seed, (name, plan) in enumerate(PLANS.items()):
        model, _ = mmdora.load(folder / "base")
        mmdora.inject(model, plan)
        torch.manual_seed(seed)
        with torch.no_grad():
            for _, parameter, _, _ in trainable_parameters(model):
                parameter.add_(0.2 * torch.randn_like(parameter))
        mmdora.save_adapter(model, folder / name)
    return {name: str(folder / name) for name in ("base", *PLANS)}


def greedy(folder: str, question: str, pictures: list[Image.Image], tokens: int) -> str:
    """One answer, without mmdora's own generation."""
    model, processor = mmdora.load(folder)
    inputs = processor(text=question, images=[pictures])
    ids = model.generate(**inputs, num_beams=1, do_sample=False, max_new_tokens=tokens)
    return processor.tokenizer.decode(ids[0, 1:], skip_special_tokens=True).strip()
