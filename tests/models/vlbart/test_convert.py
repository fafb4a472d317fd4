"""VL-Adapter's checkpoints: a small file in that layout, its names written out here."""

import sys

import pytest
import torch
from shrunken_vlbart import ORDER, picture, small_bart, small_tokenizer, small_vlbart

import mmdora
from mmdora.errors import MmdoraError
from mmdora.models.vlbart import convert as vlbart_convert
from mmdora.models.vlbart.convert import convert

VISUAL = "model.encoder.visual_embedding."


@pytest.fixture(scope="module")
def trained():
    """What the file was made of: its BART and its visual embedding."""
    return small_vlbart(seed=8)


def state_of(model):
    """The state_dict of VL-Adapter's VLBart: stock BART's names, the visual embedding inside the encoder."""
    bart = small_bart()
    bart.resize_token_embeddings(model.final_logits_bias.shape[1], mean_resizing=False)
    bart.model.load_state_dict(model.model.language_model.state_dict())
    bart.final_logits_bias.copy_(torch.randn_like(bart.final_logits_bias))
    state = dict(bart.state_dict())
    embedding = model.model.visual_embedding
    for index in (0, 1):
        for leaf in ("weight", "bias"):
            state[f"{VISUAL}feat_embedding.{index}.{leaf}"] = getattr(embedding.feature[index], leaf).data
            state[f"{VISUAL}absolute_vis_pos_embedding.{index}.{leaf}"] = getattr(embedding.box[index], leaf).data
    state[f"{VISUAL}img_order_embedding.weight"] = embedding.image.weight.data
    state[f"{VISUAL}obj_order_embedding.weight"] = state["model.shared.weight"]
    return state


@torch.no_grad()
@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "distributed"])
def test_a_checkpoint_comes_over_whole(tmp_path, trained, wrapped):
    source, _ = trained
    state = state_of(source)
    torch.save({f"module.{name}": value for name, value in state.items()} if wrapped else state, tmp_path / "BEST.pth")
    model, processor = small_vlbart(seed=1)
    convert(tmp_path / "BEST.pth", model)
    assert torch.equal(model.final_logits_bias, state["final_logits_bias"])
    source.final_logits_bias.copy_(state["final_logits_bias"])
    source.model.vision_tower.load_state_dict(model.model.vision_tower.state_dict())
    batch = processor(text=["what?", "b"], images=[[picture(1), picture(2)], [picture(3)]])
    ids = torch.tensor([[2, 0, 9]] * 2)
    found, expected = (m(**batch, decoder_input_ids=ids).logits for m in (model, source))
    assert torch.equal(found, expected)
    assert model.lm_head.weight is model.model.language_model.shared.weight


def test_lora_is_merged(tmp_path, trained):
    state = state_of(trained[0])
    name = "model.decoder.layers.1.encoder_attn.q_proj"
    down, up = torch.randn(4, 32), torch.randn(32, 4)
    for task in ("vqa", "gqa"):
        state |= {f"{name}.lora_As.{task}": down, f"{name}.lora_Bs.{task}": up}
    torch.save(state, tmp_path / "LAST.pth")
    model, _ = small_vlbart()
    with pytest.raises(MmdoraError, match="lora_alpha"):
        convert(tmp_path / "LAST.pth", model)
    convert(tmp_path / "LAST.pth", model, lora_alpha=8)
    merged = model.get_submodule("model.language_model.decoder.layers.1.encoder_attn.q_proj").weight
    torch.testing.assert_close(merged.data, state[f"{name}.weight"] + 8 / 4 * up @ down)
    state[f"{name}.lora_Bs.gqa"] = up + 1
    torch.save(state, tmp_path / "LAST.pth")
    with pytest.raises(MmdoraError, match="another LoRA for each task"):
        convert(tmp_path / "LAST.pth", model, lora_alpha=8)


def test_what_does_not_fit_is_refused(tmp_path, trained):
    whole = state_of(trained[0])
    file = tmp_path / "x.pth"
    changes = {
        "lacks model.visual_embedding.image.weight": {f"{VISUAL}img_order_embedding.weight": None},
        "has what VL-BART lacks: .*adapter": {"model.encoder.layers.0.attn_adapter.weight": torch.zeros(2)},
        r"feature.0.weight is \[32, 5\]": {f"{VISUAL}feat_embedding.0.weight": torch.zeros(32, 5)},
        "differs from the token table": {"lm_head.weight": torch.zeros(385, 32)},
    }
    model, _ = small_vlbart()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for problem, change in changes.items():
        state = {name: value for name, value in (whole | change).items() if value is not None}
        torch.save(state, file)
        with pytest.raises(MmdoraError, match=problem):
            convert(file, model)
    for content, problem in (([1, 2], "not a state_dict"), (None, "not a readable")):
        torch.save(content, file) if content else file.write_bytes(b"PK")
        with pytest.raises(MmdoraError, match=problem):
            convert(file, model)
    with pytest.raises(MmdoraError, match="not a readable"):
        convert(tmp_path / "none.pth", model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_code_in_a_file_does_not_run(tmp_path):
    class Bad:
        def __reduce__(self):
            return (exec, ("raise SystemExit('ran')",))

    torch.save({"model.shared.weight": Bad()}, tmp_path / "bad.pth")
    with pytest.raises(MmdoraError, match="not a readable"):
        convert(tmp_path / "bad.pth", small_vlbart()[0])


@torch.no_grad()
def test_from_files_to_a_folder(tmp_path, monkeypatch):
    small_bart(2).save_pretrained(tmp_path / "bart")
    small_tokenizer().save_pretrained(tmp_path / "bart")
    state = state_of(small_vlbart(None, seed=8)[0])
    table = torch.randn(261 + 200, 32)  # with all the tokens VL-BART adds
    state |= {name: table for name, value in state.items() if value.shape == (261 + 100 + ORDER, 32)}
    torch.save(state | {"final_logits_bias": torch.zeros(1, 461)}, tmp_path / "BEST.pth")
    files = [str(tmp_path / name) for name in ("BEST.pth", "out")]
    options = ["--bart", str(tmp_path / "bart"), "--features", "64"]
    monkeypatch.setattr(sys, "argv", ["vlbart_convert", *files, *options])
    vlbart_convert.main()
    loaded, processor = mmdora.load(tmp_path / "out")
    assert processor.prompt("a?", "gqa") == "gpa: a?"
    assert torch.equal(loaded.model.language_model.shared.weight, table)
    assert loaded.generate(**processor(text="a?", features=torch.ones(1, 36, 64), task="vqa")).shape[0] == 1
