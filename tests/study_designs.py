"""A small design of a study, as a file."""

from __future__ import annotations

from pathlib import Path

import yaml

DESIGN = {
    "title": "a",
    "question": "b?",
    "tasks": ["names"],
    "grid": {"methods": ["lora", "dora"], "ranks": [4]},
    "compare": [["LoRA r4", "DoRA r4"]],
    "rates": {"low": 1e-3, "high": 1e-2, "count": 3},
    "seeds": [0, 1],
    "expected": {"differing": 0.2, "seed_spread": 0.02},
}


def written(folder: Path, **changes: object) -> Path:
    path = folder / "design.yaml"
    path.write_text(yaml.safe_dump(DESIGN | changes), encoding="utf-8")
    return path
