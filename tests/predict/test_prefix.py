"""The common part of prompts about one picture: read once, and nothing else changes."""

from typing import Any

import pytest
import torch
from asked_prompts import encode_prompts
from PIL import Image
from shrunken import shrunken
from transformers import MistralConfig

from mmdora.families import Prompt, ask, family_of
from mmdora.models.cache import CACHE
from mmdora.predict.answers import generate
from mmdora.predict.prefix import read_once

RED, NOISE, BLUE = (Image.effect_noise((64, 64), 90).convert("RGB") for _ in range(3))
QUESTIONS = ["a", "What shape is in the middle of the picture?", "Is it there, or is it not there?", "How many?"]


def pair(first: Image.Image, second: Image.Image, text: str, system: str = "") -> Prompt:
    """A question about two pictures, the second one behind words of its own."""
    content = [
        {"type": "image"},
        {"type": "text", "text": "and also"},
        {"type": "image"},
        {"type": "text", "text": text},
    ]
    head = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
    return Prompt([*head, {"role": "user", "content": content}], [first, second])


SETS = {
    "one picture": [ask(text, RED) for text in QUESTIONS],
    "pictures by turns": [ask(text, picture) for text in QUESTIONS for picture in (RED, NOISE, BLUE)],
    "two pictures": [pair(*two, text) for text in QUESTIONS for two in ((RED, NOISE), (NOISE, RED))],
    "heads of two lengths": [
        *(pair(RED, NOISE, text, "Look at it well.") for text in QUESTIONS),
        *(ask(text, RED) for text in QUESTIONS),
    ],
}


@pytest.mark.parametrize("name", SETS)
def test_the_next_token_has_the_logits_of_the_whole_prompt(loaded, name):
    model, processor = loaded
    prompts = SETS[name]
    inputs = encode_prompts(processor, [p.messages for p in prompts], [p.images for p in prompts])
    shared = read_once(model, family_of(processor), inputs, [p.images for p in prompts])
    assert CACHE in shared
    options = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    options |= {"eos_token_id": None, "pad_token_id": 0}
    ours = model.generate(**shared, **options)
    torch.testing.assert_close(ours.sequences[:, -3:], model.generate(**inputs, **options).sequences[:, -3:])
    for row, prompt in enumerate(prompts):  # alone, without padding
        alone = encode_prompts(processor, [prompt.messages], [prompt.images])
        for step, logits in enumerate(model.generate(**alone, **options).logits):
            torch.testing.assert_close(ours.logits[step][row], logits[0], atol=1e-4, rtol=1e-4)


def test_a_picture_goes_through_the_tower_once(loaded, monkeypatch):
    model, processor = loaded
    seen, real = [], model.model.vision_tower.forward
    monkeypatch.setattr(
        model.model.vision_tower, "forward", lambda pixels, **rest: seen.append(len(pixels)) or real(pixels, **rest)
    )
    prompts = SETS["pictures by turns"]
    answers = generate(model, processor, prompts, max_new_tokens=4, batch_size=len(prompts))
    assert seen == [3]
    assert answers == [generate(model, processor, [prompt], max_new_tokens=4)[0] for prompt in prompts]
    assert len(set(answers)) > 3


@pytest.mark.parametrize(
    "prompts",
    [
        [ask(text, picture) for text, picture in zip(QUESTIONS, (RED, RED, NOISE, BLUE), strict=True)],
        [*SETS["one picture"], ask("No picture?")],
        [ask(text, RED.copy()) for text in QUESTIONS],
    ],
    ids=["little in common", "one without", "equal but not the same"],
)
def test_as_it_came_where_that_gains_nothing(loaded, prompts):
    model, processor = loaded
    inputs = encode_prompts(processor, [p.messages for p in prompts], [p.images for p in prompts])
    assert read_once(model, family_of(processor), inputs, [p.images for p in prompts]) is inputs


def test_beams_are_searched_as_before(loaded):
    model, processor = loaded
    prompts = SETS["one picture"]
    together = generate(model, processor, prompts, max_new_tokens=4, beams=2)
    assert together == [generate(model, processor, [prompt], max_new_tokens=4, beams=2)[0] for prompt in prompts]


def test_only_where_it_is_exact(loaded):
    inputs: dict[str, Any] = dict.fromkeys(("input_ids", "attention_mask", "pixel_values"))
    model = shrunken("llava")
    family = family_of(loaded[1])
    assert family.shares_prefix(loaded[0], inputs) and family.shares_prefix(model, inputs)
    assert not family.shares_prefix(model, inputs | {"image_sizes": None})
    for other in ("paligemma", "gemma3", "qwen2_vl", "llava_next"):
        assert not family.shares_prefix(shrunken(other), inputs)
    model.config.text_config = MistralConfig(sliding_window=8)
    assert not family.shares_prefix(model, inputs)
