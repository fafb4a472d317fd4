"""Packed records give training, evaluation and counting what their pictures as files give."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from mmdora.batches.fit import fit
from mmdora.data_prep import messages
from mmdora.errors import MmdoraError
from mmdora.evaluate.run import evaluate
from mmdora.families import family_of
from mmdora.models.load import load
from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.run import prepare
from mmdora.records import images
from mmdora.records.images import FileRef, image_size, open_image
from mmdora.records.reader import Records, read_records
from mmdora.records.row import Row


@pytest.fixture(scope="module")
def both(scene_records: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Records, Records]:
    """The same records with pictures as files, and packed where these files are out of reach."""
    folder = tmp_path_factory.mktemp("packed")
    shutil.copytree(scene_records.parent, folder / "files")
    inputs = ImageInputs(files=[folder / "files/records.jsonl"], images=folder / "files", pack=True, split="train")
    prepare(messages.DATASET, folder / "packed", inputs)
    shutil.rmtree(folder / "files")
    return read_records(scene_records), read_records(folder / "packed/train.parquet")


def names(row: Row) -> list[str]:
    return [image.name for image in row["images"]]


def test_records_are_the_same(both: tuple[Records, Records]):
    plain, packed = both
    for ours, theirs in zip(packed, plain, strict=True):
        assert ours["messages"] == theirs["messages"] and names(ours) == names(theirs)
        for mine, other in zip(ours["images"], theirs["images"], strict=True):
            assert open_image(mine).tobytes() == open_image(other).tobytes()
    assert packed[3]["images"] == list(packed)[3]["images"] and names(packed[3]) == names(plain[3])
    assert len(pickle.dumps(packed)) < 10_000  # a loader process gets the table's name
    assert pickle.loads(pickle.dumps(packed[0]["images"]))[0].data == packed[0]["images"][0].data


def test_training_rows_are_the_same(both: tuple[Records, Records], tiny_llava: str):
    processor = AutoProcessor.from_pretrained(tiny_llava)
    rows = [fit(records, family_of(processor), 118, "shrink") for records in both]
    assert np.array_equal(rows[0].lengths, rows[1].lengths) and rows[0].shrunk
    plain, packed = (family_of(processor).batch([r[i] for i in range(8)]) for r in rows)
    assert plain.keys() == packed.keys()
    assert all(torch.equal(plain[key], packed[key]) for key in plain)


def test_answers_are_the_same(both: tuple[Records, Records], tiny_llava: str, tmp_path: Path):
    model, processor = load(tiny_llava)
    for name, records in zip(("plain", "packed"), both, strict=True):
        rows = [records[i] for i in range(4)]
        evaluate(model, processor, rows, max_new_tokens=8, out=tmp_path / name)
    plain, packed = ((tmp_path / name / "predictions.jsonl").read_text().splitlines() for name in ("plain", "packed"))
    said = [[json.loads(line)["prediction"] for line in lines] for lines in (plain, packed)]
    assert said[0] == said[1] and any(said[0])


def test_turns_that_are_cut_keep_their_picture(both: tuple[Records, Records]):
    cut = read_records(both[1].path, max_turns=1)
    assert len(cut) > len(both[1])
    assert all(image.data is not None for row in cut for image in row["images"])
    assert image_size(cut[1]["images"][0]) == (64, 64)


def test_a_packed_picture_is_checked_like_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with pytest.raises(MmdoraError, match=r"a/b\.png \(packed\): not an image"):
        open_image(FileRef("a/b.png", data=b"hello"))
    Image.new("RGB", (10, 10)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    assert open_image(FileRef("../../etc/passwd", data=data)).size == (10, 10)  # a name, never a path
    monkeypatch.setattr(images, "MAX_BYTES", 3)
    with pytest.raises(MmdoraError, match="larger than"):
        image_size(FileRef("a.png", data=data))


def test_other_parquet_files_are_refused(both: tuple[Records, Records], tmp_path: Path):
    pq.write_table(pa.table({"id": ["a"], "messages": ["[]"]}), tmp_path / "other.parquet")
    with pytest.raises(MmdoraError, match=r"no column 'images'.*mmdora prep messages"):
        read_records(tmp_path / "other.parquet")
    picture = pa.array([[{"bytes": None, "path": "/etc/passwd"}]], pa.list_(pa.struct(
        [("bytes", pa.binary()), ("path", pa.string())])))  # fmt: skip
    columns = {"id": ["a"], "messages": ["[]"], "images": picture, "meta": ["{}"]}
    pq.write_table(pa.table(columns), tmp_path / "path.parquet")
    with pytest.raises(MmdoraError, match="row 0: an image without its file"):
        read_records(tmp_path / "path.parquet")
    columns["messages"] = ["{"]
    pq.write_table(pa.table(columns), tmp_path / "broken.parquet")
    with pytest.raises(MmdoraError, match="row 0: not as"):
        read_records(tmp_path / "broken.parquet")
    (tmp_path / "cut.parquet").write_bytes(both[1].path.read_bytes()[:-100])
    with pytest.raises(MmdoraError, match=r"cut\.parquet: not a readable Parquet file"):
        read_records(tmp_path / "cut.parquet")
