"""Trains the vision tower of `tiny-llava`, because LLaVA's two stages start from a trained tower.

A stock `CLIPForImageClassification` is trained on drawn scenes. Each picture has several labels: its shapes, its
colours, and which shape has which colour. Afterwards the head is thrown away and the tower goes into the model.
Training the tower through a language model's answers was tried too: after 64,000 pictures it could tell colours apart,
but not shapes.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import CLIPConfig, CLIPForImageClassification, CLIPVisionModel, Trainer, TrainingArguments

from mmdora.data_prep.scenes import COLOURS, SHAPES, Thing, scene

LABELS = (*SHAPES, *COLOURS, *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES))


class Pictures(Dataset[dict[str, Any]]):
    """Drawn scenes that are in no other data: `pixel_values` [3, 64, 64] in [-1, 1], `labels` [labels] of 0 and 1."""

    def __init__(self, amount: int, seed: str):
        self.amount, self.seed = amount, seed

    def __len__(self) -> int:
        return self.amount

    def __getitem__(self, number: int) -> dict[str, Any]:
        things, picture = scene(Random(f"{self.seed}:{number}"))
        pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)
        return {"pixel_values": pixels, "labels": torch.tensor(labels(things))}


def labels(things: list[Thing]) -> list[float]:
    seen = {word for thing in things for word in (thing.shape, thing.colour, thing.name)}
    return [float(label in seen) for label in LABELS]


def arguments_of(folder: str, steps: int, batch: int, lr: float) -> TrainingArguments:
    """The training arguments for the towers of both bundled bases."""
    return TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=250,
        learning_rate=lr,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        weight_decay=0.05,
        adam_beta2=0.98,
        logging_steps=100,
        save_strategy="no",
        dataloader_num_workers=1,
        remove_unused_columns=False,
        report_to="none",
        seed=0,
    )


def train_tower(tower: CLIPVisionModel, *, steps: int = 3000, batch: int = 64, lr: float = 1e-3) -> dict[str, float]:
    """Train `tower` in place.

    Returns:
        The shares of 1,000 other scenes in which all shapes are right, and in which all colours are right.
    """
    config = CLIPConfig(vision_config=tower.config.to_dict())
    config.num_labels = len(LABELS)
    config.problem_type = "multi_label_classification"
    torch.manual_seed(0)
    model = CLIPForImageClassification(config)
    model.vision_model.load_state_dict(tower.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        arguments = arguments_of(folder, steps, batch, lr)
        trainer = Trainer(model, arguments, train_dataset=Pictures(steps * batch, "tower"))
        trainer.train()
        predicted = trainer.predict(Pictures(1000, "tower held out"))
    tower.load_state_dict(model.vision_model.state_dict())
    right = (np.asarray(predicted.predictions) > 0) == (np.asarray(predicted.label_ids) > 0)
    shapes, colours = slice(0, len(SHAPES)), slice(len(SHAPES), len(SHAPES) + len(COLOURS))
    scores = {"shapes": float(right[:, shapes].all(1).mean()), "colours": float(right[:, colours].all(1).mean())}
    return {name: round(score, 4) for name, score in scores.items()}


def train_tower_of(folder: Path, **options: Any) -> dict[str, float]:
    """Train the tower of the LLaVA checkpoint in `folder` and write it back, with its scores in `tower.json`."""
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    scores = train_tower(model.model.vision_tower, **options)
    model.save_pretrained(folder)
    (folder / "tower.json").write_text(json.dumps(scores), encoding="utf-8")
    return scores
