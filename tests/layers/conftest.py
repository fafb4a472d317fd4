"""Fixtures of the layers' tests."""

import pytest
import torch

from mmdora.ops import norm


@pytest.fixture
def norms(monkeypatch) -> list[int]:
    """One element for each norm that is computed."""
    calls, original = [], norm.row_norm
    monkeypatch.setattr(norm, "row_norm", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    return calls


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
