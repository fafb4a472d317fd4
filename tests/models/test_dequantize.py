"""Files in fp8 and mxfp4 are read as plain weights, which have the values of the formats' own equations."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from text_bases import SMALL, tokenizer_of
from transformers import FineGrainedFP8Config, GptOssConfig, GptOssForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Quantize

import mmdora
from mmdora.errors import MmdoraError
from mmdora.layers.dequantize import form_of

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The values of four bits, by the specification of OCP's microscaling formats."""
LINEAR = re.compile(r"language_model.*_proj\.weight$")


def in_fp8(base: str, folder: Path, **own: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    """A copy of a base with its language linears in fp8, by transformers' own operation, and the values they stand for.

    Quantising a model as a whole needs a GPU; the operation that makes the tensors does not.
    """
    shutil.copytree(base, folder)
    settings = FineGrainedFP8Config(**own, modules_to_not_convert=["vision_tower", "multi_modal_projector", "lm_head"])
    operation: Any = Fp8Quantize(SimpleNamespace(quantization_config=settings))
    state, values = load_file(folder / "model.safetensors"), {}
    for name in [name for name in state if LINEAR.search(name)]:
        made = operation.convert({name: state.pop(name)})
        fine, scales = (made[key].float() for key in (name, name + "_scale_inv"))
        rows, columns = (size // count for size, count in zip(fine.shape, scales.shape, strict=True))
        values[name] = fine * scales.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        state |= made
    assert len(values) == 28
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings.to_dict()}))
    return folder, values


@pytest.mark.parametrize(
    "own", [{"weight_block_size": (32, 32)}, {"weight_block_size": None}], ids=["blocks", "tensor"]
)
def test_fp8_is_read_as_plain_weights_and_trained_on(own: Any, tiny_llava: str, tmp_path: Path) -> None:
    folder, values = in_fp8(tiny_llava, tmp_path / "fp8", **own)
    with pytest.raises(MmdoraError, match=r"quantised by fp8, .*model\.dequantize: true"):
        mmdora.load(folder)
    model, _ = mmdora.load(folder, dequantize=True)
    assert not any(form_of(module) for module in model.modules())
    assert not hasattr(model.config, "quantization_config") and model.dtype == torch.float32
    found = {name: tensor for name, tensor in model.named_parameters() if LINEAR.search(name)}
    assert len(found) == 28
    for name, tensor in found.items():
        own_name = next(key for key in values if key.split("layers.")[1] == name.split("layers.")[1])
        torch.testing.assert_close(tensor.detach(), values[own_name], rtol=1e-6, atol=0)
    mmdora.inject(model, {"language": {"method": "dora"}})
    ids = torch.arange(5, 20)[None]
    model(input_ids=ids, labels=ids).loss.backward()


def in_mxfp4(folder: Path) -> dict[str, torch.Tensor]:
    """Write a tiny GPT-OSS with its experts in mxfp4, as its files have them; gives the values they stand for."""
    tokenizer = tokenizer_of("qwen3")
    own: Any = SMALL | {"vocab_size": len(tokenizer), "num_local_experts": 2, "num_experts_per_tok": 1}
    config = GptOssConfig(**own)
    config.intermediate_size = config.hidden_size = 64  # Blocks have 32 values.
    GptOssForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    state, values = load_file(folder / "model.safetensors"), {}
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in state if re.search(r"experts\.(gate_up|down)_proj$", name)]:
        experts, columns, rows = state.pop(name).shape
        blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(119, 123, (experts, rows, columns // 32), dtype=torch.uint8, generator=generator)
        state |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        # Two values of four bits in a byte, the low one first; a scale is an exponent of 2 with an offset of 127.
        fine = torch.tensor(E2M1)[torch.stack([blocks & 15, blocks >> 4], -1).long()].reshape(*scales.shape, 32)
        fine = fine * torch.exp2(scales.float() - 127)[..., None]
        values[name] = fine.reshape(experts, rows, columns).transpose(1, 2)
    assert len(values) == 4
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    tree = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(tree | {"quantization_config": {"quant_method": "mxfp4"}}))
    return values


def test_mxfp4_is_read_as_plain_weights_and_trained_on(tmp_path: Path) -> None:
    values = in_mxfp4(tmp_path)
    with pytest.raises(MmdoraError, match=r"quantised by mxfp4, .*model\.dequantize: true"):
        mmdora.load(tmp_path)
    model, _ = mmdora.load(tmp_path, dequantize=True)
    assert not hasattr(model.config, "quantization_config") and model.dtype == torch.float32
    found = dict(model.named_parameters())
    for name, expected in values.items():
        torch.testing.assert_close(found[name].detach(), expected, rtol=0, atol=0)
    mmdora.inject(model, {"language": {"method": "dora", "targets": ["experts"]}})
    ids = torch.arange(5, 20)[None]
    model(input_ids=ids, labels=ids).loss.backward()
