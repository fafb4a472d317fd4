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
    weight, lora_A, lora_B = case()
    # Rows 3 and 70 become almost zero: B A = -W0 there, up to one part in a hundred.
    for row in (3, 70):
        target = weight[row]
        lora_A[0] = target if row == 3 else lora_A[0]
        lora_A[1] = target if row == 70 else lora_A[1]
        lora_B[row] = 0
        lora_B[row, 0 if row == 3 else 1] = -0.99
    base = squared_norm(weight)
    exact = dense(weight, lora_A, lora_B, 1.0)
    norm = row_norm(weight, lora_A, lora_B, 1.0, base)
    torch.testing.assert_close(norm.double(), exact, rtol=1e-5, atol=0)
    factored = row_norm(weight, lora_A, lora_B, 1.0, base, exact=False)
    others = torch.ones(96, dtype=torch.bool)
    others[[3, 70]] = False
    assert ((factored.double() - exact).abs() / exact)[[3, 70]].max() > 1e-4  # so the dense rows are needed
    assert torch.equal(factored[others], norm[others])


def test_zero_rows_are_zero_not_nan():
    weight, lora_A, lora_B = case()
    weight[5] = 0
    lora_B[5] = 0
    weight[6] = 0
    norm = row_norm(weight, lora_A, lora_B, 1.0, squared_norm(weight))
    assert norm[5] == 0 and norm[6] > 0 and norm.isfinite().all()
