"""A base whose files bitsandbytes quantised: it, and an adapter trained on it, are exported as plain weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from exports import moved_adapter
from transformers import AutoModelForImageTextToText

import mmdora
from mmdora.export.run import export
from mmdora.layers.dequantize import form_of
from mmdora.models.quantize import saved_settings

pytest.importorskip("bitsandbytes", reason="pip install 'mmdora[quantize]'")

DORA = {"projector": {"method": "full"}, "language": {"method": "dora", "rank": 4}}


@pytest.fixture(scope="module")
def packed(tiny_llava: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("packed") / "base"
    model, processor = mmdora.load(tiny_llava, quantize="nf4")
    saved_settings(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("adapted", [False, True], ids=["base", "adapter"])
def test_the_export_is_plain_and_says_what_was_trained(adapted: bool, packed: str, tmp_path: Path) -> None:
    source = moved_adapter(packed, DORA, tmp_path / "adapter") if adapted else packed
    told: list[str] = []
    parity = export(source, tmp_path / "out", dtype="fp32", say=told.append)
    parity.check()
    written = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    assert not hasattr(written.config, "quantization_config") and written.dtype == torch.float32
    assert not any(form_of(module) for module in written.modules())
    trained, _ = mmdora.load(source)
    assert len([module for module in trained.modules() if form_of(module)]) == 28
    ids = {"input_ids": torch.arange(5, 30)[None]}
    with torch.no_grad():
        ours, theirs = written(**ids).logits, trained(**ids).logits
    assert (ours - theirs).abs().max() / theirs.abs().max() < 1e-5
