"""`mmdora.train`, `evaluate`, `compare`, `export` and `generate`, from Python without files of one's own."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tiny_run import held_out_of, same_run, silent, tree_for

import mmdora
from mmdora.errors import MmdoraError
from mmdora.families import ask
from mmdora.predict.answers import generate
from mmdora.records.images import FileRef, open_image
from mmdora.records.reader import read_records

QUESTION = "Is there a circle?"


@pytest.fixture(scope="module")
def rows(scene_records: Path) -> list[dict]:
    """Eight records of one question each, as a program holds them: with pictures that are open."""
    kept = [json.loads(line) for line in scene_records.read_text().splitlines()[:10]]
    for row in kept:
        row["messages"] = row["messages"][:2]
        row["images"] = [open_image(FileRef(name, scene_records.parent)) for name in row["images"]]
    return kept


@pytest.fixture(scope="module")
def run(rows, scene_records, tmp_path_factory) -> Path:
    """A run of two steps on rows in memory."""
    tree = tree_for(scene_records, tmp_path_factory.mktemp("api") / "run", evaluates=False, steps=2, save_every=1)
    del tree["data"]["train"]
    return mmdora.train(tree, rows=rows, say=silent)


def test_importing_mmdora_imports_no_torch_and_every_name_is_there():
    code = "import sys, mmdora; assert 'torch' not in sys.modules and 'transformers' not in sys.modules; print(1)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"
    for name in mmdora.__all__:
        assert getattr(mmdora, name) is not None and (getattr(mmdora, name).__doc__ or name == "__version__")
    for name in ("train", "evaluate", "export"):
        first = next(iter(inspect.signature(getattr(mmdora, name)).parameters))
        assert first == {"train": "config", "evaluate": "model", "export": "source"}[name]


def test_rows_in_memory_train_as_their_file_does(run, rows, scene_records, tmp_path):
    names = [json.loads(line)["images"] for line in scene_records.read_text().splitlines()[:10]]
    file = scene_records.parent / "plain.jsonl"
    file.write_text("".join(json.dumps({**row, "images": n}) + "\n" for row, n in zip(rows, names, strict=True)))
    tree = tree_for(file, tmp_path / "file", evaluates=False, steps=2, save_every=1)
    assert same_run(mmdora.train(tree, say=silent), run)
    kept = read_records(run / "data" / "train.parquet")
    assert [row["id"] for row in kept] == [row["id"] for row in rows]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(MmdoraError, match="holds a run"):
        mmdora.train(path, say=silent)


def test_a_dataset_of_datasets_and_paths_are_rows_too(rows, scene_records, tmp_path):
    import datasets

    pictures = datasets.Dataset.from_list([
        {"image": row["images"][0], "question": QUESTION, "answer": "yes"} for row in rows if row["images"]
    ]).cast_column("image", datasets.Image())  # fmt: skip
    held = [{"image": str(scene_records.parent / "20.png"), "question": QUESTION, "answer": "no"}]
    tree = tree_for(scene_records, tmp_path / "run", steps=1, eval_every=1, save_every=1, accumulation=1)
    tree["data"] = {"max_length": 512}
    run = mmdora.train(tree, rows=pictures, held_out=held, say=silent)
    kept = read_records(run / "data" / "train.parquet")
    assert len(kept) == len(pictures) and kept[0]["messages"][0]["content"][-1]["text"] == QUESTION
    assert open_image(kept[0]["images"][0]).tobytes() == rows[0]["images"][0].tobytes()
    saved = yaml.safe_load((run / "config.yaml").read_text())["data"]
    assert saved["eval"].endswith("held_out.jsonl") and read_records(saved["eval"], saved["images"])[0]["images"]


def test_a_run_on_rows_is_resumed_with_the_same_rows_only(run, rows, scene_records, tmp_path):
    moved = shutil.copytree(run, tmp_path / "run")
    (moved / "complete.json").unlink()
    shutil.rmtree(moved / "checkpoint-2")
    tree = yaml.safe_load((moved / "config.yaml").read_text())
    tree["training"]["output"] = str(moved)
    tree["data"]["train"] = None
    with pytest.raises(MmdoraError, match="rows of the stopped run"):
        mmdora.train(tree, rows=rows[1:], resume=True, say=silent)
    assert same_run(mmdora.train(tree, rows=rows, resume=True, say=silent), run)


@pytest.mark.parametrize(
    ("rows", "data", "match"),
    [
        ([], {}, "there are no rows"),
        ("rows.jsonl", {}, "not str"),
        ([{"question": "a?"}, 3], {}, r"train\[1\]: a row is a dict"),
        ([{"text": "a"}], {}, r"train\[0\]: a row needs messages, or a question; its columns are text"),
        ([{"question": "a?", "image": 3}], {}, r"train\[0\]: a picture is a path, a PIL image or the bytes"),
        ([{"question": "a?", "image": "nowhere.png"}], {}, r"train\[0\]: image 'nowhere.png': no such file"),
        ([{"question": "a?"}], {"train": "other.jsonl"}, "data.train names records too"),
    ],
)
def test_what_is_no_rows_is_one_line(rows, data, match, scene_records, tmp_path):
    tree = tree_for(scene_records, tmp_path / "run", evaluates=False) | {"data": data}
    with pytest.raises(MmdoraError, match=match):
        mmdora.train(tree, rows=rows, say=silent)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_an_unknown_key_of_a_dict_is_told():
    with pytest.raises(MmdoraError, match="did you mean 'training'"):
        mmdora.train({"trainin": {}})


def test_one_model_is_evaluated_on_a_file_on_rows_and_opened(run, rows, scene_records, tmp_path):
    questions = held_out_of(scene_records)
    by_path = mmdora.evaluate(run, questions, out=tmp_path)
    assert by_path.scores is not None and by_path.scores.n == 3
    assert (tmp_path / "exact-held-out-3" / "model" / "metrics.json").is_file()
    in_memory = [
        {"id": row["id"], "image": open_image(row["images"][0]), "question": text(row, 0), "answer": text(row, 1)}
        for row in read_records(questions)
    ]
    opened = mmdora.evaluate(mmdora.load(run), in_memory)
    assert [row["prediction"] for row in opened.rows] == [row["prediction"] for row in by_path.rows]
    assert opened.scores == by_path.scores
    with pytest.raises(MmdoraError, match="these rows are in memory"):
        mmdora.evaluate(run, in_memory, split="test")


def text(row, message: int) -> str:
    return row["messages"][message]["content"][-1]["text"]


def test_models_are_compared_and_so_are_their_results(run, scene_records, tmp_path):
    questions = held_out_of(scene_records)
    compared = mmdora.compare({"base": "tiny-llava", "dora": run}, questions, out=tmp_path)
    assert list(compared.minus_first) == ["dora"] and compared.first == "base"
    kept = json.loads((tmp_path / "exact-held-out-3" / "comparison.json").read_text())
    assert kept["minus first"]["dora"]["difference"] == compared.minus_first["dora"].difference
    again = mmdora.compare({"a": compared.evaluations["base"], "b": compared.evaluations["dora"]})
    assert again.minus_first["b"] == compared.minus_first["dora"]
    assert "minus base" in str(compared) and "minus a" in str(again)
    fewer = replace(compared.evaluations["base"], rows=compared.evaluations["base"].rows[:2])
    with pytest.raises(MmdoraError, match="different questions"):
        mmdora.compare({"a": fewer, "b": compared.evaluations["dora"]})
    with pytest.raises(MmdoraError, match="alone"):
        mmdora.compare({"a": fewer, "b": "tiny-llava"}, questions)


def test_a_question_is_answered_as_in_a_batch(scene_records):
    model, processor = mmdora.load("tiny-llava")
    path = scene_records.parent / "3.png"
    picture = Image.open(path)
    (expected,) = generate(model, processor, [ask(QUESTION, picture.convert("RGB"))])
    for image in (picture, path, str(path), path.read_bytes()):
        assert mmdora.generate(model, processor, image, QUESTION, max_new_tokens=32) == expected
    assert isinstance(mmdora.generate(model, processor, None, "What is a square?", max_new_tokens=3), str)
    sampled = {mmdora.generate(model, processor, picture, QUESTION, temperature=5.0, seed=n) for n in (0, 0, 1)}
    assert len(sampled) == 2
    with pytest.raises(MmdoraError, match="no such file"):
        mmdora.generate(model, processor, path.with_name("none.png"), QUESTION)


def test_export_is_the_function(run, tmp_path, few_rows):
    measured = mmdora.export(run, tmp_path / "out", dtype="bf16", say=silent)
    assert measured is not None and (tmp_path / "out" / "model.safetensors").is_file()


def test_the_tour_in_the_docs_runs_as_written(tmp_path, monkeypatch, few_rows):
    """All Python blocks of the page in their order, in a folder with two photographs and two adapters."""
    page = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 4
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in (1, 2):
        Image.effect_noise((64, 64), 90 * number).convert("RGB").save(f"photos/{number}.jpg")
    known: dict = {}
    for block in blocks:
        for name in ("lora", "dora"):
            if Path("runs/mine/adapter").exists() and not Path("runs", name).exists():
                shutil.copytree("runs/mine/adapter", f"runs/{name}/adapter")
        exec(block.replace('"steps": 20', '"steps": 1'), known)
    assert Path("out/mine/model.safetensors").is_file()
