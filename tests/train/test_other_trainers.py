"""An injected model under other people's trainers: transformers' `Trainer`, and TRL's for answers and for preferences.

TRL is an extra: `make test-trl` installs it. Without it, its tests are skipped.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

import mmdora
from mmdora.families import family_of
from mmdora.records.images import FileRef, open_image
from mmdora.records.reader import read_records, write_records

ADAPT = {
    "vision": {"method": "dora", "rank": 2, "targets": ["attention"]},
    "projector": {"method": "full"},
    "language": {"method": "dora", "rank": 4, "targets": ["attention"]},
}
ANSWER = "seven purple elephants"
STEPS: dict[str, Any] = {
    "max_steps": 3,
    "per_device_train_batch_size": 6,  # all rows, so that the losses of steps are comparable
    "learning_rate": 5e-3,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "report_to": [],
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,  # TRL's default is True, and then policy and reference differ by bf16's rounding.
    "remove_unused_columns": False,
}


@pytest.fixture
def adapted() -> tuple[Any, Any]:
    torch.manual_seed(0)
    model, processor = mmdora.load("tiny-llava")
    mmdora.inject(model, ADAPT, keep_base=True)
    return model, processor


def check_trained(model: Any, processor: Any, folder: Path, picture: Any) -> None:
    """The adapter has learned, is saved and read back, and the base below it is untouched."""
    before = mmdora.load("tiny-llava")[0].state_dict()
    answered = mmdora.generate(model.eval(), processor, picture, "What is this?", max_new_tokens=8)
    mmdora.save_adapter(model, folder / "adapter")
    again, _ = mmdora.load(folder / "adapter")
    assert mmdora.generate(again, processor, picture, "What is this?", max_new_tokens=8) == answered
    moved = [module for module in model.modules() if getattr(module, "lora_B", None) is not None]
    assert moved and all(module.lora_B.abs().max() > 0 for module in moved)
    with mmdora.disable(model):
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def say(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


def chats(scene_records: Path) -> list[dict[str, Any]]:
    """Questions about drawn scenes, as TRL names them, with an answer that the base would not give."""
    rows = [json.loads(line) for line in scene_records.read_text().splitlines()[:6]]
    return [
        {
            "prompt": row["messages"][:1],
            "completion": say(ANSWER),
            "images": [open_image(FileRef(name, scene_records.parent)) for name in row["images"]],
        }
        for row in rows
        if row["images"]
    ]


def test_under_the_stock_trainer(adapted, scene_records, tmp_path):
    model, processor = adapted
    rows = [json.loads(line) for line in scene_records.read_text().splitlines()[:6]]
    write_records(
        scene_records.with_name("odd.jsonl"), [r | {"messages": [r["messages"][0], *say(ANSWER)]} for r in rows]
    )
    rows: Any = read_records(scene_records.with_name("odd.jsonl"))
    arguments = TrainingArguments(tmp_path, **STEPS)
    trainer = Trainer(model, arguments, data_collator=family_of(processor).batch, train_dataset=rows)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]
    check_trained(model, processor, tmp_path, open_image(rows[0]["images"][0]))


def test_under_trls_sft_trainer(adapted, scene_records, tmp_path):
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    (model, processor), rows = adapted, chats(scene_records)
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(str(tmp_path), max_length=None, **STEPS),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=processor,
    )
    batch = trainer.data_collator([dict(row) for row in rows[:2]])
    learned = processor.tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100])
    assert ANSWER in learned and rows[0]["prompt"][0]["content"][-1]["text"] not in learned
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]
    check_trained(model, processor, tmp_path, rows[0]["images"][0])


def test_under_trls_dpo_trainer_with_the_adapter_off_as_the_reference(adapted, scene_records, tmp_path):
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    (model, processor), pairs = adapted, []
    for row in chats(scene_records):
        both = {"chosen": row["completion"], "rejected": say("a red circle")}
        pairs.append({"prompt": row["prompt"], **both, "images": row["images"]})
    trainer = trl.DPOTrainer(
        model=model,
        ref_model=mmdora.reference(model),
        args=trl.DPOConfig(str(tmp_path), max_length=None, **STEPS),
        train_dataset=datasets.Dataset.from_list(pairs),
        processing_class=processor,
    )
    trainer.train()
    # Before the first step policy and reference are the same function, so its loss is that of a coin.
    assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-5)
    margins = [entry["rewards/margins"] for entry in trainer.state.log_history if "rewards/margins" in entry]
    assert margins[0] == pytest.approx(0, abs=1e-5) and margins[-1] > 0.01
    check_trained(model, processor, tmp_path, pairs[0]["images"][0])
    with torch.no_grad():
        inputs = family_of(processor).batch([read_records(scene_records)[0]])
        base, _ = mmdora.load("tiny-llava")
        assert torch.equal(trainer.ref_model(**inputs).logits, base(**inputs).logits)
