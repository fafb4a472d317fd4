"""A frozen `nn.MultiheadAttention` with LoRA, DoRA or a magnitude on its fused in-projection."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdora.errors import MmdoraError
from mmdora.layers import scales
from mmdora.layers.adapted import Adapted
from mmdora.layers.linear import product


class AdaptedAttention(Adapted):
    """Attention of [q; k; v] = c (W0 x + s B A d(x)) + bias, then `out_proj`, as torch's module otherwise.

    For E embedding dimensions: `in_proj_weight` [3E, E], `in_proj_bias` [3E] or None, `lora_A` [R, E] (Kaiming-
    uniform), which q, k and v share as in PEFT's layer, `lora_B` [3E, R] (zeros), `magnitude` [3E]. A row of the
    fused matrix is a row of one of the three, so the magnitudes are those of three separate matrices.

    torch's module reads the weight of its `out_proj`; here that is called, so that it can be an `AdaptedLinear`. And
    it multiplies by weights as they are: its fast path, taken in evaluation, does not exist here.
    """

    kind = "attention"
    plain = (nn.MultiheadAttention,)
    weight_name, bias_name = "in_proj_weight", "in_proj_bias"
    in_proj_weight: nn.Parameter
    in_proj_bias: nn.Parameter | None
    out_proj: nn.Module
    batch_first: bool
    num_heads: int

    def __init__(self, base: nn.Module, *args: Any, **kwargs: Any):
        super().__init__(base, *args, **kwargs)
        for name in ("embed_dim", "kdim", "vdim", "num_heads", "head_dim"):
            setattr(self, name, getattr(base, name))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The forward of `nn.MultiheadAttention`. It makes no use of the hint `is_causal`.

        Args:
            query: [B, L, E], [L, B, E] without `batch_first`, or [L, E]; key and value: the same with length S.
            key_padding_mask: [B, S] or [S], and attn_mask: [L, S] or [B * heads, L, S]; True means not to
                attend; a number is added to the score.

        Returns:
            Output in query's shape, and weights [B, L, S], [B, heads, L, S] without `average_attn_weights` (neither
            with B for [L, E]), or None without `need_weights`.

        Raises:
            MmdoraError: `is_causal` without `attn_mask`.
        """
        if is_causal and attn_mask is None:
            raise MmdoraError("is_causal is a hint about attn_mask; give that too, as nn.MultiheadAttention wants it")
        single, rate = query.dim() == 2, self.shell.dropout if self.training else 0.0
        q, k, v = (self._heads(projected) for projected in self._projected(query, key, value))
        mask = self._mask(attn_mask, key_padding_mask, q.dtype)
        weights = None
        if need_weights:
            scores = q * math.sqrt(1 / q.shape[-1]) @ k.mT
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), rate)
            attended = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            attended = F.scaled_dot_product_attention(q, k, v, mask, rate)
        output = self.out_proj(attended.transpose(1, 2).flatten(2))
        if single:
            return output[0], None if weights is None else weights[0]
        return output if self.batch_first else output.transpose(0, 1), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """q, k and v in the shapes of query, key and value, in as few products as there are inputs."""
        width, scaled = query.shape[-1], scales.current(self)
        if query is key and key is value:
            return product(self, query, scaled).chunk(3, -1)
        q = product(self, query, scaled, slice(0, width))
        if key is value:
            return q, *product(self, key, scaled, slice(width, None)).chunk(2, -1)
        k = product(self, key, scaled, slice(width, 2 * width))
        return q, k, product(self, value, scaled, slice(2 * width, None))

    def _heads(self, x: Tensor) -> Tensor:
        """Bring any layout that forward takes to [B, heads, L, E / heads]."""
        if x.dim() == 2:
            x = x[None]
        elif not self.batch_first:
            x = x.transpose(0, 1)
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _mask(self, attn_mask: Tensor | None, padding: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """The sum of the masks, as numbers to add to the scores, in a shape that fits [B, heads, L, S]."""
        if attn_mask is not None and attn_mask.dim() == 3:
            attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))
        if padding is not None:
            padding = padding.view(-1, 1, 1, padding.shape[-1])
        masks = [_added(mask, dtype) for mask in (attn_mask, padding) if mask is not None]
        return sum(masks[1:], masks[0]) if masks else None

    @classmethod
    def problem(cls, base: nn.Module) -> str | None:
        if isinstance(base, nn.MultiheadAttention):
            if base._parameters.get("q_proj_weight") is not None:
                return "its keys or values have another width than its queries (kdim, vdim), so nothing is fused"
            if base.bias_k is not None or base.bias_v is not None:
                return "its add_bias_kv adds a key and a value that no adapter follows"
            if base.add_zero_attn:
                return "its add_zero_attn adds a key and a value that no adapter follows"
        return super().problem(base)

    @classmethod
    def shapes(cls, base: Any, rank: int) -> dict[str, tuple[int, ...]]:
        width = base.embed_dim
        return {"lora_A": (rank, width), "lora_B": (3 * width, rank), "magnitude": (3 * width,)}


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)
