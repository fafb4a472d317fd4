"""Text rows in a run that trains only what images reach."""

from __future__ import annotations

import json
from pathlib import Path

from tiny_run import config_of, first_turns, silent, tree_for

from mmdora.train import train


def test_a_batch_that_reaches_nothing_trained_teaches_nothing(scene_records: Path, tmp_path: Path) -> None:
    records = first_turns(scene_records, 4)
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    for row in rows[:2]:
        row["images"], row["messages"][0]["content"] = [], [{"type": "text", "text": "say yes"}]
    mixed = records.with_name("mixed.jsonl")
    mixed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = tree_for(mixed, tmp_path / "run", evaluates=False, accumulation=1, steps=2, save_every=None)
    tree["adapt"] = {"projector": {"method": "full", "weight_decay": 0.0}}
    train(config_of(tree), say=silent)
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert sorted(row["grad_norm"] == 0 for row in log if "grad_norm" in row) == [False, True]
