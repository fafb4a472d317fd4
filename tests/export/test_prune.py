"""The command: an ordinary checkpoint with exact zeros, its record, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from exports import DORA, moved_adapter
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from mmdora.cli import main
from mmdora.errors import MmdoraError
from mmdora.export.prune import RECORD, prune_checkpoint
from mmdora.export.run import export


@pytest.fixture(scope="module")
def half(tiny_llava, scene_records, tmp_path_factory):
    out = tmp_path_factory.mktemp("pruned") / "half"
    command = ["prune", "tiny-llava", str(out), "--data", str(scene_records), "--rows", "4", "--only", "language"]
    assert main([*command, "--only", "vision"]) == 0
    return out


def test_stock_transformers_loads_exact_zeros(half, tiny_llava):
    record = json.loads((half / RECORD).read_text())
    assert (record["base"], record["method"], record["pattern"], record["rows"]) == ("tiny-llava", "wanda", "row", 4)
    model, base = (AutoModelForImageTextToText.from_pretrained(path) for path in (half, tiny_llava))
    pruned, plain = model.state_dict(), base.state_dict()
    assert pruned.keys() == plain.keys()
    for name, tensor in pruned.items():
        module = name.removesuffix(".weight")
        if module in record["zeros"] and module != name:
            assert ((tensor == 0).sum(1) == tensor.shape[1] // 2).all(), name
            assert torch.equal(tensor, plain[name] * (tensor != 0)), name
        else:
            assert torch.equal(tensor, plain[name]), name
    assert {"vision", "language"} == {"vision" if "vision_tower" in name else "language" for name in record["zeros"]}
    assert record["total"] == pytest.approx(0.5)


def test_other_files_are_the_bases(half, tiny_llava):
    for name in ("tokenizer.json", "chat_template.jinja", "preprocessor_config.json", "processor_config.json"):
        if (Path(tiny_llava) / name).is_file():
            assert (half / name).read_bytes() == (Path(tiny_llava) / name).read_bytes()


def test_by_magnitude_two_of_four(tmp_path):
    lines: list[str] = []
    out = tmp_path / "out"
    done = prune_checkpoint("tiny-llava", out, method="magnitude", sparsity=0.5, pattern="2:4", say=lines.append)
    assert done.rows == 0 and lines[0].startswith(f"{out}: 50.00% of the weights of ")
    files = [load_file(path) for path in out.glob("*.safetensors")]
    sparse = [t for file in files for t in file.values() if t.ndim == 2 and not t.shape[1] % 4]
    sparse = [t for t in sparse if ((t.unflatten(1, (-1, 4)) == 0).sum(-1) == 2).all()]
    assert len(sparse) == len(done.zeros)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": "wanda", "sparsity": 0.5}, "add --data ROWS, or use --method magnitude"),
        ({"method": "magnitude", "sparsity": 1.0}, "above 0 and below 1"),
        ({"method": "magnitude", "sparsity": 0.3, "pattern": "2:4"}, "is a sparsity of 0.5, not 0.3"),
    ],
)
def test_options_that_do_not_fit_together(tmp_path, options, told):
    with pytest.raises(MmdoraError, match=told):
        prune_checkpoint("tiny-llava", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_merged_first_and_fills_the_zeros(half, tmp_path):
    adapter = moved_adapter(str(half), DORA, tmp_path / "adapter")
    with pytest.raises(MmdoraError, match="has an adapter; write it into its base first"):
        prune_checkpoint(str(adapter), tmp_path / "out", method="magnitude", sparsity=0.5)
    lines: list[str] = []
    export(adapter, tmp_path / "merged", parity="tensors", say=lines.append)
    assert any("the base is pruned (pruning.json)" in line for line in lines)
    assert not (tmp_path / "merged" / RECORD).exists()
