"""Bases that are quantised while they are loaded, bases whose files are quantised, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import mmdora
from mmdora.adapt.fingerprint import fingerprint, same_base
from mmdora.config import Quantize
from mmdora.errors import MmdoraError
from mmdora.layers.dequantize import form_of, sizes
from mmdora.models import quantize
from mmdora.models.base import skeleton
from mmdora.models.dtypes import DTYPES
from mmdora.models.memory import packed_bytes

pytest.importorskip("bitsandbytes", reason="pip install 'mmdora[quantize]'")


def forms(model) -> dict[str, str | None]:
    return {name: form_of(module) for name, module in model.named_modules() if form_of(module) is not None}


def test_linears_of_the_language_part_alone_are_quantised(tiny_llava):
    model, _ = mmdora.load(tiny_llava, quantize="nf4")
    assert len(forms(model)) == 28 and set(forms(model).values()) == {"nf4"}
    assert all(name.startswith("model.language_model.layers.") for name in forms(model))
    plain, _ = mmdora.load(tiny_llava)
    assert sizes(model) == sizes(plain) == {name: own.numel() for name, own in plain.named_parameters()}
    assert same_base(fingerprint(plain), fingerprint(model)) is None
    assert fingerprint(plain)["structure"] == fingerprint(model)["structure"]


def test_only_names_modalities_and_the_skeleton_takes_the_bytes_of_the_model(tiny_llava):
    own = {"type": "fp4", "double": False, "compute": "fp32", "only": ["vision"]}
    model, _ = mmdora.load(tiny_llava, quantize=own)
    assert set(forms(model).values()) == {"fp4"} and all("vision_tower" in name for name in forms(model))
    shapes = skeleton(tiny_llava, quantize=Quantize(**own))
    assert forms(shapes) == forms(model) and packed_bytes(shapes) == packed_bytes(model) > 0
    plan = mmdora.inject(model, {"vision": {"method": "dora"}})
    assert plan.base_sizes == mmdora.inject(mmdora.load(tiny_llava)[0], {"vision": {"method": "dora"}}).base_sizes


def test_files_that_bitsandbytes_quantised_load_train_and_say_so(tiny_llava, tmp_path):
    model, _ = mmdora.load(tiny_llava, quantize="nf4")
    quantize.saved_settings(model)
    model.save_pretrained(tmp_path)
    for path in Path(tiny_llava).iterdir():
        if not (tmp_path / path.name).exists():
            shutil.copyfile(path, tmp_path / path.name)
    again, _ = mmdora.load(tmp_path)
    assert forms(again) == forms(model) == forms(skeleton(str(tmp_path)))
    ids = {"input_ids": torch.arange(5, 20)[None]}
    with torch.no_grad():
        torch.testing.assert_close(again(**ids).logits, model(**ids).logits)
    mmdora.inject(again, {"language": {"method": "dora"}})
    again(**ids, labels=ids["input_ids"]).loss.backward()
    plain, _ = mmdora.load(tmp_path, dequantize=True)
    assert not forms(plain) and not hasattr(plain.config, "quantization_config")
    with torch.no_grad():
        torch.testing.assert_close(plain(**ids).logits, model(**ids).logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(MmdoraError, match="its files are quantised already"):
        mmdora.load(tmp_path, quantize="nf4")


@pytest.mark.parametrize(("stored", "asked"), [("bf16", "fp32"), ("fp32", "bf16")])
def test_packed_files_are_read_in_the_dtype_that_is_asked_for(stored: str, asked: str, tiny_llava: str, tmp_path: Path):
    model, processor = mmdora.load(tiny_llava, quantize="nf4", dtype=stored)
    quantize.saved_settings(model)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for dequantize in (False, True):
        again, _ = mmdora.load(tmp_path, dtype=asked, dequantize=dequantize)
        assert {p.dtype for p in again.parameters() if p.is_floating_point()} == {DTYPES[asked]}
        with torch.no_grad():
            picture = torch.zeros(1, 3, 64, 64, dtype=DTYPES[asked])
            again(input_ids=torch.tensor([[1, *[3] * 64, 5, 6]]), pixel_values=picture)


def named(tiny_llava: str, folder: Path, **own: object) -> Path:
    """A copy of the base whose config says that its weights are quantised in some way."""
    shutil.copytree(tiny_llava, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": own}))
    return folder


@pytest.mark.parametrize(
    ("method", "way"),
    [
        ("gptq", "load the checkpoint that it was made from"),
        ("fp8", "model.dequantize: true"),
        ("awq", "nf4"),
        ("torchao", "nf4"),
        ("compressed-tensors", "nf4"),
    ],
)
def test_other_formats_are_refused_in_one_line(tiny_llava, tmp_path, method, way):
    folder = named(tiny_llava, tmp_path / method, quant_method=method, bits=4)
    with pytest.raises(MmdoraError, match=f"quantised by {method}, which adapters cannot be put on") as told:
        mmdora.load(folder)
    assert way in str(told.value) and "\n" not in str(told.value)


def test_what_is_missing_or_does_not_fit_is_said(tiny_llava, monkeypatch):
    with pytest.raises(MmdoraError, match="quantize: type"):
        mmdora.load(tiny_llava, quantize="nf5")
    with pytest.raises(MmdoraError, match="dequantize: its files are not quantised"):
        mmdora.load(tiny_llava, dequantize=True)
    monkeypatch.setattr(quantize, "find_spec", lambda name: None)
    with pytest.raises(MmdoraError, match=r"pip install 'mmdora\[quantize\]'"):
        mmdora.load(tiny_llava, quantize="nf4")
