"""A frozen `nn.Embedding` with LoRA, DoRA or a magnitude on it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmdora.layers import scales
from mmdora.layers.adapted import Adapted
from mmdora.ops.embedding import adapted_embedding


class AdaptedEmbedding(Adapted):
    """y = c (W0[ids] + s (A[:, ids])^T B^T), with one c per embedding dimension, in the weight's dtype.

    For V tokens and D dimensions: `weight` [V, D], `lora_A` [R, V] (zeros), `lora_B` [D, R] (normal), `magnitude`
    [D]: PEFT's parametrisation. The matrix W0 [O, I] of the equations is the weight transposed, so O is D and I is V,
    and B A = 0 at first. A gets no gradient at `padding_idx`. Dropout has no input to act on here, as in PEFT.
    """

    kind = "embedding"
    plain = (nn.Embedding,)
    weight: nn.Parameter
    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None

    def forward(self, ids: Tensor) -> Tensor:
        return adapted_embedding(
            ids,
            self.weight,
            self.gated_A,
            self.lora_B,
            self.scaling,
            self.magnitude,
            scales.current(self),
            self.padding_idx,
        )

    @classmethod
    def problem(cls, base: nn.Module) -> str | None:
        if reason := super().problem(base):
            return reason
        if base.max_norm is not None:
            return "its max_norm rewrites the weight in forward"
        for option in ("scale_grad_by_freq", "sparse"):
            if getattr(base, option):
                return f"its {option} changes gradients in a way that an adapter does not follow"
        return None

    @classmethod
    def shapes(cls, base: Any, rank: int) -> dict[str, tuple[int, ...]]:
        tokens, width = base.num_embeddings, base.embedding_dim
        return {"lora_A": (rank, tokens), "lora_B": (width, rank), "magnitude": (width,)}

    def start(self, lora_A: Tensor, lora_B: Tensor) -> None:
        nn.init.normal_(lora_B)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.T

    def from_matrix(self, matrix: Tensor) -> Tensor:
        return matrix.T
