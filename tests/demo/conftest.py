import time

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmdora.demo.answering import local
from mmdora.demo.turns import ModelColumn


@pytest.fixture(scope="session")
def models(tiny_llava):
    """Two models that never end an answer by themselves, and whose answers differ."""
    made = []
    for seed in range(2):
        model = AutoModelForImageTextToText.from_pretrained(tiny_llava).eval()
        model.generation_config.suppress_tokens = [model.generation_config.eos_token_id]
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.model.multi_modal_projector.linear_2.weight)
        made.append(model)
    return made


@pytest.fixture(scope="session")
def processor(tiny_llava):
    return AutoProcessor.from_pretrained(tiny_llava)


@pytest.fixture
def columns(models, processor):
    pairs = zip(("base", "dora"), models, strict=True)
    return [ModelColumn(name, "a model", "cpu", local(model, processor)) for name, model in pairs]


@pytest.fixture
def slowly(models):
    """Makes every step of every model take some seconds, until it is called again; gives the list of steps so far."""
    pace, steps = 0.0, []
    handles = [m.register_forward_pre_hook(lambda *_: steps.append(time.sleep(pace))) for m in models]

    def slow(seconds):
        nonlocal pace
        pace = seconds
        return steps

    yield slow
    for handle in handles:
        handle.remove()
