"""Writes a checkpoint with LLaVA-1.5-7B's layout and random weights, and an adapter for it, for measurements.

The tokenizer is that of the bundled `tiny-llava`, whose ids fit into the larger vocabulary; the pictures are 336 pixels
wide and high and have 576 tokens, as LLaVA-1.5's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SHARD = 5 * 10**9
"""The most bytes of a file, as in checkpoints on the hub."""


def write_config(folder: Path, layers: int, small: bool) -> Any:
    """Write config and processor into a folder, which may not be there yet; gives the model on the meta device."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    from mmdora.export.layout import config_dtype
    from mmdora.models.load import load_processor

    hidden, wide, words = (512, 1376, 4096) if small else (4096, 11008, 32064)
    tower: dict[str, Any] = {"num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14}
    tower |= {"hidden_size": 1024, "intermediate_size": 4096}
    if small:
        tower |= {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 256, "intermediate_size": 1024}
    heads = hidden // 128
    text = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=words,
        max_position_embeddings=4096,
    )
    processor = load_processor("tiny-llava")
    processor.patch_size = tower["patch_size"]
    processor.image_processor.size = processor.image_processor.crop_size = {"height": 336, "width": 336}
    processor.save_pretrained(folder)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**tower),
        text_config=text,
        image_token_index=processor.image_token_id,
        vision_feature_layer=-2,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    config_dtype(config, torch.bfloat16)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    return model


def make_base(folder: Path, layers: int, small: bool) -> None:
    """Write a base file by file; no more than one file's tensors are in memory."""
    import torch
    from safetensors.torch import save_file

    from mmdora.export.layout import hub_state
    from mmdora.export.shards import SINGLE, read_shard, write_index

    model = write_config(folder, layers, small)
    files: list[dict[str, torch.Size]] = [{}]
    size = 0
    for name, tensor in hub_state(model).items():
        if size + 2 * tensor.numel() > SHARD:
            files.append({})
            size = 0
        files[-1][name] = tensor.shape
        size += 2 * tensor.numel()
    drawn = torch.empty(2**24 + 1, dtype=torch.bfloat16).normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
    used = 0
    written = {}
    for number, shapes in enumerate(files, 1):
        path = folder / (SINGLE if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors")
        tensors = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
        for tensor in tensors.values():
            used = _fill(tensor.view(-1), drawn, used)
        save_file(tensors, path, {"format": "pt"})
        written[path.name] = read_shard(path).tensors
    write_index(folder, written)


def _fill(flat: Any, drawn: Any, used: int) -> int:
    """Copy random numbers, beginning behind the `used` ones; gives how many are used then.

    They come again after 17 million, because drawing 7 billion takes minutes. No two rows of a weight are equal.
    """
    begin = 0
    while begin < len(flat):
        part = flat[begin : begin + len(drawn) - used]
        part.copy_(drawn[used : used + len(part)])
        begin, used = begin + len(part), (used + len(part)) % len(drawn)
    return used


def make_adapter(base: Path, folder: Path, rank: int) -> int:
    """Write a DoRA on all language linears, with every parameter changed; gives the number of linears."""
    import torch

    import mmdora
    from mmdora.adapt.inject import trainable_parameters
    from mmdora.export.mapped import MappedCheckpoint

    model = MappedCheckpoint(base).model
    settings = {"method": "dora", "rank": rank, "targets": ["attention", "mlp"]}
    plan = mmdora.inject(model, {"language": settings})
    with torch.no_grad():
        for _, parameter, _, kind in trainable_parameters(model):
            noise = torch.randn_like(parameter)
            parameter.mul_(1 + 0.02 * noise) if kind == "magnitude" else parameter.add_(0.003 * noise)
    mmdora.save_adapter(model, folder, base=str(base))
    return len(plan.entries)
