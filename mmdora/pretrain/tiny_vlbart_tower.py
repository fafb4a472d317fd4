"""Trains the vision tower of `tiny-vlbart`, which stays frozen in all later training.

The tower is a stock ModifiedResNet of open_clip. For each cell of its last map it learns which thing has its centre in
the cell, and which thing covers most of it. The batch norms learn their statistics here and keep them afterwards. The
head that reads the cells is thrown away.
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
NONE, UNASKED = 0, -100  # Labels: nothing is in the cell; the loss leaves the cell out (`ignore_index`).
NAMES = {"shape": ("", *SHAPES), "colour": ("", *COLOURS)}  # The empty name, at index NONE, stands for nothing there.
READ = {
    "centre shape": len(NAMES["shape"]),
    "centre colour": len(NAMES["colour"]),
    "cover shape": len(NAMES["shape"]),
    "cover colour": len(NAMES["colour"]),
    "size": len(SIZES),
    "offset": 2,
}
"""Output of the head -> its number of channels. The offset says where in its cell the centre of a thing lies, across
and down, from 0 to 1."""
COVERED = 0.15  # The share of a cell's area that a thing must cover to count, because less is hard to see.


class Pictures(Dataset[dict[str, Tensor]]):
    """Drawn scenes that are in no other data: `pixel_values` [3, S, S] for the tower, and `labels` [7, grid, grid].

    Args:
        even: whether pictures with one, two, three and four things are equally frequent, unlike in ordinary scenes.
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
    """[7, grid, grid] float32: the labels of each cell.

    They are shape and colour of the thing whose centre is in the cell, shape and colour of the thing that covers the
    cell, and size and offset x and y of the first thing.
    """
    cells = np.zeros((7, grid, grid), np.float32)
    cells[4:] = UNASKED
    cell = SIDE / grid
    edges = np.arange(grid) * cell
    most = np.full((grid, grid), COVERED)
    for thing in sorted(things, key=lambda thing: thing.width * thing.height):  # A large thing overwrites a small one.
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
    """The tower with a head that reads the cells of its map. Its batch norms learn while it is in training mode."""

    def __init__(self, tower: OpenClipVisionModel):
        super().__init__()
        self.tower = tower
        self.head = nn.Conv2d(tower.config.hidden_size, sum(READ.values()), 1)

    def train(self, mode: bool = True) -> Reader:
        super().train(mode)
        self.tower.visual.train(mode)  # The tower's own train() would leave its batch norms in eval mode.
        return self

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Compute loss and logits [B, channels, grid, grid] of pictures [B, 3, S, S] with labels [B, 7, grid, grid]."""
        logits = self.head(self.tower.map(pixel_values.contiguous(memory_format=torch.channels_last)))
        *named, offset = logits.split(list(READ.values()), 1)
        losses = [cross_entropy(part, labels[:, i].long(), ignore_index=UNASKED) for i, part in enumerate(named)]
        there = (labels[:, 0] != NONE)[:, None].expand_as(offset)
        return {"loss": sum(losses, mse_loss(offset[there], labels[:, 5:][there])), "logits": logits}


def train_tower(
    tower: OpenClipVisionModel, *, steps: int = 4000, batch: int = 64, lr: float = 2e-3
) -> dict[str, float]:
    """Train `tower` in place and measure it on 1,000 other scenes.

    Returns:
        The shares of scenes in which all shapes are right, in which all colours are right, in which all things (colour
        and shape) are right, and in which all things are also in the right cells.
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
    """The scores that `train_tower` returns, from logits [N, channels, grid, grid] and truth [N, 7, grid, grid]."""
    ends = np.cumsum([*READ.values()])
    said = np.stack([logits[:, : ends[0]].argmax(1), logits[:, ends[0] : ends[1]].argmax(1)], 1)
    both = [(np.stack([*cells[:, :2].reshape(len(cells), 2, -1)])) for cells in (said, truth)]

    def alike(parts: list[int]) -> float:
        sets = [[{tuple(cell) for cell in row[parts].T if all(cell)} for row in cells] for cells in both]
        return float(np.mean([ours == theirs for ours, theirs in zip(*sets, strict=True)]))

    cells = float((both[0] == both[1]).all((1, 2)).mean())
    scores = {"shapes": alike([0]), "colours": alike([1]), "things": alike([0, 1]), "cells": cells}
    return {name: round(value, 4) for name, value in scores.items()}
