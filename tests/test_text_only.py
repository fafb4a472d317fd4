"""The whole path of language models without a tower: plan, train, pack, resume, evaluate, export, reload, page.

The bases are tiny and random, of the official classes with their real chat templates (`text_bases`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from text_bases import write_base
from tiny_run import config_of, same_run, silent
from transformers import AutoModelForCausalLM, AutoTokenizer, T5Config

import mmdora
from mmdora.demo.columns import load_columns
from mmdora.demo.compare import answer
from mmdora.demo.turns import AnswerSettings, new_turn
from mmdora.errors import MmdoraError
from mmdora.evaluate.run import evaluate
from mmdora.export.run import export
from mmdora.families import Prompt
from mmdora.models.base import skeleton
from mmdora.predict.answers import generate
from mmdora.records.reader import read_records, write_records
from mmdora.records.row import changed
from mmdora.train import overview, train

COLOURS = ("red", "blue", "green")


def conversation(number: int) -> dict[str, Any]:
    texts = [f"Which colour has box {number}?", COLOURS[number % 3], "Are you sure?", "yes, quite"]
    messages = [
        {"role": ("user", "assistant")[place % 2], "content": [{"type": "text", "text": text}]}
        for place, text in enumerate(texts[: 4 if number % 4 == 0 else 2])
    ]
    return {"id": str(number), "messages": messages, "images": [], "meta": {"choices": list(COLOURS)}}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "train.jsonl"
    write_records(path, [conversation(number) for number in range(12)])
    return path


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_base(request.param, tmp_path_factory.mktemp(request.param))


def tree(base: str, records: Path, output: Path, **data: Any) -> dict[str, Any]:
    return {
        "model": {"base": base},
        "adapt": {"language": {"method": "dora", "rank": 4}},
        "data": {"train": str(records), "max_length": 160, **data},
        "training": {"output": str(output), "steps": 4, "batch_size": 4, "lr": 2e-2, "save_every": 2, "log_every": 1},
    }


@pytest.fixture(scope="module")
def run(base: str, records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(config_of(tree(base, records, tmp_path_factory.mktemp("run") / "run")), say=silent)


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(**tokenizer(["Which colour?"], return_tensors="pt")).logits


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return float((a - b).abs().max() / b.abs().max()) <= 1e-5


def test_the_plan_knows_language_alone(base: str, records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = config_of(tree(base, records, tmp_path / "run"))
    overview.show_model(base, config)
    overview.show_batch(config)
    told = capsys.readouterr().out
    assert "frozen weights" in told and "⟦red" in told and "lm_head" in told
    assert mmdora.find_parts(skeleton(base)).vision == mmdora.find_parts(skeleton(base)).projector == ()
    vision = tree(base, records, tmp_path / "run") | {"adapt": {"vision": {"method": "lora"}}}
    with pytest.raises(MmdoraError, match=r"adapt\.vision: \w+ForCausalLM has no vision part; leave it out"):
        overview.show_model(base, config_of(vision))


def test_a_resumed_run_is_the_undisturbed_one(run: Path, base: str, records: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-4", "adapter", "complete.json"))
    lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run/log.jsonl").write_text("".join(lines[:2]))
    resumed = train(config_of(tree(base, records, tmp_path / "run")), resume=True, say=silent)
    assert same_run(run, resumed)


def losses(run: Path) -> list[dict[str, Any]]:
    return [entry for line in (run / "log.jsonl").read_text().splitlines() if "loss" in (entry := json.loads(line))]


def test_packed_rows_are_kept_apart(base: str, records: Path, tmp_path: Path):
    folder = train(config_of(tree(base, records, tmp_path / "packed", packing=True)), say=silent)
    assert len(losses(folder)) == 4  # `check_packing` has compared each row with itself alone.


def test_export_stock_reload_and_peft_give_the_same(run: Path, base: str, records: Path, tmp_path: Path):
    parity = export(run, tmp_path / "out", say=silent)
    assert "logits differ by" in str(parity)
    adapted, tokenizer = mmdora.load(run)
    stock: Any
    words: Any
    stock, words = (kind.from_pretrained(tmp_path / "out") for kind in (AutoModelForCausalLM, AutoTokenizer))
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(run / "adapter"))
    wanted = logits(adapted, tokenizer)
    assert close(logits(stock.eval(), tokenizer), wanted) and close(logits(peft.eval(), tokenizer), wanted)
    assert not close(logits(AutoModelForCausalLM.from_pretrained(base), tokenizer), wanted)
    question = [{"role": "user", "content": "Which colour?"}]
    first, second = (each.apply_chat_template(question, tokenize=False) for each in (words, tokenizer))
    assert first == second
    assert "AutoModelForCausalLM" in (tmp_path / "out/README.md").read_text(encoding="utf-8")


def test_evaluation_generates_or_compares_likelihoods(run: Path, records: Path, tmp_path: Path):
    model, tokenizer = mmdora.load(run)
    rows = [row for row in read_records(records) if len(row["messages"]) == 2]
    by_text = evaluate(model, tokenizer, rows, out=tmp_path / "exact")
    assert by_text.scores is not None and len(by_text.rows) == len(rows)
    places = [COLOURS.index(row["messages"][1]["content"][0]["text"]) for row in rows]
    lettered = [
        changed(row, messages=[row["messages"][0], answered("ABC"[place])])
        for row, place in zip(rows, places, strict=True)
    ]
    scored = evaluate(model, tokenizer, lettered, task="likelihood", out=tmp_path / "likelihood")
    values = [[value for value, _ in json.loads(row["prediction"])] for row in scored.rows]
    right = [max(range(3), key=each.__getitem__) == place for each, place in zip(values, places, strict=True)]
    assert scored.scores is not None and scored.scores.overall.value == pytest.approx(sum(right) / len(right))


def answered(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def test_the_page_answers_without_a_picture(run: Path, base: str):
    columns = load_columns([f"base={base}", f"tuned={run}"], say=silent)
    assert [column.sees for column in columns] == [False, False]
    settings = AnswerSettings(max_tokens=6)
    *_, last = answer(columns, [new_turn(columns, "Which colour?", settings)], [])
    model, tokenizer = mmdora.load(run)
    asked = Prompt([{"role": "user", "content": [{"type": "text", "text": "Which colour?"}]}])
    assert last[1].status == "done" and last[1].text == generate(model, tokenizer, [asked], max_new_tokens=6)[0]
    *_, last = answer(columns, [new_turn(columns, "Which colour?", settings)], [Image.new("RGB", (8, 8))])
    assert {state.error for state in last} == {"this model reads text alone; ask it without a picture"}


def test_other_architectures_are_one_line(tmp_path: Path):
    T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2).save_pretrained(tmp_path)
    with pytest.raises(MmdoraError, match="'t5' is neither an image-text-to-text nor a causal language model") as told:
        mmdora.load(str(tmp_path))
    assert "\n" not in str(told.value) and str(tmp_path) in str(told.value)
