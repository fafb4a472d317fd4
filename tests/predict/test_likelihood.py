"""Log-probabilities of continuations: those of the model run on the whole text, with and without pictures."""

import pytest
import torch
from PIL import Image
from text_bases import tokenizer_of
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaConfig, LlamaForCausalLM

from mmdora.errors import MmdoraError
from mmdora.families import ask, family_of
from mmdora.predict.likelihood import log_probabilities


def by_hand(model, inputs, count):
    """The log-probability of the last `count` tokens of one text."""
    with torch.no_grad():
        chances = model(**inputs).logits[0].log_softmax(-1)
    ids = inputs["input_ids"][0]
    return sum(float(chances[place - 1, ids[place]]) for place in range(len(ids) - count, len(ids)))


def test_each_continuation_is_summed_as_alone():
    tokenizer = tokenizer_of("llama")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24,
                                         num_hidden_layers=1, num_attention_heads=2)).eval()  # fmt: skip
    family_of(tokenizer)  # It gives the tokenizer a token for padding.
    pairs = [("Question: what is it?\nAnswer:", " red"), ("Question: what is it?\nAnswer: ", "a blue box"), ("A", " b")]
    found = log_probabilities(model, tokenizer, [(before, after, []) for before, after in pairs], batch_size=2)
    for value, (before, after) in zip(found, pairs, strict=True):
        whole = tokenizer(before + after, return_tensors="pt")
        count = whole["input_ids"].shape[1] - len(tokenizer(before.rstrip(" "))["input_ids"])
        assert value == pytest.approx(by_hand(model, whole, count), abs=1e-4) and count > 0
    with pytest.raises(MmdoraError, match="one token holds the end of the prompt"):
        log_probabilities(model, tokenizer, [("re", "d", [])])


def test_pictures_are_seen(tiny_llava):
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(tiny_llava).eval(),
        AutoProcessor.from_pretrained(tiny_llava),
    )
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    text = family_of(processor).render(ask("what?", red).messages, generation_prompt=True)
    found = log_probabilities(model, processor, [(text, "red", [red]), (text, "red", [blue])])
    inputs = processor(text=text + "red", images=red, return_tensors="pt", add_special_tokens=False)
    count = len(processor.tokenizer("red", add_special_tokens=False)["input_ids"])
    assert found[0] == pytest.approx(by_hand(model, inputs, count), abs=1e-3)
    assert abs(found[0] - found[1]) > 1e-3
