"""The check of a merge from disk, tensor by tensor: what is wrong is caught."""

import pytest
from merged_bases import NORM, ZEROS, edit, from_disk, tensors
from torch import Tensor

from mmdora.errors import MmdoraError
from mmdora.export import merge_disk
from mmdora.export.merge_disk import DiskMerge
from mmdora.export.tensor_parity import tensor_parity


def forget_magnitudes(monkeypatch):
    whole = merge_disk.merged_rows
    monkeypatch.setattr(merge_disk, "merged_rows", lambda w, a, b, m, s: whole(w, a, b, None, s))


def round_twice(monkeypatch):
    whole = merge_disk.merged_rows
    monkeypatch.setattr(merge_disk, "merged_rows", lambda *parts: (piece.half().bfloat16() for piece in whole(*parts)))


def off_by_a_thousandth(monkeypatch):
    whole = merge_disk.merged_rows
    monkeypatch.setattr(merge_disk, "merged_rows", lambda *parts: (piece * 1.001 for piece in whole(*parts)))


def keep_the_full_part(monkeypatch):
    whole = DiskMerge._values

    def values(self, row):
        replaced = isinstance(row.change, Tensor)
        return iter([self.base.tensors[row.file_name]]) if replaced else whole(self, row)

    monkeypatch.setattr(DiskMerge, "_values", values)


@pytest.mark.parametrize("mistake", [forget_magnitudes, round_twice, off_by_a_thousandth, keep_the_full_part])
def test_a_wrong_merge_is_caught(llava, llava_adapter, tmp_path, monkeypatch, mistake):
    merge = from_disk(llava, llava_adapter, "bf16", tmp_path / "right")
    parity = tensor_parity(merge, tmp_path / "right")
    parity.check()
    assert parity.beyond < 1e-6 and 1e-3 < parity.max_rel < 4e-3
    assert (parity.tensors, parity.merged) == (len(tensors(llava)), 26)
    mistake(monkeypatch)
    merge = from_disk(llava, llava_adapter, "bf16", tmp_path / "wrong")
    monkeypatch.undo()
    with pytest.raises(MmdoraError, match="the merged tensors are not the trained ones"):
        tensor_parity(merge, tmp_path / "wrong").check()


@pytest.mark.parametrize(("name", "value"), [(NORM, 1.01), (NORM, float("nan")), (ZEROS, 1e-4)])
def test_a_copied_tensor_that_changed_is_caught(llava, tmp_path, name, value):
    merge = from_disk(llava, None, "bf16", tmp_path / "disk")
    assert not tensors(llava)[ZEROS].any()
    tensor_parity(merge, tmp_path / "disk").check()
    edit(tmp_path / "disk", lambda t: t[name].fill_(value))
    with pytest.raises(MmdoraError, match="nothing was exported"):
        tensor_parity(merge, tmp_path / "disk").check()


def test_a_lost_tensor_is_caught(llava, tmp_path):
    merge = from_disk(llava, None, "bf16", tmp_path / "disk")
    edit(tmp_path / "disk", lambda t: t.pop(NORM))
    with pytest.raises(MmdoraError, match=r"does not load: no file holds model\.language_model\.norm"):
        tensor_parity(merge, tmp_path / "disk")
