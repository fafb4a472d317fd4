"""A stream gives each row once in a pass, shuffled, to one process; and holds few rows."""

import json
import re
import shutil
from functools import partial
from itertools import chain, islice
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile
from peak_memory import anonymous
from transformers import AutoProcessor

from mmdora.batches.fit import fit
from mmdora.batches.shards import Shards, rows_of
from mmdora.batches.stream import Stream, StreamBatches, admit
from mmdora.config import Data, RunConfig, validate
from mmdora.data_prep import messages
from mmdora.errors import MmdoraError
from mmdora.families import family_of
from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.run import prepare
from mmdora.records.reader import read_records
from mmdora.records.row import changed

MEMORY = 20e6  # bytes


@pytest.fixture
def shards(scene_records: Path, tmp_path: Path) -> Path:
    """The records in three files of unequal length, beside none of their images."""
    lines = scene_records.read_text().splitlines(keepends=True)
    for number, (start, end) in enumerate([(0, 9), (9, 17), (17, 23)]):
        (tmp_path / f"{number}.jsonl").write_text("".join(lines[start:end]))
    return tmp_path


@pytest.fixture(scope="module")
def processor(tiny_llava):
    return AutoProcessor.from_pretrained(tiny_llava)


def stream(place, images=None, *, buffer=5, seed=1, process=0, processes=1, admit=lambda row: row) -> Stream:
    return Stream(Shards(place, images), admit, buffer=buffer, seed=seed, process=process, processes=processes)


def ids(rows) -> list[str]:
    return [row["id"] for row in rows]


def test_a_pass_is_a_permutation_and_the_next_is_another(shards):
    in_file = ids(rows_of(Shards(shards).files, shards, None))
    one = stream(shards)
    first, second = ids(one.one_pass(0)), ids(one.one_pass(1))
    assert len(in_file) == 23 and sorted(first) == sorted(second) == sorted(in_file)
    assert first != in_file and second != first
    assert ids(islice(stream(shards), 46)) == first + second  # the end of one pass is the beginning of the next
    assert ids(stream(shards, seed=2).one_pass(0)) != first


@pytest.mark.parametrize("processes", [2, 3])  # three files are split by rows, and by files
def test_processes_share_a_pass(shards, processes):
    shares = [stream(shards, process=n, processes=processes) for n in range(processes)]
    for number in (0, 1):
        parts = [ids(share.one_pass(number)) for share in shares]
        assert sorted(chain(*parts)) == sorted(ids(rows_of(Shards(shards).files, shards, None)))
        assert all(len(part) >= 6 for part in parts)


def test_batches_of_a_process(shards):
    """Rows in turn, none for the places of other processes, for as many rounds as were asked for."""
    share = stream(shards, process=1, processes=2)
    batches = StreamBatches(share, size=4, rounds=5, remembered=2)
    found = list(batches)
    assert len(found) == len(batches) == 10 and not any(found[::2])
    assert ids(chain(*found)) == ids(islice(share, 20))
    assert batches.ids == {3: ids(found[7]), 4: ids(found[9])}


@pytest.mark.parametrize("place", ["", "1.jsonl", "[01].jsonl"])
def test_places(shards, place):
    names = {"": ["0", "1", "2"], "1.jsonl": ["1"], "[01].jsonl": ["0", "1"]}[place]
    assert [Path(name).stem for name in Shards(shards / place).files] == names
    assert Shards(shards / place).root == shards


def test_the_fingerprint_is_of_names_sizes_and_content(shards):
    before = Shards(shards).fingerprint
    text = (shards / "0.jsonl").read_text()
    (shards / "0.jsonl").write_text(text.replace("scene-0", "scene-X"))
    changed = Shards(shards).fingerprint
    (shards / "0.jsonl").rename(shards / "3.jsonl")
    assert len({before, changed, Shards(shards).fingerprint}) == 3


@pytest.mark.parametrize("policy", ["drop", "shrink"])
def test_the_limit_is_that_of_fit(scene_records, processor, policy):
    data = Data(max_length=120, too_long=policy)
    take = partial(admit, family=family_of(processor), data=data, apart=())
    ours = {row["id"]: row["messages"] for row in stream(scene_records, admit=take).one_pass(0)}
    rows = fit(read_records(scene_records), family_of(processor), data.max_length, policy)
    assert rows.dropped or rows.shrunk
    assert ours == {rows[i]["id"]: rows[i]["messages"] for i in range(len(rows))}


def test_packed_records(scene_records, tmp_path):
    shutil.copytree(scene_records.parent, tmp_path / "files")
    inputs = ImageInputs(files=[tmp_path / "files/records.jsonl"], images=tmp_path / "files", pack=True, split="train")
    prepare(messages.DATASET, tmp_path / "packed", inputs)
    whole = {row["id"]: row for row in read_records(tmp_path / "packed/train.parquet")}
    found = {row["id"]: row for row in stream(tmp_path / "packed/train.parquet").one_pass(0)}
    assert found == whole
    for name, row in found.items():
        assert all(image.data is not None for image in row["images"])
        assert [image.data for image in row["images"]] == [image.data for image in whole[name]["images"]]


def test_files_of_a_store(shards, monkeypatch):
    """The addresses that a config may name go to fsspec; here one of its own stores answers for them."""

    class File(AbstractBufferedFile):
        def _fetch_range(self, start, end):
            return self.fs.cat_file(self.path, start, end)

    class Store(MemoryFileSystem):
        protocol = "https"
        store, pseudo_dirs = {}, [""]

        @classmethod
        def _strip_protocol(cls, path):
            return super()._strip_protocol(path.removeprefix("https://"))

        def _open(self, path, mode="rb", **options):
            return File(self, path) if mode == "rb" else super()._open(path, mode, **options)

    monkeypatch.setattr(fsspec, "filesystem", {"https": Store()}.__getitem__)
    for file in shards.iterdir():
        Store().pipe(f"https://host/data/{file.name}", file.read_bytes())
    for place in ("https://host/data/*.jsonl", "https://host/data"):
        there = Shards(Path(place), images=shards)  # as a config holds it
        assert [name.partition("host")[2] for name in there.files] == [f"/data/{n}.jsonl" for n in range(3)]
        assert ids(rows_of(there.files, there.root, None)) == ids(rows_of(Shards(shards).files, shards, None))
    before = there.fingerprint
    Store().pipe("https://host/data/0.jsonl", b"")
    assert Shards(Path(place), images=shards).fingerprint != before
    with pytest.raises(MmdoraError, match=r"set data\.images to the folder"):
        Shards(place)
    with pytest.raises(MmdoraError, match="no file of records for a stream"):
        Shards("https://host/data/*.txt", shards)


def row(**changes) -> dict:
    text = [{"type": "text", "text": "words"}]
    chat = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    return {"id": "a", "messages": chat, "images": []} | changes


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "0.jsonl: holds no records"),
        (json.dumps(row()) + "\n{", "0.jsonl:2: "),
        (json.dumps(row()) + "\n\n" + json.dumps(row(images=["x.png"])), "0.jsonl:3: 0 image parts for 1 images"),
        (
            json.dumps(row(messages=[{"role": "user", "content": []}, {"role": "assistant", "content": []}])),
            "0.jsonl:1: an empty last answer",
        ),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_where_it_comes(tmp_path, text, problem):
    (tmp_path / "0.jsonl").write_text(text)
    shards = Shards(tmp_path)
    with pytest.raises(MmdoraError, match=re.escape(problem)) as raised:
        shards.check()
        list(rows_of(shards.files, shards.root, None))
    assert "\n" not in str(raised.value)


def test_places_that_are_refused(tmp_path):
    for name in ("a/x.jsonl", "b/y.jsonl", "c/z.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps(row()))
    refused = {
        tmp_path: "no file of records for a stream",
        tmp_path / "none.jsonl": "no such file of records",
        tmp_path / "*.parquet": "no file of records for a stream",
        tmp_path / "c/z.json": "a stream reads .jsonl and .parquet",
        tmp_path / "*/*.jsonl": "set data.images to the folder",
        Path("s3://bucket/x.jsonl"): "no such file of records",
        Path("/dev/zero"): "not a regular file",
    }
    for place, problem in refused.items():
        with pytest.raises(MmdoraError, match=problem):
            Shards(place)


def test_rows_that_are_refused(scene_records, processor):
    first = next(iter(read_records(scene_records)))
    take = partial(admit, family=family_of(processor))
    with pytest.raises(MmdoraError, match="the stream holds its record 'scene-0' too"):
        take(first, data=Data(), apart={"scene-0"})
    piece = changed(first, id="scene-0#1")
    assert take(piece, data=Data(), apart={"scene-0"}) is piece  # an id like any other, where nothing was cut
    with pytest.raises(MmdoraError, match="its record 'scene-0#1' too"):
        take(piece, data=Data(max_turns=1), apart={"scene-0"})
    with pytest.raises(MmdoraError, match=r"record scene-0 is over data.max_length 20 \(\d+ tokens\); raise it"):
        take(first, data=Data(max_length=20), apart=())
    with pytest.raises(MmdoraError, match="with its first turn alone"):
        take(first, data=Data(max_length=20, too_long="shrink"), apart=())
    with pytest.raises(MmdoraError, match="holds no row to learn"):
        next(iter(stream(scene_records, admit=partial(take, data=Data(max_length=9, too_long="drop"), apart=()))))
    with pytest.raises(MmdoraError, match="the text '<image>' holds the image placeholder"):
        asks = [{"role": "user", "content": [{"type": "text", "text": "<image>"}]}]
        take(changed(first, messages=asks), data=Data(), apart=())


@pytest.mark.parametrize(
    ("data", "training", "problem"),
    [
        ({"packing": True, "max_length": 99}, {"steps": 1}, "packing needs the lengths"),
        ({"group_by_length": True}, {"steps": 1}, "group_by_length needs the lengths"),
        ({}, {}, "data.stream needs training.steps"),
        ({}, {"steps": 1, "find_batch_size": True}, "find_batch_size reads rows again"),
        ({"stream": False, "shuffle_buffer": 9}, {"steps": 1}, "shuffle_buffer is for stream"),
    ],
)
def test_settings_that_no_stream_can_keep(data, training, problem):
    tree = {"data": {"train": "x.jsonl", "stream": True} | data, "training": training}
    with pytest.raises(MmdoraError, match=problem):
        validate(RunConfig, tree, where=lambda key: "test")


def test_few_rows_are_held(tmp_path):
    """20,000 rows, 60 MB of text, take no more memory than 1,000."""
    with (tmp_path / "rows.jsonl").open("w") as file:
        file.writelines(json.dumps(row(id=f"{number:0>3000}")) + "\n" for number in range(20_000))
    rows = iter(stream(tmp_path / "rows.jsonl", buffer=100))
    assert len(list(islice(rows, 1000))) == 1000
    before = anonymous()
    grown = [anonymous() - before for number, _ in enumerate(islice(rows, 20_000)) if number % 1000 == 0]
    assert len(grown) == 20 and max(grown) < MEMORY
