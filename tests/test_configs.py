"""Every committed config loads, names itself in a runnable header, and plans what its file says."""

import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from shrunken import shrunken, shrunken_llama, shrunken_llava
from shrunken_vlbart import small_vlbart
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

from mmdora.adapt.inject import inject, make_plan, trainable_parameters
from mmdora.config import RunConfig, load_config
from mmdora.errors import MmdoraError
from mmdora.evaluate.tasks import TASKS
from mmdora.train.spread import blocks_of, check_sharded

ROOT = Path(__file__).parent.parent
ACCELERATE = sorted((ROOT / "configs/accelerate").glob("*.yaml"))  # for its launcher, not for mmdora
STUDIES = sorted((ROOT / "configs/study").glob("*.yaml"))  # for `mmdora study`; tests/study reads them
CONFIGS = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if path not in [*ACCELERATE, *STUDIES]]
LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


KINDS = {
    "Qwen/Qwen2.5-VL-7B-Instruct": "qwen2_5_vl",
    "Qwen/Qwen3-VL-8B-Instruct": "qwen3_vl",
    "OpenGVLab/InternVL3_5-8B-HF": "internvl",
    "google/gemma-3-4b-it": "gemma3",
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": "smolvlm",
    "HuggingFaceTB/SmolVLM-256M-Instruct": "smolvlm",
    "google/paligemma2-3b-pt-224": "paligemma",
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": "llava_onevision",
}
"""Base of a config -> its architecture."""


def full_size_llava() -> LlavaConfig:
    """llava-hf/llava-1.5-7b-hf, as its config.json states it (vocabulary without the added image tokens)."""
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
            projection_dim=768,
        ),
        text_config=LlamaConfig(vocab_size=32000, rms_norm_eps=1e-5, max_position_embeddings=4096),
        vision_feature_layer=-2,
    )


def shrunken_of(base: str) -> Any:
    """The architecture of a base (bundled, made by another recipe, or of the hub), a few layers small."""
    if base in KINDS:
        return shrunken(KINDS[base])
    if base == "yahma/llama-7b-hf":
        return shrunken_llama()
    if base == "tiny-vlbart" or "vlbart" in base:
        return small_vlbart(None if base.endswith("video") else "resnet")[0]
    if base in ("tiny-llava", "llava-hf/llava-1.5-7b-hf") or base.startswith("runs/"):
        return shrunken_llava(vision_feature_layer=-2 if base.startswith("llava-hf/") else -1)
    pytest.fail(f"no shrunken model for base {base}; add one here")


def targets(plan, modality):
    return Counter(entry.name.rpartition(".")[2] for entry in plan.entries if entry.modality == modality)


def check_launched(model: Any, config: RunConfig) -> None:
    """Each way to launch several processes takes the config, or refuses it in one line for its reason.

    Where parameters are sharded, blocks have to be there that can be gathered one at a time.
    """
    assert blocks_of(model), f"{type(model).__name__} names no blocks, so FSDP2 would gather all of it at once"
    if config.model.quantize is None and not config.data.stream:
        return check_sharded(config)
    with pytest.raises(MmdoraError, match=r"^(a quantised base|data\.stream) cannot be used with FSDP or DeepSpeed.*$"):
        check_sharded(config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_loads_with_a_runnable_header_and_plans(path):
    name = path.relative_to(ROOT).as_posix()
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    commands = [line.lstrip("# ") for line in header if "mmdora train " in line]
    assert commands, f"{name}: no header line '# mmdora train {name}'"
    words = shlex.split(commands[0])
    assert words[:3] == ["mmdora", "train", name]
    config = load_config(path, words[3:])
    sources = config.data.sources.values()
    for given in (*(path for s in sources for path in (s.train, s.eval, s.images)), config.training.output):
        assert given is None or not given.is_absolute()
    assert all(source.eval_task in TASKS for source in sources)
    model = shrunken_of(config.base)
    plan = make_plan(model, config.adapt)
    check_launched(model, config)
    for row in plan.by_modality():
        section = getattr(config.adapt, row.modality)
        assert row.method.partition("+")[0] == section.method  # and how many tensors train beside
        assert (row.trainable > 0) == (section.method != "none")
        if section.method in ("lora", "dora") and section.rank:
            assert {e.rank for e in plan.entries if e.modality == row.modality} == {section.rank}


@pytest.mark.parametrize("method", ["dora", "lora"])
def test_llava_1_5_is_the_papers_recipe(method):
    config = load_config(ROOT / f"configs/llava_1.5_7b_{method}.yaml")
    plan = make_plan(shrunken_of(config.model.base), config.adapt)
    assert targets(plan, "language") == dict.fromkeys(LLAMA, 2)
    assert not targets(plan, "vision") and not targets(plan, "projector")
    assert sorted(plan.full) == [
        f"model.multi_modal_projector.linear_{i}.{part}" for i in (1, 2) for part in ("bias", "weight")
    ]
    assert {(e.method, e.rank, e.alpha, e.scaling, e.dropout) for e in plan.entries} == {(method, 128, 256, 2.0, 0.05)}
    training = config.training
    assert training.batch_size * training.accumulation == 128
    assert (training.lr, config.adapt.projector.lr, training.schedule, training.warmup) == (2e-4, 2e-5, "cosine", 0.03)
    assert (training.precision, training.gradient_checkpointing, training.epochs) == ("bf16", True, 1)
    assert (config.data.max_length, config.data.group_by_length) == (2048, True)


def test_the_two_llava_recipes_differ_in_the_method_only():
    lora, dora = (load_config(ROOT / f"configs/llava_1.5_7b_{method}.yaml").to_dict() for method in ("lora", "dora"))
    for tree in (lora, dora):
        del tree["adapt"]["language"]["method"], tree["training"]["output"]
    assert lora == dora


@pytest.mark.parametrize("method", ["dora", "lora"])
def test_the_papers_start_is_all_that_differs_from_a_tuned_llava(method):
    paper, tuned = (
        load_config(ROOT / f"configs/{name}_{method}.yaml").to_dict() for name in ("paper/llava", "llava_1.5_7b")
    )
    assert paper["model"].pop("base") == "runs/paper/llava_start"  # of mmdora.models.llava.from_parts
    for tree in (paper, tuned):
        tree["model"].pop("base", None)
        del tree["training"]["output"]
    assert paper == tuned


def test_a_llava_of_ones_own_has_llavas_two_stages():
    one, two = (load_config(ROOT / f"configs/compose_llava{stage}.yaml") for stage in ("", "_2"))
    assert one.model.compose is not None and one.base == "runs/compose-llava-1/base"
    assert two.base == "runs/compose-llava-1/merged"
    assert [one.adapt.vision.method, one.adapt.projector.method, one.adapt.language.method] == ["none", "full", "none"]
    training = one.training
    assert (training.batch_size * training.accumulation, training.lr, training.epochs) == (256, 1e-3, 1)
    tuned = load_config(ROOT / "configs/llava_1.5_7b_dora.yaml")
    assert {**vars(two.training), "output": ""} == {**vars(tuned.training), "output": ""}
    assert (two.adapt.projector, two.adapt.language.rank) == (tuned.adapt.projector, 128)


def test_qwen_adapts_language_and_merger_but_not_the_tower():
    config = load_config(ROOT / "configs/qwen2_5_vl_dora.yaml")
    plan = make_plan(shrunken_of(config.model.base), config.adapt)
    assert targets(plan, "language") == dict.fromkeys(LLAMA, 2)
    assert [e.name for e in plan.entries if e.modality == "projector"] == [
        "model.visual.merger.mlp.0",
        "model.visual.merger.mlp.2",
    ]
    assert not targets(plan, "vision") and not plan.full


@pytest.mark.parametrize(("method", "magnitudes", "share"), [("lora", 0, 461), ("dora", 1_359_872, 463)])
def test_llava_1_5_7b_has_the_papers_parameter_counts(method, magnitudes, share, monkeypatch):
    for check in ("fingerprint", "check_usable"):  # They want values, of which a model on meta has none.
        monkeypatch.setattr(f"mmdora.adapt.inject.{check}", lambda model: {})
    config = load_config(ROOT / f"configs/llava_1.5_7b_{method}.yaml")
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(full_size_llava())
        assert sum(p.numel() for n, p in model.named_parameters() if "vision_tower" in n) == 303_507_456
        plan = inject(model, config.adapt)
    counts: Counter[str] = Counter()
    for _, parameter, _, kind in trainable_parameters(model):
        counts[kind] += parameter.numel()
    assert counts["low_rank"] == 319_815_680
    assert counts["full"] == 20_979_712
    assert counts["magnitude"] == magnitudes
    assert plan.trainable == sum(counts.values())
    # of the adapted model, tower included; the paper's table cuts 4.616 to 4.61 instead of rounding it
    assert int(10_000 * plan.trainable / plan.total) == share


def test_the_launchers_take_the_lines_of_the_docs():
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import config_from_args, get_args_parser

    page = (ROOT / "docs/processes.md").read_text().replace("\\\n", " ").replace('"$SLURM_NNODES"', "2")
    lines = [line[line.index(name) :] for line in page.splitlines() for name in ("torchrun ", "accelerate launch ")
             if " -m mmdora train CONFIG" in line and name in line]  # fmt: skip
    assert len(lines) == 6
    for line in lines:
        launcher, *words = shlex.split(line)
        if launcher == "torchrun":
            config, command, arguments = config_from_args(get_args_parser().parse_args(words))
            assert config.max_nodes == (2 if "--nnodes" in line else 1) and config.nproc_per_node in (2, 8)
            assert command == sys.executable and arguments[:4] == ["-u", "-m", "mmdora", "train"]
        else:
            args = launch_command_parser().parse_args(words[1:])
            assert args.module and args.training_script == "mmdora" and (ROOT / args.config_file).is_file()
            assert args.num_processes == (8 * args.num_machines if args.num_machines else None)


@pytest.mark.parametrize(("name", "rank", "lr", "share"), [("dora", 32, 1e-4, 84), ("dora_half", 16, 2e-4, 43),
                                                          ("lora", 32, 3e-4, 83)])  # fmt: skip
def test_llama_7b_is_the_papers_recipe(name, rank, lr, share, monkeypatch):
    """Table 8 of the paper; the shares of trained parameters are those of its table 1."""
    for check in ("fingerprint", "check_usable"):
        monkeypatch.setattr(f"mmdora.adapt.inject.{check}", lambda model: {})
    config = load_config(ROOT / f"configs/paper/llama_7b_{name}.yaml")
    with torch.device("meta"):
        plan = make_plan(LlamaForCausalLM(LlamaConfig(vocab_size=32000)), config.adapt)
    assert targets(plan, "language") == dict.fromkeys(["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"], 32)
    assert {(e.rank, e.alpha, e.scaling, e.dropout) for e in plan.entries} == {(rank, 2 * rank, 2.0, 0.05)}
    assert round(10_000 * plan.trainable / plan.total) == share
    training = config.training
    assert (training.lr, training.schedule, training.warmup, training.epochs) == (lr, "linear", 100, 3)
    assert (training.batch_size * training.accumulation, training.optimizer) == (16, "adamw")
    assert config.data.max_length == 256


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_accelerate_takes_its_configs(path, monkeypatch):
    """By its own parser and launcher, up to the environment that the processes would get."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    header = [line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#")]
    (command,) = [line for line in header if line.startswith("accelerate launch ")]
    words = shlex.split(command)
    assert words[3] == path.relative_to(ROOT).as_posix() and words[4:7] == ["-m", "mmdora", "train"]
    assert any("run" in line.lower() for line in header)  # what was and was not run
    settings: Any = load_config_from_file(str(path))
    eight = path.stem.startswith("8_gpus")
    assert settings.num_processes == (8 if eight else 1) and settings.mixed_precision == "no"
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("accelerate.commands.launch.is_deepspeed_available", lambda: True)
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words[2:]))
    assert args.module and args.training_script == "mmdora" and args.training_script_args[0] == "train"
    expected = {"8_gpus_fsdp2": "use_fsdp", "8_gpus_zero2": "use_deepspeed", "8_gpus_zero3": "use_deepspeed",
                "8_gpus_ddp": "multi_gpu"}.get(path.stem)  # fmt: skip
    assert {name for name in ("use_fsdp", "use_deepspeed", "multi_gpu") if getattr(args, name)} == {expected} - {None}
    if path.stem == "8_gpus_fsdp2":
        environment = prepare_multi_gpu_env(args)
        assert environment["FSDP_VERSION"] == "2" and environment["ACCELERATE_USE_FSDP"] == "true"
    load_config(ROOT / words[7], words[8:])
