"""VL-BART's visual embedding: features to tokens of BART's encoder. It is the projector of this family."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


class VisualEmbedding(nn.Module):
    """`LN(Linear(v)) + LN(Linear([x1, x2, y1, y2, area])) + Image[n] + Token[V - 1 - i]` (VL-T5, Cho et al. 2021).

    n counts the images of a sample; i the tokens *within* an image, so the order embeddings restart with each
    image. Token is BART's own table, read from its end.

    Args:
        features: width of a feature.
        width: of BART.
        images: how many a sample may have.
    """

    def __init__(self, features: int, width: int, images: int):
        super().__init__()
        self.feature = nn.Sequential(nn.Linear(features, width), nn.LayerNorm(width))
        self.box = nn.Sequential(nn.Linear(5, width), nn.LayerNorm(width))
        self.image = nn.Embedding(images, width)

    def forward(self, features: Tensor, tokens: nn.Module, rows: int, boxes: Tensor | None = None) -> Tensor:
        """Visual tokens [B, N * T, width], image after image.

        Args:
            features: [B, N, T, features], N images of T tokens.
            tokens: BART's token embedding.
            rows: V, how many tokens it has.
            boxes: [B, N, T, 4] as x1, x2, y1, y2 in 0..1; None for grid features, whose boxes are all zero.
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
    """Frames [.., n, F] as a clip [.., length, F]: zeros behind a short one, an adaptive max pool of a long one."""
    count = frames.shape[-2]
    if count <= length:
        return pad(frames, (0, 0, 0, length - count))
    pooled = nn.functional.adaptive_max_pool1d(frames.reshape(-1, *frames.shape[-2:]).mT, length)
    return pooled.mT.reshape(*frames.shape[:-2], length, frames.shape[-1])
