"""The factored row norm against the dense one in float64."""

import pytest
import torch

from mmdora.ops.norm import row_norm, squared_norm


def case(rows=96, columns=64, rank=8, dtype=torch.float32):
    torch.manual_seed(0)
    weight = torch.randn(rows, columns).to(dtype)
    return weight, torch.randn(rank, columns) * 0.3, torch.randn(rows, rank) * 0.3


def dense(weight, lora_A, lora_B, scaling):
    return torch.linalg.vector_norm(weight.double() + scaling * lora_B.double() @ lora_A.double(), dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_dense_float64(dtype):
    weight, lora_A, lora_B = case(dtype=dtype)
    norm = row_norm(weight, lora_A, lora_B, 2.0, squared_norm(weight))
    assert norm.dtype == torch.float32
    torch.testing.assert_close(norm.double(), dense(weight, lora_A, lora_B, 2.0), rtol=1e-6, atol=0)


def test_near_cancellation_only_those_rows_are_dense():
    """B A = -0.99 W0 in every third row, where the factored sum loses four of its digits.

    How much of the loss shows in one row is chance: it depends on the order in which a processor sums. In 32 rows it
    shows on every processor.
    """
    weight, lora_A, lora_B = case()
    short = torch.arange(0, 96, 3)
    multiples = 0.5 + torch.rand(len(short))
    lora_A[0] = weight[0]
    weight[short] = multiples[:, None] * lora_A[0]
    lora_B[short] = 0
    lora_B[short, 0] = -0.99 * multiples
    base = squared_norm(weight)
    exact = dense(weight, lora_A, lora_B, 1.0)
    assert (exact[short] / base.sqrt()[short] - 0.01).abs().max() < 1e-5
    norm = row_norm(weight, lora_A, lora_B, 1.0, base)
    torch.testing.assert_close(norm.double(), exact, rtol=1e-5, atol=0)
    factored = row_norm(weight, lora_A, lora_B, 1.0, base, exact=False)
    assert ((factored.double() - exact).abs() / exact)[short].max() > 1e-4  # so the dense rows are needed
    others = torch.ones(96, dtype=torch.bool)
    others[short] = False
    assert torch.equal(factored[others], norm[others])


def test_zero_rows_are_zero_not_nan():
    weight, lora_A, lora_B = case()
    weight[5] = 0
    lora_B[5] = 0
    weight[6] = 0
    norm = row_norm(weight, lora_A, lora_B, 1.0, squared_norm(weight))
    assert norm[5] == 0 and norm[6] > 0 and norm.isfinite().all()
