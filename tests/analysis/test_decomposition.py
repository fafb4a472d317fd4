"""The decomposition against dense float64 in plain torch, and against what is known in closed form."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmdora.analysis.decomposition import (
    changed_rows,
    decompose,
    effective_rank,
    singular_values,
    singular_values_of_product,
    stable_rank,
)
from mmdora.ops.merge import pieces


def halves(matrix):
    return [matrix[start:stop] for start, stop in pieces(*matrix.shape)]


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (1000, 3000)], ids=["tall", "wide", "several pieces"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_against_dense_float64(shape, dtype):
    weight = torch.randn(shape).to(dtype)
    new = weight.double() + 0.05 * torch.randn(shape, dtype=torch.float64)
    assert (len(halves(new)) > 1) == (shape[0] == 1000)
    delta = torch.empty(shape)
    found = decompose(weight, halves(new), delta)
    old = weight.double()
    assert found.delta_m == pytest.approx(float((new.norm(dim=1) - old.norm(dim=1)).abs().mean()), rel=1e-12)
    assert found.delta_d == pytest.approx(float((1 - F.cosine_similarity(new, old, dim=1)).mean()), rel=1e-9)
    assert found.base_norm == pytest.approx(float(torch.linalg.matrix_norm(old)), rel=1e-12)
    assert found.delta_norm == pytest.approx(float(torch.linalg.matrix_norm(new - old)), rel=1e-12)
    assert torch.equal(delta, (new - old).float())


@pytest.mark.parametrize("shape", [(40, 24), (24, 40)], ids=["tall", "wide"])
def test_singular_values_against_an_svd(shape):
    matrix = torch.randn(shape)
    values = torch.linalg.svdvals(matrix.double())
    assert torch.allclose(singular_values(matrix).flip(0), values, rtol=1e-10)
    shares = values / values.sum()
    assert effective_rank(values) == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())))
    assert stable_rank(values) == pytest.approx(
        float(matrix.double().norm() ** 2 / torch.linalg.matrix_norm(matrix.double(), 2) ** 2)
    )


def test_singular_values_of_a_product_are_those_of_the_dense_one():
    b, a = torch.randn(30, 4), torch.randn(4, 50)
    dense = torch.linalg.svdvals(b.double() @ a.double())
    assert torch.allclose(singular_values_of_product(b, a), dense[:4], rtol=1e-10)
    assert effective_rank(singular_values_of_product(b, a)) == pytest.approx(effective_rank(dense), rel=1e-10)


def test_ranks_in_closed_form():
    assert effective_rank(singular_values(torch.eye(7))) == pytest.approx(7)
    assert stable_rank(singular_values(torch.eye(7))) == pytest.approx(7)
    one = torch.outer(torch.randn(9), torch.randn(5))
    assert stable_rank(singular_values(one)) == pytest.approx(1)
    assert effective_rank(singular_values(one)) == pytest.approx(1, abs=1e-5)
    three = torch.diag(torch.tensor([2.0, 1.0, 1.0]))  # entropy of 1/2, 1/4, 1/4: 1.5 bits
    assert effective_rank(singular_values(three)) == pytest.approx(2**1.5)
    assert effective_rank(torch.zeros(3)) == stable_rank(torch.zeros(3)) == 0


@pytest.mark.parametrize("angle", [1e-7, 1e-4, 0.3, math.pi])
def test_a_turn_by_a_known_angle(angle):
    weight = torch.tensor([[3.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    found = decompose(weight, [weight @ turn])
    assert found.delta_d == pytest.approx(2 * math.sin(angle / 2) ** 2, rel=1e-6)  # 1 - cos, which would cancel
    assert found.delta_m == pytest.approx(0, abs=1e-14)


def test_a_stretch_moves_magnitude_alone():
    weight = torch.randn(6, 4)
    stretch = torch.tensor([1.5, 0.5, 1, 1, 1, 2], dtype=torch.float64)
    found = decompose(weight, [weight.double() * stretch[:, None]])
    assert found.delta_m == pytest.approx(float((weight.double().norm(dim=1) * (stretch - 1).abs()).mean()))
    assert found.delta_d == pytest.approx(0, abs=1e-14)


def test_rows_of_zeros_have_no_direction():
    weight = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    new = torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]])
    found = decompose(weight, [new])
    assert found.delta_m == pytest.approx((5 + 0 + 1) / 3)
    assert found.delta_d == pytest.approx(1.0)  # of the second row alone
    assert math.isnan(decompose(torch.zeros(2, 2), [torch.ones(2, 2)]).delta_d)


@pytest.mark.parametrize("method", ["lora", "dora", "magnitude"])
def test_changed_rows_are_the_papers_equation(method):
    weight, a, b = torch.randn(1000, 2000), torch.randn(4, 2000), torch.randn(1000, 4)
    m = torch.rand(1000) + 0.5
    v = weight.double() + (0 if method == "magnitude" else 0.7 * b.double() @ a.double())
    expected = v if method == "lora" else m.double()[:, None] * v / v.norm(dim=1, keepdim=True)
    low_rank = (None, None) if method == "magnitude" else (a, b)
    found = list(changed_rows(weight, *low_rank, None if method == "lora" else m, 0.7))
    assert len(found) > 1
    assert (torch.cat(found) - expected).abs().max() <= 1e-13 * expected.abs().max()
