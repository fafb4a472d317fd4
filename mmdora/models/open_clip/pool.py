"""The attention pool of open_clip's ResNets, changed so that its projections are called and can be adapted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor


class AttentionPool(AttentionPool2d):
    """open_clip's attention pool, which calls `q_proj`, `k_proj`, `v_proj` and `c_proj` as modules.

    open_clip's own class only reads the weights of these modules, so adapters in them would have no effect. The
    parameters, their names and the result are the same as open_clip's. Attention is computed for one query only, the
    mean of the map, because its output is the embedding.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The image embedding [B, output_dim] of a map [B, C, h, w]."""
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding.to(x.dtype)
        projected = self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in projected)
        return self.c_proj(F.scaled_dot_product_attention(q, k, v).flatten(1))
