"""Conversations: LLaVA-Instruct, ShareGPT, the hub's messages and images."""

import json
from pathlib import Path

import datasets
import pytest
from kept_records import records_in

from mmdora.data_prep import llava, messages, sharegpt
from mmdora.errors import MmdoraError
from mmdora.prepare.inputs import ImageInputs
from mmdora.prepare.run import prepare

IMAGE = {"type": "image"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def turns(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]


def test_llava_mix(official, picture, tmp_path):
    root = picture("coco/train2017/000000033471.jpg").parents[2]
    rows = [
        {"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
         "conversations": turns("<image>\nWhat colours has the bus?", "White.", "Und auf Deutsch? 🚌", "Weiß.")},
        {"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
         "conversations": turns("Where is it?\n<image>", "In a street.")},
        {"id": "wgByO4Y_0", "model": "", "conversations": turns("Write a poem.", "Roses are red.")},
        {"id": 17, "image": "coco/train2017/000000033471.jpg", "conversations": turns("no mark", "x")},
    ]  # fmt: skip
    file = official("llava_v1_5_mix665k.json", rows)
    assert prepare(llava.DATASET, tmp_path / "out", ImageInputs(files=[file], images=root)) == {"train": 4}
    first, second, poem, unmarked = records_in(tmp_path / "out/train.jsonl", root)
    assert first["messages"][0]["content"] == [IMAGE, text("What colours has the bus?")]
    assert [m["role"] for m in first["messages"]] == ["user", "assistant"] * 2
    assert first["messages"][2]["content"] == [text("Und auf Deutsch? 🚌")]
    assert second["messages"][0]["content"] == [text("Where is it?"), IMAGE]
    assert poem["images"] == [] and poem["meta"] == {"id": "wgByO4Y_0"}
    assert unmarked["id"] == "17" and unmarked["meta"] == {"id": 17}
    card = json.loads((tmp_path / "out/dataset_card.json").read_text())["splits"]["train"]
    assert (card["duplicate_ids"], card["text_only"], card["turns"]) == (1, 1, {"1": 3, "2": 1})


def test_llava_oddities(official, picture, tmp_path, records_of):
    root = picture("a.jpg").parent
    (root / "empty.jpg").touch()
    (root / "words.jpg").write_text("<svg/>")
    good = {"id": "g", "image": "a.jpg", "conversations": turns("<image>", "x")}
    names = ["empty.jpg", "words.jpg", "gone.jpg", "../x.jpg", "/etc/passwd", "http://169.254.169.254/x", 3]
    rows = [good, *({"id": name, "image": name, "conversations": turns("<image>", "x")} for name in names)]
    rows += [
        {"id": "marks", "conversations": turns("<image> twice <image>", "x")},
        {"id": "who", "conversations": [{"from": "dog", "value": "x"}]},
        {"id": "list", "conversations": [{"from": "human", "value": ["x"]}]},
        {"id": "open", "conversations": turns("nobody answers")},
        {"id": "half \ud83d", "conversations": turns("q", "half a pair \ud83d")},
        {"id": "none"},
        "text",
    ]
    file = official("llava.jsonl", rows, lines=True)
    file.write_text(file.read_text() + '{"id": "cut", "conver')
    prepare(llava.DATASET, tmp_path / "out", ImageInputs(files=[file], images=root, skip_bad=True))
    bad = records_of(tmp_path / "out/bad_rows.jsonl")
    assert [row["line"] for row in bad] == list(range(2, 17))
    words = ["empty", "not an image", "no such file", "outside", "relative to", "URLs", "not int", "2 <image> marks",
             "'from'", "'from'", "no assistant", "surrogate", "conversations", "kind", "broken JSON"]  # fmt: skip
    for row, word in zip(bad, words, strict=True):
        assert word in row["reason"], (word, row["reason"])
    assert len(records_in(tmp_path / "out/train.jsonl", root)) == 1


def test_llava_images_need_a_root(official, tmp_path):
    file = official("l.json", [{"id": 1, "image": "a.jpg", "conversations": turns("<image>", "x")}])
    with pytest.raises(MmdoraError, match=r"l\.json:1: image 'a\.jpg': give the root .*--images"):
        prepare(llava.DATASET, tmp_path / "out", ImageInputs(files=[file]))


def test_sharegpt(official, picture, tmp_path):
    root = picture("1.jpg").parent
    picture("2.jpg")
    rows = [
        {"conversations": turns("<image>and <image>: which?", "The left."), "images": ["1.jpg", "2.jpg"],
         "system": "Be brief."},
        {"messages": [{"role": "user", "content": "<image>Who?"}, {"role": "assistant", "content": "Kane."}],
         "images": ["1.jpg"]},
        {"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": "{}"}], "tools": "[]"},
    ]  # fmt: skip
    file = official("mllm_demo.json", rows)
    inputs = ImageInputs(files=[file], images=root, skip_bad=True)
    assert prepare(sharegpt.DATASET, tmp_path / "out", inputs) == {"train": 2}
    both, who = records_in(tmp_path / "out/train.jsonl", root)
    assert both["messages"][0] == {"role": "system", "content": [text("Be brief.")]}
    assert both["messages"][1]["content"] == [IMAGE, text("and"), IMAGE, text(": which?")]
    assert both["images"] == ["1.jpg", "2.jpg"] and both["id"] == "mllm_demo-0" and who["id"] == "mllm_demo-1"


CHAT = [
    {"role": "user", "content": [IMAGE, text("What is it?")]},
    {"role": "assistant", "content": [text("A cat.")]},
]


def hub_folder(tmp_path: Path, picture) -> Path:
    """A dataset as `push_to_hub` lays it out, written by `datasets` itself."""
    one, two = picture("one.png", "PNG"), picture("two.jpg")
    parts = {"type": datasets.Value("string"), "text": datasets.Value("string")}
    features = datasets.Features(
        {
            "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.List(parts)}),
            "images": datasets.List(datasets.Image()),
        }
    )
    (tmp_path / "hub/data").mkdir(parents=True)
    for split, files in (("train", [one, two]), ("test", [two])):
        rows = [{"messages": CHAT, "images": [{"bytes": file.read_bytes(), "path": file.name}]} for file in files]
        table = datasets.Dataset.from_list(rows, features=features)
        table.to_parquet(tmp_path / f"hub/data/{split}-00000-of-00001.parquet")
    (tmp_path / "hub/README.md").write_text("---\nlicense: mit\n---\n")
    return tmp_path / "hub"


def test_messages_of_the_hub_with_images_inside(picture, tmp_path):
    folder = hub_folder(tmp_path, picture)
    assert prepare(messages.DATASET, tmp_path / "out", ImageInputs(files=[folder])) == {"test": 1, "train": 2}
    first, second = records_in(tmp_path / "out/train.jsonl")
    assert first["messages"] == CHAT  # the `text: None` that datasets adds to image parts is gone
    for record, name in ((first, "one.png"), (second, "two.jpg")):
        kept = tmp_path / "out" / record["images"][0]
        assert kept.read_bytes() == (tmp_path / "images" / name).read_bytes() and kept.suffix == Path(name).suffix
    (test,) = records_in(tmp_path / "out/test.jsonl")
    assert test["images"] == second["images"]  # one file for equal pictures


def test_messages_with_paths_and_plain_content(official, picture, tmp_path):
    root = picture("a.jpg").parent
    rows = [
        {"id": "x", "messages": [{"role": "system", "content": "Brief."}, {"role": "user", "content": "Who?"},
                                 {"role": "assistant", "content": "Ada."}], "images": ["a.jpg"]},
        {"messages": [{"role": "user", "content": "<image>Who?"}, {"role": "assistant", "content": "Ada."}],
         "image": {"path": "a.jpg", "bytes": None}},
        {"messages": [{"role": "user", "content": [{"type": "audio", "text": None}]}, CHAT[1]]},
        {"messages": [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "x"}]},
    ]  # fmt: skip
    folder = official("train.jsonl", rows, lines=True)
    inputs = ImageInputs(files=[folder], images=root, skip_bad=True)
    assert prepare(messages.DATASET, tmp_path / "out", inputs) == {"train": 2}
    system, marked = records_in(tmp_path / "out/train.jsonl", root)
    assert system["messages"][1]["content"] == [IMAGE, text("Who?")] == marked["messages"][0]["content"]
    reasons = (tmp_path / "out/bad_rows.jsonl").read_text()
    assert "'audio'" in reasons and "needs a role" in reasons


def test_messages_never_leave_the_folder(picture, tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    outside = tmp_path / "secret.jsonl"
    outside.write_text(json.dumps({"messages": CHAT, "images": []}))
    (folder / "train.jsonl").symlink_to(outside)
    with pytest.raises(MmdoraError, match="outside"):
        prepare(messages.DATASET, tmp_path / "out", ImageInputs(files=[folder]))
    with pytest.raises(MmdoraError, match=r"no \.parquet"):
        empty = tmp_path / "empty"
        empty.mkdir()
        prepare(messages.DATASET, tmp_path / "out", ImageInputs(files=[empty]))


@pytest.fixture
def clips(picture, tmp_path):
    """A root with two folders of frames and the file of a video, which is not opened."""
    for name in ("clips/a/0.png", "clips/a/1.png", "clips/b/0.png"):
        picture(name)
    root = picture("p.jpg").parent
    (root / "c.mp4").write_bytes(b"a video")
    return root


VIDEO = {"type": "video"}


def test_videos_of_three_layouts(official, clips, tmp_path):
    said = turns("<image>\nWhat happens?", "Rain.")
    rows = {
        llava: [
            {"id": "marked as a picture", "video": "clips/a", "conversations": said},
            {"id": "marked", "video": "c.mp4", "conversations": turns("What?\n<video>", "Rain.")},
            {"id": "unmarked", "video": "clips/b", "conversations": turns("What?", "Rain.")},
            {"id": "both", "video": "clips/a", "image": "p.jpg", "conversations": turns("<image> or <video>?", "x")},
        ],
        sharegpt: [{"videos": ["clips/a", "clips/b"], "conversations": turns("<video> or <video>?", "The first.")}],
        messages: [
            {"messages": [{"role": "user", "content": "<video>What?"}, CHAT[1]], "videos": ["clips/a"]},
            {"messages": [{"role": "user", "content": [{**VIDEO, "video": str(clips / "clips/a"), "frames": 4, "fps": 2,
                                                        "text": None}, text("What?")]}, CHAT[1]]},
        ],
    }  # fmt: skip
    made = {}
    for module, given in rows.items():
        name = module.DATASET.name
        file = official("train.json", given)
        prepare(module.DATASET, tmp_path / name, ImageInputs(files=[file], images=clips))
        made[name] = [(row["videos"], row["messages"][0]["content"]) for row in
                      map(json.loads, (tmp_path / name / "train.jsonl").read_text().splitlines())]  # fmt: skip
        records_in(tmp_path / name / "train.jsonl", clips)
    assert made == {
        "llava": [
            (["clips/a"], [VIDEO, text("What happens?")]),
            (["c.mp4"], [text("What?"), VIDEO]),
            (["clips/b"], [VIDEO, text("What?")]),
            (["clips/a"], [IMAGE, text("or"), VIDEO, text("?")]),
        ],
        "sharegpt": [(["clips/a", "clips/b"], [VIDEO, text("or"), VIDEO, text("?")])],
        "messages": [
            (["clips/a"], [VIDEO, text("What?")]),
            (["clips/a"], [{**VIDEO, "frames": 4, "fps": 2}, text("What?")]),
        ],
    }


def test_videos_that_cannot_be_used(official, clips, tmp_path):
    (clips / "none").mkdir()
    rows = [{"id": name, "video": name, "conversations": turns("What?", "Rain.")}
            for name in ("gone.mp4", "../clips", "none", "http://169.254.169.254/x", 3)]  # fmt: skip
    rows += [{"id": "good", "video": "clips/a", "conversations": turns("What?", "Rain.")}]
    rows += [{"id": "two", "video": ["clips/a", "clips/b"], "conversations": turns("What?", "Rain.")}]
    file = official("rows.json", rows)
    inputs = ImageInputs(files=[file], images=clips, skip_bad=True)
    assert prepare(llava.DATASET, tmp_path / "out", inputs) == {"train": 1}
    reasons = (tmp_path / "out/bad_rows.jsonl").read_text()
    for said in ("no such file", "leads outside", "without frames", "URLs are not fetched", "'video' must be a path"):
        assert said in reasons
    assert "0 <video> marks for 2 videos" in reasons
    with pytest.raises(MmdoraError, match="--pack puts pictures only"):
        prepare(llava.DATASET, tmp_path / "packed", ImageInputs(files=[official("good.json", rows[5:6])], images=clips,
                                                               pack=True))  # fmt: skip
