"""The tower of `tiny-vlbart` learns to see, before its BART learns to speak: it stays frozen ever after.

A stock ModifiedResNet of open_clip on drawn scenes, told cell by cell of its last map what has its centre
there and what covers most of it. Batch norms learn their statistics here and keep them afterwards. The head that reads
the cells is thrown away.
"""

from __future__ import annotations

import tempfile
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import Dataset
from transformers import Trainer

from mmdora.data_prep.scenes import COLOURS, SHAPES, SIDE, Thing, scene
from mmdora.models.open_clip.tower import OpenClipVisionModel, image_processor
from mmdora.pretrain.tiny_llava_tower import arguments_of

SIZES = ("small", "large")
NONE, UNASKED = 0, -100
NAMES = {"shape": ("", *SHAPES), "colour": ("", *COLOURS)}  # the first: nothing there
READ = {
    "centre shape": len(NAMES["shape"]),
    "centre colour": len(NAMES["colour"]),
    "cover shape": len(NAMES["shape"]),
    "cover colour": len(NAMES["colour"]),
    "size": len(SIZES),
    "offset": 2,
}
"""What is read from a cell -> channels; the offset is the centre's place in its cell, 0 to 1 across and down."""
COVERED = 0.15  # of a cell, from which on the thing counts


class Pictures(Dataset[dict[str, Tensor]]):
    """`pixel_values` [3, S, S] as the tower takes them and `labels` [7, grid, grid]; scenes that no other data holds.

    Args:
        even: as many pictures with four things as with one; else as many as scenes have.
    """

    def __init__(self, amount: int, seed: str, grid: int, processor: Any, *, even: bool):
        self.amount, self.seed, self.grid, self.processor, self.even = amount, seed, grid, processor, even

    def __len__(self) -> int:
        return self.amount

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        random = Random(f"{self.seed}:{number}")
        things, picture = scene(random, number=random.randint(1, 4) if self.even else None)
        pixels = self.processor(picture, return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels, "labels": torch.from_numpy(labels(things, self.grid))}


def labels(things: list[Thing], grid: int) -> np.ndarray:
    """[7, grid, grid] float32: shape and colour of the centre, of the cover, size, offset x and y of the centre."""
    cells = np.zeros((7, grid, grid), np.float32)
    cells[4:] = UNASKED
    cell = SIDE / grid
    edges = np.arange(grid) * cell
    most = np.full((grid, grid), COVERED)
    for thing in sorted(things, key=lambda thing: thing.width * thing.height):  # a large one hides a small one
        name = NAMES["shape"].index(thing.shape), NAMES["colour"].index(thing.colour)
        (column, x), (row, y) = (divmod(at / cell, 1) for at in (thing.x, thing.y))
        cells[:, int(row), int(column)] = (*name, *cells[2:4, int(row), int(column)], SIZES.index(thing.size), x, y)
        across, down = (
            np.clip(np.minimum(at + extent / 2, edges + cell) - np.maximum(at - extent / 2, edges), 0, None) / cell
            for at, extent in ((thing.x, thing.width), (thing.y, thing.height))
        )
        cover = np.outer(down, across)
        cells[2:4, cover > most] = np.array(name)[:, None]
        most = np.maximum(most, cover)
    return cells


class Reader(nn.Module):
    """The tower with a head that reads the cells of its map, batch norms learning while it trains."""

    def __init__(self, tower: OpenClipVisionModel):
        super().__init__()
        self.tower = tower
        self.head = nn.Conv2d(tower.config.hidden_size, sum(READ.values()), 1)

    def train(self, mode: bool = True) -> Reader:
        super().train(mode)
        self.tower.visual.train(mode)  # the tower itself would keep its batch norms as they are
        return self

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss and logits [B, channels, grid, grid] of pictures [B, 3, S, S] and labels [B, 7, grid, grid]."""
        logits = self.head(self.tower.map(pixel_values.contiguous(memory_format=torch.channels_last)))
        *named, offset = logits.split(list(READ.values()), 1)
        losses = [cross_entropy(part, labels[:, i].long(), ignore_index=UNASKED) for i, part in enumerate(named)]
        there = (labels[:, 0] != NONE)[:, None].expand_as(offset)
        return {"loss": sum(losses, mse_loss(offset[there], labels[:, 5:][there])), "logits": logits}


def train_tower(
    tower: OpenClipVisionModel, *, steps: int = 4000, batch: int = 64, lr: float = 2e-3
) -> dict[str, float]:
    """Train `tower` in place; return its accuracy on 1,000 other scenes.

    Returns:
        The share of scenes of which all shapes, all colours, all things (colour and shape) are right, and of which
        they are also in the right cells.
    """
    torch.manual_seed(0)
    model = Reader(tower).to(memory_format=torch.channels_last)
    vision: Any = tower.config
    grid, processor = vision.image_size // 32, image_processor(vision)
    with tempfile.TemporaryDirectory() as folder:
        arguments = arguments_of(folder, steps, batch, lr)
        trainer = Trainer(
            model, arguments, train_dataset=Pictures(steps * batch, "vl tower", grid, processor, even=True)
        )
        trainer.train()
        predicted = trainer.predict(Pictures(1000, "vl tower held out", grid, processor, even=False))
    model.to(memory_format=torch.contiguous_format)
    return score(np.asarray(predicted.predictions), np.asarray(predicted.label_ids))


def score(logits: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """See `train_tower`; logits [N, channels, grid, grid], truth [N, 7, grid, grid]."""
    ends = np.cumsum([*READ.values()])
    said = np.stack([logits[:, : ends[0]].argmax(1), logits[:, ends[0] : ends[1]].argmax(1)], 1)
    both = [(np.stack([*cells[:, :2].reshape(len(cells), 2, -1)])) for cells in (said, truth)]

    def alike(parts: list[int]) -> float:
        sets = [[{tuple(cell) for cell in row[parts].T if all(cell)} for row in cells] for cells in both]
        return float(np.mean([ours == theirs for ours, theirs in zip(*sets, strict=True)]))

    cells = float((both[0] == both[1]).all((1, 2)).mean())
    scores = {"shapes": alike([0]), "colours": alike([1]), "things": alike([0, 1]), "cells": cells}
    return {name: round(value, 4) for name, value in scores.items()}
