"""Conversations to ids: masks that agree with the template's own, prompts equal in training and use."""

from importlib.metadata import version
from pathlib import Path
from random import Random

import pytest
import torch
from packaging.version import Version
from transformers import AutoProcessor

from mmdora.batches.fit import fit
from mmdora.errors import MmdoraError
from mmdora.families import Prompt, family_of
from mmdora.families.template import IGNORE, labels_of
from mmdora.records.images import FileRef, open_image
from mmdora.records.reader import read_records, write_records
from mmdora.records.record import check_record, qa_record
from mmdora.records.row import changed, row_of
from mmdora.records.turns import prompt_messages

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)  # no generation block, a blank after the end of a turn


@pytest.fixture(scope="module")
def processor(tiny_llava):
    return AutoProcessor.from_pretrained(tiny_llava)


def said(role, text):
    return {"role": role, "content": [{"type": "text", "text": text}]}


def learned(processor, batch, row):
    ids = batch["labels"][row]
    return processor.decode(ids[ids != IGNORE], skip_special_tokens=False)


def answers(record):
    return "".join(f" {m['content'][0]['text']}</s>" for m in record["messages"] if m["role"] == "assistant")


def test_labels_are_the_answers_and_their_ends(processor, scene_records):
    records = read_records(scene_records)
    batch = family_of(processor).batch(list(records))
    assert [learned(processor, batch, i) for i in range(len(records))] == [answers(r) for r in records]
    ids, labels = batch["input_ids"], batch["labels"]
    assert torch.equal(labels[labels != IGNORE], ids[labels != IGNORE])
    assert batch["pixel_values"].shape[0] == sum(len(r["images"]) for r in records) < len(records)


def test_prefix_rendering_agrees_with_the_generation_block(processor, scene_records):
    records = read_records(scene_records)
    for record in records:
        if not record["images"]:
            continue
        picture = open_image(record["images"][0])
        messages = [{**m, "content": [p | {"image": picture} if p["type"] == "image" else p for p in m["content"]]}
                    for m in record["messages"]]  # fmt: skip
        stock = processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
        )
        ours = family_of(processor).batch([record])
        assert torch.equal(stock["input_ids"], ours["input_ids"])
        assert learned(processor, ours, 0) == answers(record)
        # The mask of older versions is that of the text before its pictures became many tokens each.
        if Version(version("transformers")) >= Version("5.24"):
            assert torch.equal(torch.as_tensor(stock["assistant_masks"]).bool(), ours["labels"] != IGNORE)


def test_a_template_without_generation_block(processor, scene_records, tiny_llava):
    other = AutoProcessor.from_pretrained(tiny_llava)
    other.chat_template = CHATML
    record = read_records(scene_records)[0]
    batch = family_of(other).batch([record])
    expected = "".join(f"{m['content'][0]['text']}</s>" for m in record["messages"] if m["role"] == "assistant")
    assert learned(other, batch, 0) == expected


def test_what_follows_the_last_answer_is_not_learned(processor, scene_records):
    record = read_records(scene_records)[0]
    longer = changed(record, messages=[*record["messages"], said("user", "and now?")])
    batch = family_of(processor).batch([record, longer])
    assert learned(processor, batch, 1) == learned(processor, batch, 0) == answers(record)
    texts = [processor.decode(ids) for ids in batch["input_ids"]]
    assert "and now?" in texts[1] and "and now?" not in texts[0]


def test_a_template_that_rewrites_history_is_refused(processor, scene_records, tiny_llava):
    other = AutoProcessor.from_pretrained(tiny_llava)
    other.chat_template = "{{ messages | length }}" + CHATML
    record = read_records(scene_records)[0]
    with pytest.raises(MmdoraError, match="rewrites earlier turns"):
        family_of(other).render_with_answers(record["messages"])


def test_prompt_ids_are_equal_in_training_and_use_up_to_the_answer(processor, scene_records):
    records = [r for r in read_records(scene_records) if r["images"]]
    training = family_of(processor).batch(records)
    pictures = [[open_image(r["images"][0])] for r in records]
    prompts = [Prompt(prompt_messages(r), own) for r, own in zip(records, pictures, strict=True)]
    use = family_of(processor).encode_prompts(prompts)
    assert torch.equal(training["pixel_values"], use["pixel_values"])
    for row in range(len(records)):
        prompt = use["input_ids"][row][use["attention_mask"][row].bool()]
        masked = training["labels"][row] == IGNORE
        learned_at = (~masked).nonzero().flatten()
        # the last answer starts after the last masked token before the last learned one
        last_turn = masked[: learned_at[-1]].nonzero().flatten()[-1] + 1
        assert torch.equal(prompt, training["input_ids"][row][:last_turn]), row


def test_an_image_placeholder_in_a_text_is_refused(processor):
    messages = [{"role": "user", "content": [{"type": "text", "text": "what is <image>?"}]}]
    with pytest.raises(MmdoraError, match="placeholder"):
        family_of(processor).render(messages)


def test_a_row_without_anything_to_learn_is_an_error(processor, monkeypatch, scene_records):
    row = row_of(check_record({"messages": [said("user", "x"), said("assistant", "y")]}, "empty"), Path())
    monkeypatch.setattr("mmdora.families.learning.labels_of", lambda encoded, row, text, spans: [IGNORE] * 3)
    with pytest.raises(MmdoraError, match="record empty: no token to learn"):
        family_of(processor).batch([row])


def test_a_missing_image_names_its_record(processor, scene_records, tmp_path):
    row = changed(read_records(scene_records)[0], id="gone", images=[FileRef("gone.png", tmp_path)])
    with pytest.raises(MmdoraError, match=r"record gone: image 'gone\.png'"):
        family_of(processor).batch([row])


def test_counted_tokens_are_the_encoded_tokens(processor, scene_records):
    records = read_records(scene_records)
    batch = family_of(processor).batch(list(records))
    counted = family_of(processor).count_tokens(list(records))
    assert counted.tolist() == batch["attention_mask"].sum(1).tolist()


@pytest.mark.parametrize("policy", ["error", "drop", "shrink"])
def test_length_limits_never_cut_an_image(processor, scene_records, policy):
    records = read_records(scene_records)
    lengths = family_of(processor).count_tokens(list(records)).tolist()
    limit = sorted(lengths)[len(lengths) // 2]
    if policy == "error":
        with pytest.raises(MmdoraError, match=r"record scene-.* has .* tokens"):
            fit(records, family_of(processor), limit, policy)
        return
    rows = fit(records, family_of(processor), limit, policy)
    batch = family_of(processor).batch([rows[i] for i in range(len(rows))])
    assert batch["attention_mask"].sum(1).max() <= limit
    assert batch["attention_mask"].sum(1).tolist() == rows.lengths.tolist()
    assert rows.has_image.tolist() == [bool(rows[i]["images"]) for i in range(len(rows))]
    over = sum(length > limit for length in lengths)
    assert (rows.dropped, rows.shrunk, len(rows)) == ((over, 0, 24 - over) if policy == "drop" else (0, over, 24))
    images = (batch["input_ids"] == processor.image_token_id).sum(1)
    assert set(images.tolist()) <= {0, 64}


def test_a_first_turn_over_the_limit_cannot_shrink(processor, tmp_path: Path):
    from mmdora.data_prep import scenes

    things, picture = scenes.scene(Random(1))
    picture.save(tmp_path / "a.png")
    write_records(tmp_path / "r.jsonl", [qa_record("long", "a.png", scenes.conversation(Random(2), things))])
    with pytest.raises(MmdoraError, match=r"record long .*first turn alone"):
        fit(read_records(tmp_path / "r.jsonl"), family_of(processor), 20, "shrink")


def test_a_processor_that_writes_more_than_it_tells_is_refused():
    """Text that stands before an answer unseen would shift the labels; transformers before 5.23 has such processors."""
    encoded = {"input_ids": [[1, 2, 3]], "offset_mapping": [[(0, 4), (4, 8), (8, 11)]]}
    assert labels_of(encoded, 0, "aaaabbbbccc", [(8, 11)]) == [IGNORE, IGNORE, 3]
    with pytest.raises(MmdoraError, match="does not tell where"):
        labels_of(encoded, 0, "bbbbccc", [(4, 7)])
