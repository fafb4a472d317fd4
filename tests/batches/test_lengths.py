"""Token counts are paid once: kept beside the records, made anew when anything they depend on changes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from mmdora.batches import lengths
from mmdora.batches.fit import fit
from mmdora.batches.lengths import token_counts
from mmdora.errors import MmdoraError
from mmdora.families import Family, family_of
from mmdora.records.reader import Records, read_records


@pytest.fixture
def processor(tiny_llava):
    return AutoProcessor.from_pretrained(tiny_llava)


@pytest.fixture
def records(scene_records, tmp_path) -> Records:
    """Records that nobody has counted yet."""
    shutil.copy(scene_records, tmp_path / "records.jsonl")
    return read_records(tmp_path / "records.jsonl", scene_records.parent)


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """Grows by the number of records whenever some are counted."""
    calls: list[int] = []

    real = Family.count_tokens

    def counting(self, rows):
        calls.append(len(rows))
        return real(self, rows)

    monkeypatch.setattr(Family, "count_tokens", counting)
    return calls


def kept(records: Records, name: str = "tokens") -> list[Path]:
    return sorted(records.cache.glob(f"{name}-*.npz"))


def test_counts_are_made_once(records, processor, counted):
    first = token_counts(records, family_of(processor))
    assert counted == [len(records)] and len(kept(records)) == 1
    processor.tokenizer(["a", "b b b"], padding=True, truncation=True, max_length=2)  # leaves its mark in the tokenizer
    again = token_counts(read_records(records.path, records.root), family_of(processor))
    assert counted == [len(records)]
    assert again.dtype == np.int32 and np.array_equal(first, again)
    assert np.array_equal(first, family_of(processor).count_tokens(list(records)))


def test_what_a_count_depends_on_makes_it_anew(records, processor, counted, tiny_llava, tmp_path):
    before = token_counts(records, family_of(processor))
    processor.image_processor.size = processor.image_processor.crop_size = {"height": 32, "width": 32}
    fewer = token_counts(records, family_of(processor))
    with_image = records.images > 0
    assert np.array_equal(before - fewer, np.where(with_image, 64 - 16, 0)) and with_image.any()
    processor.chat_template = f"some more words\n{processor.chat_template}"
    assert (token_counts(records, family_of(processor)) > fewer).all()
    other = AutoProcessor.from_pretrained(tiny_llava)
    other.tokenizer.add_tokens(["the"])
    token_counts(records, family_of(other))
    shutil.copytree(records.root, tmp_path / "elsewhere")
    token_counts(read_records(records.path, tmp_path / "elsewhere"), family_of(other))
    assert counted == [len(records)] * 5
    lines = records.path.read_text().splitlines(keepends=True)
    records.path.write_text("".join(lines[1:]))
    assert (
        len(token_counts(read_records(records.path, records.root), family_of(other))) == counted[-1] == len(lines) - 1
    )


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "not an archive", "other rows"])
def test_a_damaged_file_is_counted_anew_and_said(records, processor, counted, harm):
    before = token_counts(records, family_of(processor))
    (file,) = kept(records)
    data = bytearray(file.read_bytes())
    if harm == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif harm == "flipped":
        data[len(data) // 3] ^= 0xFF
        file.write_bytes(data)
    elif harm == "other rows":
        np.savez_compressed(file, values=before[1:])
    else:
        file.write_bytes(b"" if harm == "empty" else b"no numpy here")
    with pytest.warns(UserWarning, match=r"tokens-.*cannot be read \(.*\); it is made again"):
        assert np.array_equal(token_counts(records, family_of(processor)), before)
    assert len(counted) == 2
    assert np.array_equal(token_counts(records, family_of(processor)), before) and len(counted) == 2


def test_worker_processes_count_the_same(records, processor, monkeypatch):
    monkeypatch.setattr(lengths, "CHUNK", 1)
    monkeypatch.setattr(lengths, "usable_cores", lambda: 2)
    here = family_of(processor).count_tokens(list(records))
    state = torch.get_rng_state()
    assert np.array_equal(token_counts(records, family_of(processor)), here)
    assert torch.equal(torch.get_rng_state(), state)  # else a run would depend on whether counts were kept


@pytest.mark.parametrize("cores", [0, 2])
def test_a_record_that_cannot_be_counted_is_named_and_nothing_kept(records, processor, monkeypatch, cores):
    monkeypatch.setattr(lengths, "CHUNK", 1)
    monkeypatch.setattr(lengths, "usable_cores", lambda: cores)
    rows = [json.loads(line) for line in records.path.read_text().splitlines()]
    rows[7]["images"] = ["gone.png"]
    records.path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    changed = read_records(records.path, records.root)
    with pytest.raises(MmdoraError) as caught:
        token_counts(changed, family_of(processor))
    message = str(caught.value)
    assert message.startswith(f"{records.path}: record {rows[7]['id']}: image 'gone.png': no such file")
    assert "\n" not in message and not kept(changed)


def test_an_image_placeholder_in_a_text_names_its_record(records, processor):
    row = records[3]
    row["messages"][0]["content"].append({"type": "text", "text": "<image>"})
    with pytest.raises(MmdoraError, match=f"record {row['id']}: .*placeholder"):
        family_of(processor).count_tokens([row])


def test_shortened_rows_are_kept_per_limit(records, processor, counted):
    long = token_counts(records, family_of(processor))
    limit = int(np.sort(long)[len(long) // 2])
    first = fit(records, family_of(processor), limit, "shrink")
    spent = len(counted)
    again = fit(records, family_of(processor), limit, "shrink")
    assert len(counted) == spent and first.shrunk == again.shrunk == (long > limit).sum() > 0
    assert np.array_equal(first.messages, again.messages) and np.array_equal(first.lengths, again.lengths)
    fit(records, family_of(processor), limit + 8, "shrink")
    assert len(counted) > spent and len(kept(records, "shrunk-*")) == 2


def test_without_a_limit_nothing_is_counted(records, processor, counted):
    rows = fit(records, family_of(processor), None, "error")
    assert not counted
    assert rows.lengths.tolist() == [
        sum(len(p.get("text", "")) for m in r["messages"] for p in m["content"]) for r in records
    ]
    assert rows.has_image.tolist() == [bool(r["images"]) for r in records]
    assert [rows[i] for i in range(len(rows))] == list(records)
    arrays = (rows.index, rows.messages, rows.lengths, rows.has_image)
    assert sum(array.nbytes for array in arrays) <= 13 * len(rows)
