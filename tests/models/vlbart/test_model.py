"""VL-BART against stock BART and against its equation; what it takes, and what it refuses."""

import pytest
import torch
from shrunken_vlbart import IMAGES, ORDER, TEXTS, picture, small_bart, small_vlbart
from torch.nn import functional as F

from mmdora.adapt.modality import ModelParts, find_parts
from mmdora.errors import MmdoraError
from mmdora.models.vlbart.visual import VisualEmbedding, as_clip


@pytest.fixture(scope="module")
def pair():
    return small_vlbart()


def stock(seed=0, **changes):
    """The BART `small_vlbart` was made of, with the added tokens (whose rows are drawn anew, so copied)."""
    ours, processor = small_vlbart(seed=seed)
    bart = small_bart(seed, **changes)
    bart.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    bart.model.shared.weight.data.copy_(ours.model.language_model.shared.weight)
    return bart, ours, processor


# --- text alone


def test_without_images_it_is_bart_bit_for_bit():
    bart, ours, processor = stock()
    batch = processor(text=TEXTS)
    labels = processor.tokenizer(["red", "yes it is", ""], padding=True, return_tensors="pt")["input_ids"]
    labels[labels == 1] = -100
    with torch.no_grad():
        expected, found = bart(**batch, labels=labels), ours(**batch, labels=labels)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(found.encoder_last_hidden_state, expected.encoder_last_hidden_state)
    options = {"num_beams": 4, "max_new_tokens": 13, "output_scores": True, "return_dict_in_generate": True}
    expected, found = bart.generate(**batch, **options), ours.generate(**batch, **options)
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(found.sequences_scores, expected.sequences_scores)


def test_training_draws_barts_dropout(monkeypatch):
    bart, ours, processor = stock()
    batch = processor(text=TEXTS)
    # For its layerdrop, the BART of older transformers draws one number more per layer. It drops no layer here.
    monkeypatch.setattr(torch, "rand", torch.ones)
    losses = []
    for model in (bart.train(), ours.train()):
        torch.manual_seed(5)
        losses.append(model(**batch, labels=batch["input_ids"]).loss)
    assert torch.equal(*losses)


# --- the visual embedding


def test_visual_embedding_is_its_equation():
    torch.manual_seed(0)
    module = VisualEmbedding(6, 8, 2).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    table = torch.nn.Embedding(50, 8).double()
    v, boxes = torch.randn(3, 2, 4, 6).double(), torch.rand(3, 2, 4, 4).double()
    p = dict(module.named_parameters())
    found = module(v, table, 50, boxes)
    for b, n, i in [(0, 0, 0), (1, 1, 3), (2, 0, 2)]:
        x1, x2, y1, y2 = boxes[b, n, i]
        five = torch.stack([x1, x2, y1, y2, (x2 - x1) * (y2 - y1)])
        feature = F.layer_norm(
            p["feature.0.weight"] @ v[b, n, i] + p["feature.0.bias"],
            (8,),
            p["feature.1.weight"],
            p["feature.1.bias"],
        )
        box = F.layer_norm(p["box.0.weight"] @ five + p["box.0.bias"], (8,), p["box.1.weight"], p["box.1.bias"])
        expected = feature + box + p["image.weight"][n] + table.weight[49 - i]
        torch.testing.assert_close(found[b, 4 * n + i], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(module(v, table, 50), module(v, table, 50, torch.zeros_like(boxes)))


def test_order_restarts_with_each_image(pair):
    model, _ = pair
    tokens = model.model.visual_embedding(torch.ones(1, 2, 4, 64), model.model.language_model.shared, 385)
    image = model.model.visual_embedding.image.weight
    torch.testing.assert_close(tokens[0, 4:] - tokens[0, :4], (image[1] - image[0]).expand(4, -1))


def test_encoder_reads_text_then_tokens(pair):
    """The encoder's input built by hand, its layers those of stock BART."""
    bart, ours, processor = stock()
    batch = processor(text=TEXTS[:1], images=[IMAGES[2]])
    visual = ours.model.get_image_features(batch["pixel_values"])
    assert visual.shape == (1, 2, 4, 64)
    encoder, ids = bart.model.encoder, batch["input_ids"]
    text = encoder.layernorm_embedding(bart.model.shared(ids) + encoder.embed_positions.weight[2 : 2 + ids.shape[1]])
    rows = len(processor.tokenizer)
    states = torch.cat([text, ours.model.visual_embedding(visual, bart.model.shared, rows)], 1)
    for layer in encoder.layers:
        states = layer(states, None)
    found = ours(**batch, decoder_input_ids=torch.tensor([[2, 0, 9]]))
    torch.testing.assert_close(found.encoder_last_hidden_state, states)
    answer = bart(encoder_outputs=(states,), decoder_input_ids=torch.tensor([[2, 0, 9]]))
    torch.testing.assert_close(found.logits, answer.logits)


def test_images_matter_and_so_does_their_order(pair):
    model, processor = pair
    ids = torch.tensor([[2, 0]])
    logits = [
        model(**processor(text=TEXTS[:1], images=[images] if images else None), decoder_input_ids=ids).logits
        for images in (IMAGES[2], IMAGES[2][::-1], IMAGES[2][:1], None)
    ]
    for i in range(4):
        for j in range(i):
            assert (logits[i] - logits[j]).abs().max() > 0.1


@torch.no_grad()
def test_features_computed_before_answer_alike(pair):
    model, processor = pair
    batch = processor(text=TEXTS[2:], images=IMAGES[2:])
    features = model.model.get_image_features(batch["pixel_values"])
    ids = torch.tensor([[2, 0, 9]])
    before = processor(text=TEXTS[2:], features=[features[0]])
    torch.testing.assert_close(
        model(**before, decoder_input_ids=ids).logits, model(**batch, decoder_input_ids=ids).logits
    )
    small, small_processor = small_vlbart(None)  # no tower at all
    assert find_parts(small).vision == ("model.vision_tower",)
    assert small(**before, decoder_input_ids=ids).logits.isfinite().all()
    with pytest.raises(MmdoraError, match="no image tower"):
        small(**small_processor(text=["a"], images=[picture(1)]), decoder_input_ids=ids)


@torch.no_grad()
def test_a_clip_is_one_token_per_frame(pair):
    model, processor = pair
    clips = [[picture(i) for i in range(4)], [picture(9), picture(8)]]
    batch = processor(text=TEXTS[:2], videos=clips)
    assert batch["pixel_values_videos"].shape == (2, 4, 3, 64, 64)
    assert batch["frame_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    features = [
        torch.stack([model.model.vision_tower.frames(batch["pixel_values_videos"][row, i][None])[0] for i in range(n)])
        for row, n in ((0, 4), (1, 2))
    ]
    before = processor(text=TEXTS[:2], features=features)
    assert before["visual_features"].shape == (2, 1, 6, 64)
    assert before["visual_features"][1, 0, 2:].abs().max() == 0
    ids = torch.tensor([[2, 0]] * 2)
    found, expected = (model(**inputs, decoder_input_ids=ids).logits for inputs in (batch, before))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_long_clips_are_max_pooled():
    frames = torch.randn(10, 3)
    pooled = as_clip(frames, 4)
    for i in range(4):
        window = frames[i * 10 // 4 : -(-(i + 1) * 10 // 4)]
        torch.testing.assert_close(pooled[i], window.amax(0))
    assert as_clip(frames[None], 4).shape == (1, 4, 3)


def test_loss_trains_the_projector(pair):
    model, processor = small_vlbart()
    batch = processor(text=TEXTS, images=IMAGES)
    labels = torch.tensor([[0, 10, 2], [0, 20, 2], [0, 2, -100]])
    found = model(**batch, labels=labels)
    expected = F.cross_entropy(found.logits[labels >= 0], labels[labels >= 0])
    torch.testing.assert_close(found.loss, expected)
    found.loss.backward()
    for name, parameter in model.model.visual_embedding.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0 or name == "box.0.weight"  # its input is zero for grids


def test_too_much_is_refused(pair):
    model, _ = pair
    ids = torch.tensor([[0, 5, 2]])
    for shape in [(1, 3, 4, 64), (1, 1, ORDER + 1, 64), (1, 1, 4, 63)]:
        with pytest.raises(MmdoraError, match="at most 2 of 24, of width 64"):
            model(input_ids=ids, visual_features=torch.zeros(shape))
    with pytest.raises(MmdoraError, match="7 frames; this model takes 6"):
        model(input_ids=ids, pixel_values_videos=torch.zeros(1, 7, 3, 64, 64))
    with pytest.raises(MmdoraError, match="give one of"):
        model(input_ids=ids, visual_features=torch.zeros(1, 1, 4, 64), pixel_values=torch.zeros(1, 1, 3, 64, 64))


def test_gradient_checkpointing_changes_nothing():
    model, processor = small_vlbart()
    batch = processor(text=TEXTS, images=IMAGES)
    grads = []
    for on in (False, True):
        model.train()
        model.zero_grad()
        if on:
            # the name changed within transformers 5
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        torch.manual_seed(1)
        model(**batch, labels=batch["input_ids"]).loss.backward()
        grads.append(model.model.visual_embedding.feature[0].weight.grad.clone())
    torch.testing.assert_close(*grads)


def test_parts(pair):
    expected = ModelParts(("model.vision_tower",), ("model.visual_embedding",), ("model.language_model", "lm_head"))
    assert find_parts(pair[0]) == expected
