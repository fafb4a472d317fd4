"""A run on a quantised base: it resumes to the bit, is evaluated as it was trained, and exports to plain weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from tiny_run import config_of, same_run, silent, tree_for
from transformers import AutoModelForImageTextToText

import mmdora
from mmdora.cli import main
from mmdora.errors import MmdoraError
from mmdora.export.run import export
from mmdora.layers import AdaptedQuantizedLinear
from mmdora.layers.dequantize import form_of
from mmdora.train import train
from mmdora.train.steps import Steps

pytest.importorskip("bitsandbytes", reason="pip install 'mmdora[quantize]'")


class StopError(Exception):
    """Ends a run in a test."""


def config(rows: Path, output: Path, **own):
    tree = tree_for(rows, output, evaluates=False, steps=4, save_every=2, gradient_checkpointing=True)
    return config_of(tree | {"model": {"quantize": own or "nf4"}})


@pytest.fixture(scope="module")
def run(ten_rows, tmp_path_factory):
    return train(config(ten_rows, tmp_path_factory.mktemp("runs") / "whole"), say=silent)


def test_a_stopped_run_goes_on_to_the_bit(run, ten_rows, tmp_path, monkeypatch):
    step = Steps.one_pass

    def stopping(self, *args, **kwargs):
        if self.progress.global_step == 3:
            raise StopError
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Steps, "one_pass", stopping)
        with pytest.raises(StopError):
            train(config(ten_rows, tmp_path / "run"), say=silent)
    train(config(ten_rows, tmp_path / "run"), resume=True, say=silent)
    assert same_run(tmp_path / "run", run)


def test_it_is_opened_as_it_was_trained_and_told_apart_from_the_full_precision_base(run):
    model, _ = mmdora.load(run)
    kinds = {type(module) for module in model.modules() if form_of(module)}
    assert AdaptedQuantizedLinear in kinds and len([m for m in model.modules() if form_of(m)]) == 28
    assert json.loads((run / "adapter" / "mmdora.json").read_text())["quantize"]["type"] == "nf4"
    with pytest.warns(UserWarning, match="was trained on nf4 weights and stands on unquantised ones"):
        plain, _ = mmdora.load(run, quantize="none")
    assert not any(form_of(module) for module in plain.modules())


def test_it_merges_into_the_dequantised_weights_and_says_how_far_others_are(run, tmp_path):
    told: list[str] = []
    parity = export(run, tmp_path / "out", dtype="bf16", requantize=True, say=told.append)
    said = "\n".join(told)
    assert parity.tensors.merged > 0 and "trained on nf4 weights, which are dequantised first" in said  # pyright: ignore
    numbers = re.findall(r"(?:written one|not written,|quantised again:) ([\d.e+-]+)", said)
    merged, full, again = map(float, numbers)
    # The merge loses a rounding to bf16. What was not trained on is farther off, and so is what is quantised again.
    assert merged < 2e-2 and full > 3 * merged and again > 0
    packed = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", device_map={"": "cpu"})
    assert len([m for m in packed.modules() if form_of(m)]) == 28


def test_an_export_has_no_trace_of_quantisation(run, tmp_path):
    export(run, tmp_path / "out", dtype="fp32", say=silent)
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    assert not hasattr(merged.config, "quantization_config") and merged.dtype == torch.float32
    trained, _ = mmdora.load(run)
    ids = {"input_ids": torch.arange(5, 30)[None]}
    with torch.no_grad():
        ours, theirs = merged(**ids).logits, trained(**ids).logits
    assert (ours - theirs).abs().max() / theirs.abs().max() < 1e-5


def test_inspect_counts_quantised_bytes(tmp_path, capsys):
    text = "model: {quantize: nf4}\nadapt: {language: {method: dora}}\ndata: {max_length: 256}\n"
    (tmp_path / "q.yaml").write_text(text)
    assert main(["inspect", "tiny-llava", "--config", str(tmp_path / "q.yaml")]) == 0
    shown = capsys.readouterr().out
    assert "nf4" in shown and "frozen weights, nf4 and fp32" in shown
    (tmp_path / "p.yaml").write_text(text.replace("{quantize: nf4}", "{}"))
    assert main(["inspect", "tiny-llava", "--config", str(tmp_path / "p.yaml")]) == 0
    frozen = [re.search(r"frozen weights.*?([\d.]+)\s*$", out, re.M) for out in (shown, capsys.readouterr().out)]
    packed, plain = (float(found[1]) for found in frozen if found)
    # 28 linears of 4 layers hold 1.0 of the 2.2 million values, in 4.1 bits instead of 32.
    assert packed < 0.65 * plain


def test_what_does_not_go_together_is_refused(ten_rows, tmp_path):
    tree = tree_for(ten_rows, tmp_path / "run")
    with pytest.raises(MmdoraError, match="which packed ones cannot be"):
        config_of(tree | {"model": {"quantize": "nf4"}, "adapt": {"language": {"method": "full"}}})
    with pytest.raises(MmdoraError, match="--requantize: this was not trained on a quantised base"):
        export("tiny-llava", tmp_path / "out", requantize=True)
