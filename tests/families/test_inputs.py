"""The batch of a row is what the stock processor returns for it, key by key, in every family that can be built here."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import processors
import pytest
import torch
from PIL import Image
from shrunken import CONFIGS
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mmdora.batches.fit import fit
from mmdora.errors import MmdoraError
from mmdora.evaluate.asking import Asking
from mmdora.evaluate.tasks import task_of
from mmdora.families import family_of
from mmdora.families.template import inputs_of
from mmdora.models.locate import resolve
from mmdora.records.reader import read_records, write_records
from mmdora.records.record import qa_record
from mmdora.records.row import Row, row_of

MAKERS = {
    "llava": lambda: AutoProcessor.from_pretrained(resolve("tiny-llava")),
    "llava_next": processors.llava_next,
    "llava_onevision": processors.llava_onevision,
    "qwen2_vl": lambda: processors.qwen("Qwen2VL"),
    "qwen2_5_vl": processors.qwen,
    "qwen3_vl": lambda: processors.qwen("Qwen3VL"),
    "gemma3": processors.gemma3,
    "idefics3": processors.idefics3,
    "internvl": processors.internvl,
    "mistral3": processors.pixtral,
    "mllama": processors.mllama,
}
"""Model type -> its processor. PaliGemma and BLIP-2 have no chat template; SmolVLM's processor needs num2words."""


def processor_of(kind: str) -> Any:
    processor = MAKERS[kind]()
    if processor.chat_template is None or "IMAGE" in processor.chat_template:
        processor.chat_template = processors.TEMPLATE.replace("IMAGE", processor.image_token)
    return processor


@pytest.fixture
def row(tmp_path: Path) -> Row:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return row_of(qa_record("a", "a.png", [("what is it?", "blue"), ("why?", "so")]), tmp_path)


def test_every_family_of_the_tests_is_here() -> None:
    assert set(CONFIGS) - set(MAKERS) == {"paligemma", "blip-2", "smolvlm"}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_batch_holds_what_the_processor_returns(kind: str, row: Row) -> None:
    processor = processor_of(kind)
    family = family_of(processor)
    batch = family.batch([row])
    text, picture = family.render(row["messages"]), Image.open(row["images"][0].path).convert("RGB")
    stock = processor(text=[text], images=[[picture]], padding=True, return_tensors="pt")
    if "</s>" in text and text.startswith("<s>"):  # the template wrote the start token, so the processor must not
        stock = processor(text=[text], images=[[picture]], padding=True, return_tensors="pt", add_special_tokens=False)
    assert set(batch) == set(stock) | {"labels"}
    for name, value in stock.items():
        assert torch.equal(batch[name], value), name
    config = CONFIG_MAPPING[kind](**CONFIGS[kind])
    model: Any = AutoModelForImageTextToText._model_mapping[type(config)]  # type: ignore[attr-defined]
    wanted = inspect.signature(model.forward).parameters
    takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in wanted.values())
    assert takes_more or set(batch) <= set(wanted), "the forward would refuse the batch"


def test_what_is_a_numpy_array_is_in_the_batch(row: Row) -> None:
    batch = family_of(processors.mllama()).batch([row])
    mask = batch["cross_attention_mask"]
    assert mask.shape == (1, batch["input_ids"].shape[1], 1, 2) and 0 < mask.sum() < mask.numel()


def test_what_cannot_be_a_tensor_is_an_error() -> None:
    with pytest.raises(MmdoraError, match="gives 'grid' as dict, which cannot be put into a batch"):
        inputs_of(None, {"input_ids": torch.zeros(1, 1), "offset_mapping": [[]], "grid": {}})


def test_lists_of_different_lengths_are_an_error(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = processors.mllama()
    stock = type(processor).__call__

    def ragged(self: Any, *args: Any, **kwargs: Any) -> Any:
        return stock(self, *args, **kwargs) | {"crops": [[1, 2], [3]]}

    monkeypatch.setattr(type(processor), "__call__", ragged)
    with pytest.raises(MmdoraError, match=r"MllamaProcessor: .*'crops'.*cannot be trained"):
        family_of(processor).batch([row])


NOTHING = "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}{{ p['text'] }}{% endfor %}\n{% endfor %}"
"""A template that writes no image."""


@pytest.mark.parametrize("look", ["before training", "in a batch", "before a question"])
def test_an_image_that_the_template_leaves_out_is_named(look: str, row: Row, tiny_llava: str, tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(tiny_llava)
    processor.chat_template = NOTHING
    write_records(tmp_path / "a.jsonl", [qa_record("a", "a.png", [("what?", "blue")])])
    with pytest.raises(MmdoraError, match=r"record a: holds 1 image, but the chat template .*'<image>' 0 times"):
        if look == "before training":
            fit(read_records(tmp_path / "a.jsonl"), family_of(processor), None, "error")
        elif look == "in a batch":
            family_of(processor).batch([row])
        else:
            list(Asking(processor, task_of("exact")).prompts([row], [[0]], [0]))
