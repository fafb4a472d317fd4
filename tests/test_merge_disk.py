"""Merged from disk is merged in memory, bit for bit; what cannot be sure says so; what is wrong is caught."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from shrunken import ROPE, TEXT, shrunken
from transformers import AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import mmdora
import mmdora.ops.merge
from mmdora import merge_disk, shards
from mmdora.errors import MmdoraError
from mmdora.export import _MergedModel
from mmdora.injectors import trainable_parameters
from mmdora.layout import save_checkpoint
from mmdora.merge_disk import DiskMerge
from mmdora.models.load import DTYPES
from mmdora.ops.reference import adapted_weight
from mmdora.parity import tensor_parity
from mmdora.shards import UnsureError

MOE = {
    "vision_config": {"depth": 2, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "image_size": 16},
    "text_config": {**TEXT, **ROPE, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20},
}
MOE["vision_config"] |= {"out_hidden_size": 24, "intermediate_size": 32}
MOE["text_config"] |= {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
QIANFAN = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
QIANFAN |= {"image_size": [8, 8], "patch_size": [4, 4]}

LANGUAGE = {"language": {"method": "dora", "rank": 4, "targets": ["attention", "mlp"]}}
ALL = {
    "vision": {"method": "lora", "rank": 2},
    "projector": {"method": "full"},
    "language": {"method": "dora", "rank": 4, "alpha": 12, "rslora": True, "targets": ["attention", "mlp"]},
}


def build(name: str, **changes: Any) -> Any:
    if name in ("glm4v_moe", "qianfan_ocr"):
        torch.manual_seed(0)
        sizes = MOE if name == "glm4v_moe" else {"vision_config": QIANFAN, "text_config": TEXT}
        return AutoModelForImageTextToText.from_config(CONFIG_MAPPING[name](**sizes)).eval()
    return shrunken(name, **changes)


def write_adapter(base: Path, adapt: dict[str, Any], folder: Path) -> Path:
    """An adapter of which every parameter was moved, magnitudes by about a third."""
    model: Any = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    mmdora.inject(model, adapt)
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter, _, kind in trainable_parameters(model):
            noise = torch.randn_like(parameter)
            parameter.mul_(1 + 0.3 * noise) if kind == "magnitude" else parameter.add_(0.02 * noise)
    mmdora.save_adapter(model, folder, base=str(base))
    return folder


def in_memory(base: Path, adapter: Path | None, dtype: str, folder: Path) -> Path:
    """As `export` does where it merges in memory."""
    model: Any = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    if adapter:
        mmdora.load_adapter(model, adapter)
    folder.mkdir()
    _MergedModel(model, base, dtype).write(folder)  # type: ignore[arg-type]
    return folder


def from_disk(base: Path, adapter: Path | None, dtype: str, folder: Path) -> DiskMerge:
    folder.mkdir()
    merge = DiskMerge(base, adapter, dtype)
    merge.write(folder)
    return merge


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def same_checkpoint(a: Path, b: Path) -> None:
    mine, other = tensors(a), tensors(b)
    assert mine.keys() == other.keys()
    assert all(mine[name].dtype == other[name].dtype and torch.equal(mine[name], other[name]) for name in mine)
    assert (a / "config.json").read_bytes() == (b / "config.json").read_bytes()
    for folder in (a, b):
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            read = json.loads(index.read_text())
            assert read["weight_map"].keys() == tensors(folder).keys()
            assert all((folder / name).is_file() for name in read["weight_map"].values())
            assert read["metadata"]["total_size"] == sum(t.nbytes for t in tensors(folder).values())
    opened: Any = AutoModelForImageTextToText.from_pretrained(a, output_loading_info=True)
    assert not any(opened[1][kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A LLaVA of several files in the hub's legacy layout, in bf16."""
    folder = tmp_path_factory.mktemp("llava")
    save_checkpoint(shrunken("llava").to(torch.bfloat16), folder, shard="6KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture(scope="module")
def llava_adapter(llava, tmp_path_factory):
    return write_adapter(llava, ALL, tmp_path_factory.mktemp("adapter"))


@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp16"])
def test_a_sharded_llava_in_the_hubs_layout(llava, llava_adapter, tmp_path, dtype):
    merge = from_disk(llava, llava_adapter, dtype, tmp_path / "disk")
    same_checkpoint(in_memory(llava, llava_adapter, dtype, tmp_path / "memory"), tmp_path / "disk")
    before, after = tensors(llava), tensors(tmp_path / "disk")
    changed = {name for name in before if not torch.equal(before[name].to(DTYPES[dtype]), after[name])}
    assert changed == merge.merged.keys() | merge.replaced.keys() and len(merge.merged) == 14 + 12
    if dtype == "bf16":  # files without a change are copies, and the others keep their headers
        untouched = [s for s in shards.read_shards(llava) if not changed & s.tensors.keys()]
        assert untouched and len(untouched) < len(merge.base.shards)
        assert all(s.path.read_bytes() == (tmp_path / "disk" / s.path.name).read_bytes() for s in untouched)
        for shard in merge.base.shards:
            head = (tmp_path / "disk" / shard.path.name).read_bytes()[: shard.data]
            assert head == shard.path.read_bytes()[: shard.data]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_tiny_llava_gives_the_very_file(tiny_llava, tmp_path, dtype):
    adapter = write_adapter(Path(tiny_llava), ALL, tmp_path / "adapter")
    from_disk(Path(tiny_llava), adapter, dtype, tmp_path / "disk")
    in_memory(Path(tiny_llava), adapter, dtype, tmp_path / "memory")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "disk" / name).read_bytes() == (tmp_path / "memory" / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "changes", "adapt"),
    [
        ("llava", {"tie_word_embeddings": True}, ALL),
        ("llava_next", {}, LANGUAGE),
        ("qwen2_5_vl", {}, ALL),
        ("qwen2_5_vl", {"tie_word_embeddings": True}, {"language": {"method": "full"}}),
        ("qwen3_vl", {}, ALL),
        ("gemma3", {}, {"vision": {"method": "full"}, "language": {"method": "magnitude"}}),
        ("idefics3", {}, ALL),
        ("internvl", {}, LANGUAGE),
        ("mllama", {}, LANGUAGE),
        ("glm4v_moe", {}, {"language": {"method": "dora", "rank": 2, "targets": ["attention"]}}),
        ("qianfan_ocr", {}, ALL | {"vision": {"method": "none"}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "tied" if value == {"tie_word_embeddings": True} else "",
)
def test_other_architectures(tmp_path, name, changes, adapt):
    """Bases as transformers saves them: in the layout of their hub, with fused experts taken apart."""
    model = build(name, **changes)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "base", max_shard_size="40KB")
    adapter = write_adapter(tmp_path / "base", adapt, tmp_path / "adapter")
    merge = from_disk(tmp_path / "base", adapter, "bf16", tmp_path / "disk")
    same_checkpoint(in_memory(tmp_path / "base", adapter, "bf16", tmp_path / "memory"), tmp_path / "disk")
    assert merge.merged or merge.replaced
    if changes:
        assert "lm_head.weight" in merge.base.model.all_tied_weights_keys


def test_a_base_in_the_layout_of_the_tree_is_renamed(tmp_path):
    """transformers would write what it loaded; engines do not know these names."""
    shrunken("llava").save_pretrained(tmp_path / "base", save_original_format=False, max_shard_size="60KB")
    adapter = write_adapter(tmp_path / "base", ALL, tmp_path / "adapter")
    from_disk(tmp_path / "base", adapter, "fp32", tmp_path / "disk")
    same_checkpoint(in_memory(tmp_path / "base", adapter, "fp32", tmp_path / "memory"), tmp_path / "disk")
    assert "language_model.model.layers.0.mlp.up_proj.weight" in tensors(tmp_path / "disk")
    assert "model.language_model.layers.0.mlp.up_proj.weight" in tensors(tmp_path / "base")


def test_a_convolution(llava, tmp_path):
    targets = ["patch_embedding", "fc1"]
    adapter = write_adapter(llava, {"vision": {"method": "dora", "rank": 2, "targets": targets}}, tmp_path / "adapter")
    merge = from_disk(llava, adapter, "bf16", tmp_path / "disk")
    assert any(entry.kind == "conv" for entry in merge.merged.values())
    same_checkpoint(in_memory(llava, adapter, "bf16", tmp_path / "memory"), tmp_path / "disk")
    tensor_parity(merge, tmp_path / "disk").check()


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_an_adapter_of_peft_is_merged_as_peft_merges_it(tmp_path, dora):
    model = shrunken("llava")
    save_checkpoint(model, tmp_path / "base")
    names = r".*language_model.*(q_proj|down_proj)"
    config = peft.LoraConfig(r=3, lora_alpha=7, use_dora=dora, target_modules=names, init_lora_weights=False)
    adapted: Any = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1.2)
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.warns(UserWarning, match="no fingerprint"):
        merge = from_disk(tmp_path / "base", tmp_path / "adapter", "fp32", tmp_path / "disk")
    assert len(merge.merged) == 4
    save_checkpoint(adapted.merge_and_unload(), tmp_path / "peft")
    mine, theirs = tensors(tmp_path / "disk"), tensors(tmp_path / "peft")
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert (mine[name] - theirs[name]).abs().max() <= 1e-6 * theirs[name].abs().max(), name
        assert name in merge.merged or torch.equal(mine[name], theirs[name])


def test_a_few_rows_at_a_time(llava, llava_adapter, tmp_path, monkeypatch):
    from_disk(llava, llava_adapter, "bf16", tmp_path / "whole")
    monkeypatch.setattr(mmdora.ops.merge, "ELEMENTS", 200)
    monkeypatch.setattr(mmdora.ops.merge, "STEP", 8)
    assert list(mmdora.ops.merge.pieces(28, 24)) == [(0, 8), (8, 16), (16, 28)]
    assert list(mmdora.ops.merge.pieces(5, 24)) == [(0, 5)]
    from_disk(llava, llava_adapter, "bf16", tmp_path / "pieces")
    same_checkpoint(tmp_path / "whole", tmp_path / "pieces")


def test_large_products_in_pieces_have_the_same_bits():
    """Odd sizes and remainders included; the pieces are those of a real merge."""
    torch.manual_seed(0)
    for rows, columns, rank in ((1537, 4096, 64), (1000, 11008, 16), (777, 9999, 17), (2049, 5120, 8)):
        weight, magnitude = 0.02 * torch.randn(rows, columns), 0.5 + torch.rand(rows)
        a, b = 0.01 * torch.randn(rank, columns), 0.01 * torch.randn(rows, rank)
        parts = list(mmdora.ops.merge.merged_rows(weight.bfloat16(), a, b, magnitude, 2.0))
        whole = adapted_weight(weight.bfloat16().float(), a, b, magnitude, 2.0)
        assert len(parts) > 1 and torch.equal(torch.cat(parts), whole)


def test_another_base_is_refused(llava, llava_adapter, tmp_path):
    other = shutil.copytree(llava, tmp_path / "other")
    path = next(p for p in other.glob("*.safetensors") if "multi_modal_projector.linear_1.weight" in load_file(p))
    changed = {name: tensor.clone() for name, tensor in load_file(path).items()}
    changed["multi_modal_projector.linear_1.weight"][0, 0] += 0.5
    save_file(changed, path, {"format": "pt"})
    with pytest.raises(MmdoraError, match=r"trained on another base: its .*linear_1\.weight has other values"):
        DiskMerge(other, llava_adapter, "bf16")
    shrunken("llava", seed=1).save_pretrained(tmp_path / "third")
    with pytest.raises(MmdoraError, match="has other values"):
        DiskMerge(tmp_path / "third", llava_adapter, "bf16")


# --- where it cannot be sure


def edit(folder: Path, change: Any) -> None:
    found = {name: tensor.clone() for name, tensor in tensors(folder).items()}
    for path in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
        path.unlink(missing_ok=True)
    change(found)
    save_file(found, folder / "model.safetensors", {"format": "pt"})


def no_safetensors(folder: Path) -> None:
    found = tensors(folder)
    edit(folder, lambda tensors: None)
    torch.save(found, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def a_cut_file(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-2])


def a_lost_file(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[0].unlink()


def quantised(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config))


HEAD, NORM = "language_model.lm_head.weight", "language_model.model.norm.weight"
ZEROS = "vision_tower.vision_model.post_layernorm.bias"
TREE_NORM = "model.language_model.norm.weight"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (no_safetensors, r"has no model\.safetensors"),
        (a_cut_file, "is cut off"),
        (a_lost_file, r"safetensors is missing"),
        (quantised, "the base is quantised"),
        (lambda f: edit(f, lambda t: t.pop(NORM)), r"no file holds model\.language_model\.norm\.weight"),
        (lambda f: edit(f, lambda t: t.update(stray=torch.ones(2))), "has no place for stray"),
        (lambda f: edit(f, lambda t: t.update({NORM: torch.ones(3)})), r"norm\.weight is \(3,\)"),
        (lambda f: edit(f, lambda t: t.update({NORM: t[NORM].double()})), "stored as F64"),
        (lambda f: edit(f, lambda t: t.update({TREE_NORM: t[NORM].clone()})), "are one tensor"),
    ],
)
def test_it_says_why_it_is_not_sure(llava, llava_adapter, tmp_path, damage, reason):
    base = shutil.copytree(llava, tmp_path / "base")
    damage(base)
    with pytest.raises(UnsureError, match=reason):
        DiskMerge(base, llava_adapter, "bf16")


def test_an_index_that_does_not_fit_its_files(llava, llava_adapter, tmp_path):
    base = shutil.copytree(llava, tmp_path / "base")
    index = json.loads((base / "model.safetensors.index.json").read_text())
    index["weight_map"].pop(NORM)
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsureError, match="does not name the tensors"):
        DiskMerge(base, llava_adapter, "bf16")


def test_tied_and_stored_twice(tmp_path):
    save_checkpoint(shrunken("llava", tie_word_embeddings=True), tmp_path)
    edit(tmp_path, lambda t: t.update({HEAD: t["language_model.model.embed_tokens.weight"].clone()}))
    with pytest.raises(UnsureError, match=r"lm_head\.weight is tied to .*embed_tokens\.weight and is stored"):
        DiskMerge(tmp_path, None, "fp32")


@pytest.mark.parametrize(
    ("name", "adapt", "reason"),
    [
        ("glm4v_moe", {"language": {"method": "full"}}, r"experts.* is computed from other tensors"),
        ("qianfan_ocr", {"vision": {"method": "lora", "rank": 2, "targets": ["q_proj"]}}, "q_proj.weight is computed"),
        ("llava", {"language": {"method": "lora", "rank": 2, "targets": ["embed_tokens"]}}, "an adapted embedding"),
    ],
)
def test_what_the_adapter_changes_must_be_in_the_files(tmp_path, name, adapt, reason):
    build(name).save_pretrained(tmp_path / "base")
    adapter = write_adapter(tmp_path / "base", adapt, tmp_path / "adapter")
    with pytest.raises(UnsureError, match=reason):
        DiskMerge(tmp_path / "base", adapter, "fp32")


def test_relics_that_transformers_ignores_are_copied(llava, llava_adapter, tmp_path):
    relic, numbers = "vision_tower.vision_model.embeddings.position_ids", torch.arange(5)[None]
    base = shutil.copytree(llava, tmp_path / "base")
    edit(base, lambda t: t.update({relic: numbers}))
    from_disk(base, llava_adapter, "fp32", tmp_path / "disk")
    assert torch.equal(tensors(tmp_path / "disk")[relic], numbers)


# --- the check, tensor by tensor


def forget_magnitudes(monkeypatch):
    whole = merge_disk.merged_rows
    monkeypatch.setattr(merge_disk, "merged_rows", lambda w, a, b, m, s: whole(w, a, b, None, s))


def round_twice(monkeypatch):
    whole = merge_disk.merged_rows
    monkeypatch.setattr(merge_disk, "merged_rows", lambda *parts: (piece.half().bfloat16() for piece in whole(*parts)))


def off_by_a_thousandth(monkeypatch):
    whole = merge_disk.merged_rows
    monkeypatch.setattr(merge_disk, "merged_rows", lambda *parts: (piece * 1.001 for piece in whole(*parts)))


def keep_the_full_part(monkeypatch):
    whole = DiskMerge._values

    def values(self, name):
        return whole(self, name) if name not in self.replaced else (self.base.tensors[name] for _ in range(1))

    monkeypatch.setattr(DiskMerge, "_values", values)


@pytest.mark.parametrize("mistake", [forget_magnitudes, round_twice, off_by_a_thousandth, keep_the_full_part])
def test_a_wrong_merge_is_caught(llava, llava_adapter, tmp_path, monkeypatch, mistake):
    merge = from_disk(llava, llava_adapter, "bf16", tmp_path / "right")
    parity = tensor_parity(merge, tmp_path / "right")
    parity.check()
    assert parity.beyond < 1e-6 and 1e-3 < parity.max_rel < 4e-3
    assert (parity.tensors, parity.merged) == (len(tensors(llava)), 26)
    mistake(monkeypatch)
    merge = from_disk(llava, llava_adapter, "bf16", tmp_path / "wrong")
    monkeypatch.undo()
    with pytest.raises(MmdoraError, match="the merged tensors are not the trained ones"):
        tensor_parity(merge, tmp_path / "wrong").check()


@pytest.mark.parametrize(("name", "value"), [(NORM, 1.01), (NORM, float("nan")), (ZEROS, 1e-4)])
def test_a_copied_tensor_that_changed_is_caught(llava, tmp_path, name, value):
    merge = from_disk(llava, None, "bf16", tmp_path / "disk")
    assert not tensors(llava)[ZEROS].any()
    tensor_parity(merge, tmp_path / "disk").check()
    edit(tmp_path / "disk", lambda t: t[name].fill_(value))
    with pytest.raises(MmdoraError, match="nothing was exported"):
        tensor_parity(merge, tmp_path / "disk").check()


def test_a_lost_tensor_is_caught(llava, tmp_path):
    merge = from_disk(llava, None, "bf16", tmp_path / "disk")
    edit(tmp_path / "disk", lambda t: t.pop(NORM))
    with pytest.raises(MmdoraError, match=r"does not load: no file holds model\.language_model\.norm"):
        tensor_parity(merge, tmp_path / "disk")


# --- files


def test_widths_are_aligned_and_metadata_kept(tmp_path):
    found = {"a": torch.arange(3, dtype=torch.int64), "b": torch.randn(3), "c": torch.ones(3, dtype=torch.uint8)}
    save_file(found, tmp_path / "in.safetensors", {"format": "pt", "by": "someone"})
    shard = shards.read_shard(tmp_path / "in.safetensors")
    names = {"a": "z", "b": "y", "c": 'ünï "x"'}
    dtypes = {"a": "I64", "b": "BF16", "c": "U8"}
    count: list[int] = []
    out = tmp_path / "out.safetensors"
    shards.write_shard(
        shard, out, names, dtypes, {"b": [found["b"][:1].bfloat16(), found["b"][1:].bfloat16()]}, count.append
    )
    assert sum(count) == out.stat().st_size
    written = shards.read_shard(out)
    assert written.metadata == {"format": "pt", "by": "someone"} and written.data % 8 == 0
    assert list(written.tensors) == ["z", "y", 'ünï "x"']
    read = load_file(out)
    assert torch.equal(read["z"], found["a"]) and torch.equal(read['ünï "x"'], found["c"])
    assert torch.equal(read["y"], found["b"].bfloat16())


def test_a_system_that_cannot_copy_from_file_to_file(llava, llava_adapter, tmp_path, monkeypatch):
    from_disk(llava, llava_adapter, "bf16", tmp_path / "fast")

    def refuse(*_: Any) -> int:
        raise OSError("not supported")

    monkeypatch.setattr("os.copy_file_range", refuse)
    monkeypatch.setattr(shards, "PIECE", 100)
    from_disk(llava, llava_adapter, "bf16", tmp_path / "slow")
    for path in (tmp_path / "fast").iterdir():
        assert path.read_bytes() == (tmp_path / "slow" / path.name).read_bytes()


MEASURE = """
import re, sys, threading, time
from pathlib import Path
from mmdora.merge_disk import DiskMerge
from mmdora.parity import tensor_parity
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
DiskMerge(Path(sys.argv[4]), None, "bf16")  # what is imported on first use is not the merge's
before, peak, done = anonymous(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.005)
thread = threading.Thread(target=watch)
thread.start()
merge = DiskMerge(Path(sys.argv[1]), Path(sys.argv[2]), "bf16")
merge.write(Path(sys.argv[3]))
tensor_parity(merge, Path(sys.argv[3])).check()
done = True
thread.join()
print(4 * merge.elements, peak - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_model(llava, tmp_path):
    text = {**TEXT, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 2, "head_dim": 512}
    model = shrunken("llava", text_config=text).to(torch.bfloat16)
    save_checkpoint(model, tmp_path / "base")
    adapt = {"language": {"method": "dora", "rank": 64, "targets": ["attention", "mlp"]}}
    mmdora.inject(model, adapt)
    mmdora.save_adapter(model, tmp_path / "adapter", base=str(tmp_path / "base"))
    (tmp_path / "out").mkdir()
    folders = [*(str(tmp_path / name) for name in ("base", "adapter", "out")), str(llava)]
    run = subprocess.run([sys.executable, "-c", MEASURE, *folders], capture_output=True, text=True, check=True)
    model_bytes, anonymous = map(int, run.stdout.split()[-2:])
    assert model_bytes > 115e6
    assert anonymous < 100e6, f"{anonymous / 1e6:.0f} MB"
