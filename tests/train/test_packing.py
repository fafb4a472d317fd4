"""Packed rows: every row has the loss it has alone, a model that mixes rows is refused, a run packs and resumes."""

import json
from itertools import pairwise

import pytest
import torch
from processors import qwen
from shrunken import ROPE, TEXT, shrunken
from tiny_run import config_of, curve, first_turns, held_out_of, same_run, silent, tree_for
from transformers import AutoProcessor

from mmdora.batches.fit import fit
from mmdora.batches.packing import PackedCollator, Packs
from mmdora.errors import MmdoraError
from mmdora.families import family_of
from mmdora.families.template import IGNORE
from mmdora.records.reader import read_records
from mmdora.train import train
from mmdora.train.loss import ChunkedLoss
from mmdora.train.packing import check_packing
from mmdora.train.steps import Steps

WORDS = 2100  # more than the small tokenizer has, with the words that a family adds


def llava(attention):
    processor = AutoProcessor.from_pretrained(_tiny())
    clip = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    clip |= {"model_type": "clip_vision_model", "image_size": 64, "patch_size": 8}
    model = shrunken(
        "llava",
        vision_config=clip,
        text_config=TEXT | {"vocab_size": WORDS},
        image_token_index=processor.image_token_id,
    )
    return _with(model, attention), processor


def qwen2_5_vl(attention):
    processor = qwen()
    words = {"video": "<|video_pad|>", "vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    ids = {f"{name}_token_id": processor.tokenizer.convert_tokens_to_ids(word) for name, word in words.items()}
    ids["image_token_id"] = processor.image_token_id
    text = TEXT | ROPE | {"vocab_size": WORDS, "bos_token_id": None, "eos_token_id": None}
    return _with(shrunken("qwen2_5_vl", text_config=text, **ids), attention), processor


def _tiny():
    from mmdora.models.locate import resolve

    return resolve("tiny-llava")


def _with(model, attention):
    model.set_attn_implementation(attention)
    return model


@pytest.fixture(scope="module")
def records(scene_records):
    return first_turns(scene_records, 18)


def packed(made, records, capacity):
    model, processor = made
    rows = fit(read_records(records), family_of(processor), capacity, "error")
    return model, PackedCollator(family_of(processor), model), Packs(rows, capacity, 0)


def loss_of(model, batch):
    batch.pop("samples", None)
    with torch.no_grad():
        return model(**batch).loss.item()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", [llava, qwen2_5_vl])
@pytest.mark.parametrize("flat", [False, True], ids=["rows", "flat"])
def test_every_row_has_the_loss_it_has_alone(family, attention, flat, records):
    model, collate, packs = packed(family(attention), records, 360)
    collate.flat = flat  # flash attention's form of a batch, which the others understand as well
    items = [packs[0], packs[len(packs) - 1]]
    batch = collate(items)
    labels = batch["labels"]
    assert batch["samples"] == len(items[0]) + len(items[1]) > 2
    assert len(labels) == (1 if flat else 2) and "attention_mask" not in batch
    start = 0
    for number, pack in enumerate(items):
        row, start = (0, start) if flat else (number, 0)
        for record in pack:
            single = collate.family.batch([record])
            mine = torch.full_like(labels, IGNORE)
            inside = slice(start, start := start + single["labels"].shape[1])
            mine[row, inside] = labels[row, inside]
            assert loss_of(model, {**batch, "labels": mine}) == pytest.approx(loss_of(model, single), rel=1e-5)
    together = collate.family.batch([record for pack in items for record in pack])
    assert loss_of(model, batch) == pytest.approx(loss_of(model, together), rel=1e-5)  # weighed per token
    assert ChunkedLoss(model).problem({k: v for k, v in batch.items() if k != "samples"}) is None


@pytest.mark.parametrize("family", [llava, qwen2_5_vl])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_model_that_keeps_rows_apart_passes(family, bf16, records):
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        check_packing(*packed(family("sdpa"), records, 360))


class Mixing(torch.nn.Module):
    """A convolution over neighbouring tokens, as recurrent layers have it: it knows no borders."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, states, **kwargs):
        return self.inner(states + 0.01 * torch.nn.functional.pad(states, (0, 0, 1, 0))[:, :-1], **kwargs)


def leaks(model):
    layers = model.model.language_model.layers
    layers[0].self_attn = _named(layers[0].self_attn)
    return model


def _named(attention):
    mixing = Mixing(attention)
    plain = mixing.forward
    mixing.forward = lambda hidden_states, **kwargs: plain(hidden_states, **kwargs)  # pyright: ignore
    return mixing


def counts_on(model):
    """Positions that are learned and do not begin anew with each row."""
    table = torch.nn.Parameter(torch.randn(4096, 24) / 5)
    language = model.model.language_model
    plain = language.forward

    def forward(*args, inputs_embeds, **kwargs):
        return plain(*args, inputs_embeds=inputs_embeds + table[: inputs_embeds.shape[1]], **kwargs)

    language.forward = forward
    return model


@pytest.mark.parametrize(
    ("break_", "bf16", "message"),
    [(leaks, False, "depends on another row"), (leaks, True, "depends on another row"), (counts_on, False, "alone")],
    ids=["leaks", "leaks in bf16", "positions"],
)
def test_a_model_that_mixes_rows_is_refused(break_, bf16, message, records):
    model, collate, packs = packed(llava("sdpa"), records, 360)
    refused = pytest.raises(MmdoraError, match=rf"data\.packing: .*{message}")
    with refused, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        check_packing(break_(model), collate, packs)


def packing_config(records, output, **training):
    tree = tree_for(records, output, evaluates=False, **({"save_every": 2} | training))
    tree["data"] |= {"packing": True, "max_length": 360, "eval": str(held_out_of(records)), "eval_rows": 2}
    tree["training"] |= {"batch_size": 1, "accumulation": 3, "steps": 5, "eval_every": 2}
    return config_of(tree)


def test_a_packed_run_resumes_bit_equal(records, tmp_path, monkeypatch):
    class StopError(Exception):
        pass

    whole = train(packing_config(records, tmp_path / "whole"), say=silent)
    logged = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    steps = [entry for entry in logged if "loss" in entry]
    assert [a["samples_per_step"] + b["samples_per_step"] for a, b in pairwise(steps[:3])] == [18, 18]  # an epoch
    assert all(
        0 < entry[f"{phase}_s"] < 60 for entry in steps for phase in ("data", "forward", "backward", "optimizer")
    )
    step = Steps.one_pass

    def stopping(self, *args, **kwargs):
        if self.progress.global_step == 3:
            raise StopError
        return step(self, *args, **kwargs)

    config = packing_config(records, tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(Steps, "one_pass", stopping)
        with pytest.raises(StopError):
            train(config, say=silent)
    run = train(config, resume=True, say=silent)
    assert curve(run) == curve(whole) and same_run(run, whole)
