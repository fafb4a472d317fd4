import threading
import time
from typing import Any

import pytest
import torch
from PIL import Image
from shrunken_vlbart import small_vlbart
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmdora.families import Prompt, ask, family_of
from mmdora.predict.answers import WATCHED, _Gumbel, generate, stream


@pytest.fixture(scope="module")
def processor(tiny_llava):
    return AutoProcessor.from_pretrained(tiny_llava)


@pytest.fixture
def model(tiny_llava):
    """The base, unable to end an answer, so that every answer has the length asked for."""
    model = AutoModelForImageTextToText.from_pretrained(tiny_llava).eval()
    model.generation_config.suppress_tokens = [model.generation_config.eos_token_id]
    return model


def picture(colour: str) -> Image.Image:
    return Image.new("RGB", (64, 64), colour)


PROMPTS = [
    ask("Is it red?", picture("red")),
    ask("Tell me about the weather."),
    ask("What shape is there in the very middle of the picture, if any?", picture("teal")),
    Prompt(
        [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which colour?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "black"}]},
            {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
        ],
        [picture("black")],
    ),
    ask("b", picture("white")),
]


def generating() -> bool:
    return any(thread.name == "mmdora-generate" for thread in threading.enumerate())


def test_batched_answers_are_the_answers_one_by_one_in_order(model, processor):
    seen = []
    batched = generate(model, processor, PROMPTS, max_new_tokens=8, batch_size=2, progress=seen.append)
    alone = [generate(model, processor, [prompt], max_new_tokens=8)[0] for prompt in PROMPTS]
    assert batched == alone
    assert len(set(batched)) > 1, "every prompt has the same answer, so their order was not tested"
    assert seen == [2, 2, 1]


def test_generation_stops_at_the_end_of_turn(model, processor):
    model.generation_config.suppress_tokens = None
    model.generation_config.eos_token_id = list(range(model.config.text_config.vocab_size))
    assert [partial.tokens for partial in stream(model, processor, PROMPTS[0], max_new_tokens=3)] == [1, 1]


def test_checkpoint_sampling_defaults_do_not_reach_greedy(model, processor):
    expected = generate(model, processor, PROMPTS, max_new_tokens=6)
    model.generation_config.update(do_sample=True, temperature=9.0, top_k=0)
    assert generate(model, processor, PROMPTS, max_new_tokens=6) == expected


def test_a_training_model_answers_without_dropout_and_goes_on_training(model, processor):
    expected = generate(model, processor, PROMPTS[:1], max_new_tokens=6)
    model.model.language_model.layers[0].self_attn.attention_dropout = 0.9
    model.train()
    assert generate(model, processor, PROMPTS[:1], max_new_tokens=6) == expected
    assert [*stream(model, processor, PROMPTS[0], max_new_tokens=6)][-1].text == expected[0]
    assert model.training


@pytest.mark.parametrize("prompt", PROMPTS[:2], ids=["image", "text only"])
def test_the_stream_grows_into_the_batched_answer(model, processor, prompt):
    partials = list(stream(model, processor, prompt, max_new_tokens=12))
    assert [partial.tokens for partial in partials] == [*range(1, 13), 12]
    assert partials[-1].text == generate(model, processor, [prompt], max_new_tokens=12)[0]


def test_unfinished_characters_wait(model, processor):
    """Byte tokens sampled at random are mostly parts of characters."""
    partials = list(stream(model, processor, PROMPTS[0], max_new_tokens=60, temperature=5.0, seed=1))
    assert "\ufffd" in partials[-1].text, "no broken character was generated, so nothing was tested"
    assert not any(partial.text.endswith("\ufffd") for partial in partials[:-1])


def test_sampling_repeats_by_seed_and_leaves_the_global_state(model, processor):
    def answer(seed: int) -> str:
        options = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 0.95, "seed": seed}
        return [*stream(model, processor, PROMPTS[0], **options)][-1].text

    before = torch.get_rng_state()
    first = answer(3)
    torch.testing.assert_close(torch.get_rng_state(), before)
    torch.rand(5)
    assert answer(3) == first
    assert len({answer(seed) for seed in range(4)}) > 1


def test_a_narrow_nucleus_is_greedy(model, processor):
    greedy = generate(model, processor, PROMPTS[:1], max_new_tokens=6)[0]
    assert [*stream(model, processor, PROMPTS[0], max_new_tokens=6, temperature=1.0, top_p=1e-6)][-1].text == greedy


def test_gumbel_noise_samples_the_softmax():
    scores = torch.tensor([2.0, 1.0, 0.0, -torch.inf]).expand(40_000, 4)
    drawn = _Gumbel(0, torch.device("cpu"))(torch.empty(0), scores).argmax(-1)
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(shares, scores[0].softmax(-1), atol=0.01, rtol=0)
    assert shares[3] == 0


@pytest.mark.parametrize("how", ["close", "stop"])
def test_ending_early_really_ends_generation(model, processor, how):
    steps = []
    model.register_forward_pre_hook(lambda *_: steps.append(time.sleep(0.01)))
    stop = threading.Event()
    answer = stream(model, processor, PROMPTS[0], max_new_tokens=400, stop=stop)
    for _ in range(3):
        next(answer)
    assert generating()
    if how == "close":
        answer.close()
    else:
        stop.set()
        assert [*answer][-1].tokens <= 6
    assert not generating()
    assert len(steps) <= 6


def test_a_failing_model_reaches_the_consumer(model, processor):
    model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of cheese")))
    with pytest.raises(RuntimeError, match="out of cheese"):
        list(stream(model, processor, PROMPTS[0], max_new_tokens=4))
    assert not generating()


def test_timings(model, processor):
    model.register_forward_pre_hook(lambda *_: time.sleep(0.05))
    partials = list(stream(model, processor, PROMPTS[0], max_new_tokens=6))
    assert [partial.tokens_per_s is None for partial in partials] == [partial.tokens < 5 for partial in partials]
    assert (partials[0].first_token_s or 0) >= 0.05
    assert {partial.first_token_s for partial in partials} == {partials[0].first_token_s}
    assert 2 < (partials[-1].tokens_per_s or 0) < 20


def test_an_answer_of_a_decoder_ends_with_its_positions():
    model, processor = small_vlbart("vit")  # 96 positions
    with torch.no_grad():
        model.final_logits_bias[0, model.generation_config.eos_token_id] = -1e9  # it never ends by itself
        model.final_logits_bias[0, 97] = 1e9  # one letter for ever
    (answer,) = generate(model, processor, [ask("a?")], max_new_tokens=300)
    assert len(answer) == 94, "a position is the start of every target"
    *_, last = stream(model, processor, ask("a?"), max_new_tokens=300)
    assert last.tokens == 95


def test_the_first_tokens_tell_what_the_model_would_have_said(model, processor):
    prompt, given = PROMPTS[0], dict[str, Any](max_new_tokens=WATCHED + 2)
    *_, last = stream(model, processor, prompt, **given)
    assert len(last.first_tokens) == WATCHED
    encoded = family_of(processor).encode_prompts([prompt])
    with torch.no_grad():
        scores = model(**encoded).logits[0, -1]
        scores[model.generation_config.eos_token_id] = -torch.inf
        expected = scores.softmax(-1).topk(5)
    first = last.first_tokens[0]
    assert [text for text, _ in first.likeliest] == [processor.tokenizer.decode([i]) for i in expected.indices.tolist()]
    assert [p for _, p in first.likeliest] == pytest.approx(expected.values.tolist(), rel=1e-3)
    assert (first.text, first.p) == first.likeliest[0], "greedy takes the likeliest"
    *_, hot = stream(model, processor, prompt, temperature=2.0, seed=1, **given)
    assert hot.first_tokens[0].likeliest == first.likeliest, "they are the model's own, before temperature"
    assert any(token.p < token.likeliest[0][1] for token in hot.first_tokens)
