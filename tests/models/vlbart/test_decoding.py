"""Answers of VL-BART, greedy and by beams, against decoding without a cache and without a batch."""

import pytest
import torch
from shrunken_vlbart import IMAGES, TEXTS, small_vlbart


@pytest.fixture(scope="module")
def pair():
    return small_vlbart()


def naive_greedy(model, batch, length):
    ids = torch.full((len(batch["input_ids"]), 1), 2)
    for _ in range(length - 1):
        logits = model(**batch, decoder_input_ids=ids, use_cache=False).logits[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    return ids


def naive_beams(model, batch, beams, length):
    """Beam search of one sample to a fixed length, every hypothesis run anew each step."""
    hypotheses = [(0.0, [2])]
    for _ in range(length - 1):
        grown = []
        for score, ids in hypotheses:
            logits = model(**batch, decoder_input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            scores = logits.log_softmax(-1)
            scores[2] = -torch.inf  # no end before the length
            for value, token in zip(*scores.topk(beams), strict=True):
                grown.append((score + value.item(), [*ids, token.item()]))
        hypotheses = sorted(grown, reverse=True)[:beams]
    return torch.tensor([hypotheses[0][1]]), hypotheses[0][0]


@torch.no_grad()
def test_greedy_with_a_cache_is_greedy_without(pair):
    model, processor = pair
    batch = processor(text=TEXTS, images=IMAGES)
    expected = naive_greedy(model, batch, 10)
    found = model.generate(
        **batch,
        num_beams=1,
        do_sample=False,
        max_new_tokens=9,
        min_new_tokens=9,
        forced_eos_token_id=None,
    )
    rows = [row for row in range(3) if 2 not in expected[row, 1:]]
    assert rows
    assert torch.equal(found[rows], expected[rows])


@torch.no_grad()
def test_beams_with_a_cache_are_beams_without(pair):
    model, processor = pair
    unlike_greedy = 0
    for text, images in zip(TEXTS, IMAGES, strict=True):
        batch = processor(text=text, images=images)
        expected, score = naive_beams(model, batch, 4, 8)
        found = model.generate(
            **batch,
            num_beams=4,
            max_new_tokens=7,
            min_new_tokens=7,
            forced_eos_token_id=None,
            length_penalty=0.0,
            output_scores=True,
            return_dict_in_generate=True,
        )
        assert torch.equal(found.sequences, expected)
        assert abs(found.sequences_scores.item() - score) < 1e-4
        unlike_greedy += not torch.equal(expected, naive_greedy(model, batch, 8))
    assert unlike_greedy  # else this would have tested no beams


@torch.no_grad()
def test_a_batch_answers_as_its_samples_alone(pair):
    model, processor = pair
    together = processor(text=TEXTS, images=IMAGES)
    assert together["pixel_values"].shape == (3, 2, 3, 64, 64)
    assert together["image_mask"].tolist() == [[1, 0], [0, 0], [1, 1]]
    ids = torch.tensor([[2, 0, 30, 40]])
    logits = model(**together, decoder_input_ids=ids.expand(3, -1)).logits
    options = {"num_beams": 3, "max_new_tokens": 11, "length_penalty": 0.0}
    answers = model.generate(**together, **options)
    for row in range(3):
        alone = processor(text=TEXTS[row], images=IMAGES[row])
        expected = model(**alone, decoder_input_ids=ids).logits[0]
        torch.testing.assert_close(logits[row], expected, rtol=1e-4, atol=1e-4)
        answer = model.generate(**alone, **options)[0]
        assert answers[row, : len(answer)].tolist() == answer.tolist()
        assert (answers[row, len(answer) :] == 1).all()
