"""An export is compared with what was trained: each mistake is caught, and nothing is left of it."""

import dataclasses
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import DORA, moved_adapter, refuse_disk, run_folder
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

import mmdora
import mmdora.export.run as room
from mmdora.adapt.inject import adapted_modules
from mmdora.adapter_files import adapters
from mmdora.errors import MmdoraError
from mmdora.export import merge_disk, merge_memory, parity
from mmdora.export.logits import Outputs, outputs_of
from mmdora.export.merge_disk import DiskMerge
from mmdora.export.run import Parity, TensorParity, export
from mmdora.families import ask
from mmdora.models.locate import resolve
from mmdora.records.reader import read_records
from mmdora.records.row import Row

NAN = float("nan")


@pytest.fixture(scope="module")
def adapter(tiny_llava, tmp_path_factory):
    return moved_adapter(tiny_llava, DORA, tmp_path_factory.mktemp("adapter"))


def test_a_merge_that_forgets_the_magnitudes_is_caught(adapter, tmp_path, monkeypatch, few_rows):
    def forgetful(model):
        with torch.no_grad():
            for module in adapted_modules(model).values():
                if module.magnitude is not None:
                    module.magnitude.copy_(module.row_norm())
                    module.refresh()
        return mmdora.merge(model)

    refuse_disk(monkeypatch)
    monkeypatch.setattr(merge_memory, "merge", forgetful)
    with pytest.raises(MmdoraError, match=r"not the trained one.*max-rel"):
        export(adapter, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", ["logits", "tensors"])
def test_a_merge_from_disk_that_forgets_the_magnitudes_is_caught(adapter, tmp_path, monkeypatch, few_rows, way):
    whole = merge_disk.merged_rows
    monkeypatch.setattr(merge_disk, "merged_rows", lambda w, a, b, m, s: whole(w, a, b, None, s))
    with pytest.raises(MmdoraError, match=r"not the trained ones?; nothing was exported.*max-rel"):
        export(adapter, tmp_path / "out", parity=way)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_lost_a_tensor_is_caught(adapter, tmp_path, monkeypatch, few_rows):
    whole = merge_memory.save_checkpoint

    def lossy(model, folder):
        del model.model.multi_modal_projector.linear_2.bias
        model.model.multi_modal_projector.linear_2.bias = None
        whole(model, folder)

    refuse_disk(monkeypatch)
    monkeypatch.setattr(merge_memory, "save_checkpoint", lossy)
    with pytest.raises(MmdoraError, match=r"does not load: missing keys .*linear_2\.bias"):
        export(adapter, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", ["logits", "tensors"])
def test_a_file_from_disk_that_lost_a_tensor_is_caught(adapter, tmp_path, monkeypatch, few_rows, way):
    whole = DiskMerge.write

    def lossy(self, folder):
        whole(self, folder)
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
        del tensors["multi_modal_projector.linear_2.bias"]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(DiskMerge, "write", lossy)
    with pytest.raises(MmdoraError, match=r"does not load: .*linear_2\.bias"):
        export(adapter, tmp_path / "out", parity=way)
    assert list(tmp_path.iterdir()) == []


def write_rows(folder):
    folder.mkdir()
    Image.new("RGB", (64, 64), "blue").save(folder / "a.png")
    rows = [
        {
            "id": str(i),
            "images": ["a.png"],
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"How many boxes? {i}"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "two"}]},
            ],
        }
        for i in range(11)
    ]
    del rows[1]["messages"][0]["content"][0], rows[1]["images"][0]  # a row of text only
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_parity_is_of_logits_where_the_model_fits(adapter, tmp_path, monkeypatch, few_rows):
    need = 4 * sum(tensor.numel() for tensor in load_file(resolve("tiny-llava") + "/model.safetensors").values())
    lines: list[str] = []
    monkeypatch.setattr(room, "free_memory", lambda: 8 * need)
    assert isinstance(export(adapter, tmp_path / "a", say=lines.append), Parity)
    assert lines[0].startswith("merging from disk: 1 file, 113 tensors: ")
    assert lines[1] == (
        f"comparing logits: the model in fp32 takes {need / 1e6:.1f} MB, "
        f"at most 1/8 of the {8 * need / 1e6:.1f} MB of memory available"
    )
    monkeypatch.setattr(room, "free_memory", lambda: 8 * need - 1)
    monkeypatch.setattr(room, "load", None)  # no model is built
    lines.clear()
    found = export(adapter, tmp_path / "b", say=lines.append)
    assert isinstance(found, TensorParity) and found.beyond <= 1e-6
    assert lines[1].startswith("comparing tensors, not logits: the model in fp32 takes") and "more than 1/8" in lines[1]
    assert "equations in float64" in ModelCard.load(tmp_path / "b/README.md").text
    assert "stock transformers" not in ModelCard.load(tmp_path / "b/README.md").text


def rows_in(data: Path, count: int, images: Path | None = None) -> list[Row]:
    return list(islice(read_records(data / "rows.jsonl", images), count))


def test_rows_ask_for_logits(adapter, tmp_path, monkeypatch):
    write_rows(tmp_path / "data")
    monkeypatch.setattr(room, "free_memory", lambda: 0)
    found = export(adapter, tmp_path / "out", rows=rows_in(tmp_path / "data", 2), say=lambda line: None)
    assert isinstance(found, Parity) and found.rows == 2


def test_a_run_is_compared_on_its_own_data(adapter, tiny_llava, tmp_path, few_rows):
    write_rows(tmp_path / "data")
    run = run_folder(tmp_path / "run", adapter, tiny_llava, train=tmp_path / "data/rows.jsonl")
    found: Any = export(run, tmp_path / "out")
    assert found.rows == 2 and found.source == f"of {tmp_path}/data/rows.jsonl"
    given: Any = export(run, tmp_path / "out2", rows=rows_in(tmp_path / "data", 3))
    assert given.rows == 3
    with pytest.raises(MmdoraError, match="no such file"):
        export(run, tmp_path / "out3", rows=rows_in(tmp_path / "data", 1, tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        *({"max_rel": 8.1e-6}, {"max_rel": NAN}, {"own": NAN}, {"same_text": 0.49}),
        *({"tensors": {"beyond": 1.1e-5}}, {"tensors": {"beyond": NAN}}, {"tensors": {"wrong": ("lm_head.weight",)}}),
    ],
    ids=str,
)
def test_each_bound_can_fail(change):
    good = Parity(7.9e-6, 1e-6, 1.0, 8, "fp32", TensorParity(0.9e-5, 1e-3, 2, 1, "fp32"), 0.5)
    if "tensors" in change:
        change = {"tensors": dataclasses.replace(good.tensors, **change["tensors"])}
    good.check()
    with pytest.raises(MmdoraError, match="nothing was exported"):
        dataclasses.replace(good, **change).check()


def test_top1_counts_every_position_that_is_no_tie_in_the_written_precision():
    want = torch.tensor([[4.0, 3.99, 0.0], [4.0, 3.0, 0.0], [0.0, 4.0, 3.0], [0.0, 1.0, 4.0]])
    got = want.clone()
    got[0, 1], got[1, 1] = 4.01, 4.5  # the best token changes in both
    ids = [torch.tensor([1])]

    def top1(dtype):
        one, other = (Outputs([logits], ids, None) for logits in (want, got))
        return parity._compare(one, other, 1.0, TensorParity(0.0, 0.0, 0, 0, dtype), "").top1

    assert top1("fp32") == 2 / 4
    assert top1("bf16") == pytest.approx(2 / 3)  # 4.00 and 3.99 are one number in bf16


def test_other_token_ids_are_an_error():
    one, other = (Outputs([torch.ones(1, 3)], [torch.tensor([i])], None) for i in (1, 2))
    with pytest.raises(MmdoraError, match="other token ids"):
        parity._compare(one, other, 1.0, TensorParity(0.0, 0.0, 0, 0, "fp32"), "")


def test_an_adapter_is_read_once(adapter, tmp_path, monkeypatch, few_rows):
    """The model to compare with is filled from what the merge from disk has read and checked."""
    read, whole = [], adapters.read_tensors
    monkeypatch.setattr(adapters, "read_tensors", lambda folder: read.append(folder) or whole(folder))
    found = export(adapter, tmp_path / "out", parity="logits")
    assert isinstance(found, Parity) and found.max_rel <= 1e-5
    assert read == [adapter]


def test_logits_of_a_processor_that_names_no_image_token(tiny_llava):
    """Ovis2's has the attribute and None in it; then the logits of all places are compared."""
    model, processor = mmdora.load(tiny_llava)
    asked = [ask("What is this?")]
    (named,) = outputs_of(model, processor, asked, text=False).logits
    processor.image_token_id = None
    (unnamed,) = outputs_of(model, processor, asked, text=False).logits
    assert unnamed.ndim == 2 and torch.equal(unnamed, named)
