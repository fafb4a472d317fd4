"""Boxes that are declared for an evaluation: asked and scored in the model's own way, whatever the picture's size."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import processors
import pytest
import torch
from PIL import Image

from mmdora.cli.evaluate import Questions
from mmdora.evaluate import run
from mmdora.evaluate.run import evaluate
from mmdora.prepare.record import asked
from mmdora.records.record import check_record
from mmdora.records.row import Row, row_of

SMALL: dict[str, Any] = {"shortest_edge": 64, "longest_edge": 2048}
"""Pixels of a picture as the model sees it: far fewer than it has."""


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    Image.new("RGB", (800, 480), "red").save(tmp_path / "a.png")
    question = "Is <box>0, 0, 80, 48</box> it?"
    records = [asked(str(number), ["a.png"], question, "<box>400, 240, 800, 480</box>") for number in range(3)]
    return [row_of(check_record(record, "here"), tmp_path) for record in records]


@pytest.mark.parametrize(
    ("kind", "to"), [("Qwen2_5_VL", None), ("Qwen3VL", None), ("Qwen2VL", None), ("Qwen3VL", "square")]
)
def test_answers_are_scored_in_the_way_that_the_model_writes(
    kind: str, to: str | None, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = processors.qwen(kind, size=SMALL)
    grid = processor.image_processor(Image.new("RGB", (800, 480)))["image_grid_thw"][0]
    height, width = (int(side) * processor.image_processor.patch_size for side in grid[1:])
    assert width < 100
    right, wrong = {
        "Qwen2_5_VL": (f"[{width // 2}, {height // 2}, {width}, {height}]", "[400, 240, 800, 480]"),
        "Qwen3VL": ("[500, 500, 1000, 1000]", f"[{width // 2}, {height // 2}, {width}, {height}]"),
        "Qwen2VL": ("<|box_start|>(500,500),(1000,1000)<|box_end|>", "(400,240),(800,480)"),
    }[kind] if to is None else ("[0.500, 0.500, 1.000, 0.800]", "[0.500, 0.500, 0.700, 1.000]")  # fmt: skip
    seen = []

    def generate(model: Any, given: Any, prompts: list[Any], **_: Any) -> list[str]:
        seen.extend(prompt.messages[-1]["content"][-1]["text"] for prompt in prompts)
        return [right, wrong, "there"][: len(prompts)]

    monkeypatch.setattr(run, "generate", generate)
    model = torch.nn.Linear(1, 1)
    model.config = SimpleNamespace(model_type="qwen")  # type: ignore[assignment]
    declared = {"from": "pixels"} | ({} if to is None else {"to": to})
    result = evaluate(model, processor, rows, task="boxes", boxes=declared)
    assert result.scores is not None
    assert result.scores.each == pytest.approx([1.0, 0.0, 0.0])
    assert not any("<box>" in question for question in seen) and len(set(seen)) == 1
    ((box,), *_) = (row["boxes"]["prediction"] for row in result.rows)
    assert box == pytest.approx((0.5, 0.5, 1.0, 1.0), abs=0.02)


def test_the_command_declares_boxes_as_a_config_does() -> None:
    assert Questions(boxes="pixels", boxes_to="loc").box_rule == {"from": "pixels", "to": "loc"}
    assert Questions().box_rule == {}
