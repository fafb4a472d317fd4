"""Automatic ranks in a run: chosen on its rows, kept for a resume, the same in the adapter that it writes."""

import json
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny_run import config_of, same_run, silent, tree_for

import mmdora
from mmdora.adapter_files.files import own_plan
from mmdora.errors import MmdoraError
from mmdora.train import train
from mmdora.train.ranks import RANKS, read_ranks
from mmdora.train.steps import Steps

ADAPT: dict[str, Any] = {
    "vision": {"method": "dora", "targets": ["attention"]},
    "projector": {"method": "dora"},
    "language": {"method": "lora", "dropout": 0.1},
    "rank": "auto",
    "budget": "2%",
    "calibration_rows": 4,
}


def auto(records, output, **changed: Any):
    tree = tree_for(records, output, evaluates=False, steps=4, save_every=2, log_every=2)
    return config_of(tree | {"adapt": ADAPT | changed})


@pytest.fixture(scope="module")
def whole(ten_rows, tmp_path_factory):
    said: list[str] = []
    run = train(auto(ten_rows, tmp_path_factory.mktemp("auto") / "run"), say=said.append)
    assert any("adapt.budget 2%, spread by the gradients on rows" in line for line in said)
    return run


def test_the_ranks_of_a_run_spend_its_budget(whole, tiny_llava):
    ranks, plan = read_ranks(whole), own_plan(whole / "adapter")
    base = sum(plan.base_sizes.values())
    spent = sum(entry.parameters for entry in plan.entries)
    assert spent == sum(module["parameters"] for module in ranks.modules.values()) <= int(0.02 * base)
    left = int(0.02 * base) - spent
    shapes = {name: parameter.shape for name, parameter in mmdora.load(tiny_llava)[0].named_parameters()}
    for name, module in ranks.modules.items():
        if module["rank"] < min(module["highest"], sum(value > 0 for value in module["values"])):
            rows, columns = shapes[f"{name}.weight"]
            magnitude = rows if not module["rank"] and module["modality"] != "language" else 0
            assert rows + columns + magnitude > left
    assert {entry.name: entry.rank for entry in plan.entries} == {n: r for n, r in ranks.of_modules.items() if r}
    assert len({entry.rank for entry in plan.entries}) > 2
    assert "adapt.budget 2%" in (whole / "plan.txt").read_text()


def test_peft_loads_the_ranks_and_answers_alike(whole, ten_rows):
    model, processor = mmdora.load(str(whole / "adapter"))
    theirs = PeftModel.from_pretrained(mmdora.load("tiny-llava")[0], str(whole / "adapter")).eval()
    config = json.loads((whole / "adapter" / "adapter_config.json").read_text())
    assert len(set(config["rank_pattern"].values())) > 1
    ids = processor.tokenizer("What color is the circle?", return_tensors="pt")
    with torch.no_grad():
        assert torch.allclose(model.eval()(**ids).logits, theirs(**ids).logits, atol=2e-5)


def test_a_resume_takes_the_ranks_of_the_run(whole, ten_rows, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    for name in ("checkpoint-4", "adapter"):
        shutil.rmtree(run / name)
    (run / "complete.json").unlink()
    resumed = train(auto(ten_rows, run), resume=True, say=silent)
    assert same_run(resumed, whole) and read_ranks(resumed) == read_ranks(whole)
    for name in ("checkpoint-4", "adapter"):
        shutil.rmtree(run / name)
    with pytest.raises(MmdoraError, match=r"ranks in .* were chosen for 2%"):
        train(auto(ten_rows, run, budget="3%"), resume=True, allow_changes=True, say=silent)
    (run / RANKS).unlink()
    with pytest.raises(MmdoraError, match=RANKS):
        train(auto(ten_rows, run), resume=True, say=silent)


def test_the_same_rows_give_the_same_ranks(whole, ten_rows, tmp_path, monkeypatch):
    class Begun(Exception):  # noqa: N818
        pass

    def stop(self):
        raise Begun

    monkeypatch.setattr(Steps, "begin", stop)
    with pytest.raises(Begun):
        train(auto(ten_rows, tmp_path / "run"), say=silent)
    assert read_ranks(tmp_path / "run") == read_ranks(whole)


def test_data_that_cannot_be_measured(ten_rows, tmp_path):
    config = auto(ten_rows, tmp_path / "run")
    streamed = replace(config, data=replace(config.data, stream=True, group_by_length=False))
    with pytest.raises(MmdoraError, match=r"data\.stream cannot"):
        train(streamed, say=silent)


def test_analyze_draws_the_ranks(whole, tmp_path):
    mmdora.analyze(whole, out=tmp_path / "analysis", say=silent)
    assert (tmp_path / "analysis" / "ranks.png").read_bytes().startswith(b"\x89PNG")
    assert "The ranks that the budget was spread over" in (tmp_path / "analysis" / "analysis.html").read_text()
