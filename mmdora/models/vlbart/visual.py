"""VL-BART's visual embedding, the projector of this family: it turns features into tokens for BART's encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


class VisualEmbedding(nn.Module):
    """`LN(Linear(v)) + LN(Linear([x1, x2, y1, y2, area])) + Image[n] + Token[V - 1 - i]` (VL-T5, Cho et al. 2021).

    n counts the images of a sample, and i the tokens *within* an image, so the order embeddings restart with each
    image. Token is BART's own table, read from its end.

    Args:
        features: width of a feature.
        width: width of BART's tokens.
        images: most images in a sample.
    """

    def __init__(self, features: int, width: int, images: int):
        super().__init__()
        self.feature = nn.Sequential(nn.Linear(features, width), nn.LayerNorm(width))
        self.box = nn.Sequential(nn.Linear(5, width), nn.LayerNorm(width))
        self.image = nn.Embedding(images, width)

    def forward(self, features: Tensor, tokens: nn.Module, rows: int, boxes: Tensor | None = None) -> Tensor:
        """Compute visual tokens [B, N * T, width], image after image.

        Args:
            features: [B, N, T, features] features of N images of T tokens.
            tokens: BART's token embedding.
            rows: number of rows of the token embedding, V.
            boxes: [B, N, T, 4] x1, x2, y1, y2 from 0 to 1; None for grid features, whose boxes are all zero.
        """
        images, length = features.shape[1:3]
        if boxes is None:
            boxes = features.new_zeros(1, 1, 1, 4)
        x1, x2, y1, y2 = boxes.unbind(-1)
        boxes = torch.cat([boxes, ((y2 - y1) * (x2 - x1))[..., None]], -1)
        order = tokens(rows - 1 - torch.arange(length, device=features.device))
        image = self.image(torch.arange(images, device=features.device))[:, None]
        return (self.feature(features) + self.box(boxes) + image + order).flatten(1, 2)


def as_clip(frames: Tensor, length: int) -> Tensor:
    """Turn frames [.., n, F] into a clip [.., length, F]: zeros fill a short one, a long one is max-pooled."""
    count = frames.shape[-2]
    if count <= length:
        return pad(frames, (0, 0, 0, length - count))
    pooled = nn.functional.adaptive_max_pool1d(frames.reshape(-1, *frames.shape[-2:]).mT, length)
    return pooled.mT.reshape(*frames.shape[:-2], length, frames.shape[-1])
