"""bf16 in two processes over gloo, with DDP and FSDP2, is bf16 in one process; either goes on where another stopped."""

from __future__ import annotations

import functools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from processes import FSDP2, finished, launched, of_the_launcher
from safetensors.torch import load_file
from tiny_run import config_of, curve, first_turns, silent, tree_for
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import LlavaForConditionalGeneration as Llava
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from mmdora.adapt.inject import make_plan
from mmdora.errors import MmdoraError
from mmdora.families import family_of
from mmdora.models.base import skeleton
from mmdora.models.load import load_processor
from mmdora.train import train
from mmdora.train.memory import Estimate, estimate, typical_batch
from mmdora.train.saving import Checkpoints
from mmdora.train.sharded import local
from mmdora.train.spread import Spread, per_device

ADAPTER = "adapter/adapter_model.safetensors"
CLOSE = 2**-8
"""What losses may differ by, relative: half a step of bf16, in which products are rounded. Where parameters are
sharded, a micro-batch of text has a masked row beside it, so a product has other rows and sums in another order."""


@pytest.fixture(scope="module")
def records(scene_records: Path) -> Path:
    """Eight rows, one of them text only."""
    return first_turns(scene_records, 8)


def tree(records: Path, output: Path, **training: Any) -> dict[str, Any]:
    """Two steps of four rows on a base in bf16, with a projector that is trained whole."""
    options = {"evaluates": False, "precision": "bf16", "steps": 2, "save_every": 1} | training
    found = tree_for(records, output, **options)
    found["model"] = {"base": "tiny-llava", "dtype": "bf16"}
    found["adapt"]["language"] |= {"dropout": 0.0, "method": "lora"}
    found["adapt"]["language"].pop("magnitude_lr")
    return found


def two(values: dict[str, Any], *more: str, fsdp: bool = False) -> Path:
    """Train in two processes with half the accumulation; each notes the dtypes it computes and reduces in."""
    output = Path(values["training"]["output"])
    values["training"] |= {"accumulation": 1}
    settings = of_the_launcher(FSDP2) if fsdp else {}
    (path := output.with_suffix(".yaml")).write_text(yaml.safe_dump(values))

    def before(index: int) -> None:
        os.environ |= {name: value for name, value in settings.items() if "FSDP" in name}
        write_result, whole = Checkpoints.write_result, _count_whole()

        def noting(self, folder, best):
            model = self.trained.model
            trained = [p for p in model.parameters() if p.requires_grad]
            sharded: list[Any] = [module for module in model.modules() if isinstance(module, FSDPModule)]
            frozen = [p for p in model.parameters() if not p.requires_grad]
            states = self.trained.optimizer.state.values()
            moments = [value for state in states for value in state.values() if value.ndim]
            found = {
                "dtypes": {str(p.dtype) for p in trained},
                "kinds": {type(p.data).__name__ for p in trained},
                "summed in": {str(module._get_fsdp_state()._mp_policy.reduce_dtype) for module in sharded},
                "gathered": {type(module).__name__ for module in sharded},
                "bytes": [
                    _bytes(frozen),
                    _bytes(trained),
                    _bytes(moments),
                ],
                "whole": [max(whole, default=0)],
                "buckets": list(getattr(self.trained.wrapped, "_get_ddp_logging_data", dict)().items()),
            }
            (output.parent / f"{output.name}-{index}.json").write_text(json.dumps({k: [*v] for k, v in found.items()}))
            write_result(self, folder, best)

        Checkpoints.write_result = noting

    told = output.parent / f"{output.name}-told"
    codes = finished(launched(["train", str(path), *more], told, 2, before))
    assert codes == [0, 0], [(told / f"{index}.stderr").read_text()[-3000:] for index in range(2)]
    return output


def _bytes(tensors: Any) -> int:
    """What this process holds of tensors."""
    return sum(local(tensor.detach()).nbytes for tensor in tensors)


def _count_whole() -> list[int]:
    """Bytes of the parameters that are whole, each time that a block of the language model computes."""
    forward, block, models, found = Llava.forward, LlamaDecoderLayer.forward, [], []

    def of_model(self, *args, **kwargs):
        models[:] = [self]
        return forward(self, *args, **kwargs)

    def of_block(self, *args, **kwargs):
        if models:
            found.append(sum(p.nbytes for p in models[0].parameters() if not isinstance(p, DTensor)))
        return block(self, *args, **kwargs)

    Llava.forward, LlamaDecoderLayer.forward = functools.wraps(forward)(of_model), functools.wraps(block)(of_block)
    return found


def noted(run: Path) -> list[dict[str, Any]]:
    return [json.loads((run.parent / f"{run.name}-{index}.json").read_text()) for index in (0, 1)]


def losses(run: Path) -> list[float]:
    return [entry["loss"] for entry in curve(run) if "loss" in entry]


def same(ours: Path, theirs: Path) -> None:
    assert losses(ours) == pytest.approx(losses(theirs), rel=CLOSE)
    one, other = (load_file(run / ADAPTER) for run in (ours, theirs))
    assert one.keys() == other.keys() and {tensor.dtype for tensor in one.values()} == {torch.float32}
    # AdamW makes as much of a gradient that is mostly rounding as of a large one, so single values may differ by whole
    # updates. All together, what was learned since B was 0 is the same.
    learned, expected = (
        torch.cat([run[key].flatten() for key in sorted(run) if "lora_B" in key]) for run in (one, other)
    )
    assert torch.cosine_similarity(learned, expected, dim=0) > 0.95 and expected.norm() > 0


def rewound(run: Path, output: Path) -> Path:
    """A copy of a run as it was after its first step."""
    shutil.copytree(run, output, ignore=shutil.ignore_patterns("checkpoint-2", "complete.json", "adapter"))
    return output


@pytest.fixture(scope="module")
def alone(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(config_of(tree(records, tmp_path_factory.mktemp("alone") / "run")), say=silent)


@pytest.fixture(scope="module")
def sharded(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two(tree(records, tmp_path_factory.mktemp("sharded") / "run"), fsdp=True)


def estimated(records: Path, strategy: Any) -> Estimate:
    """What `mmdora inspect` says of each of two devices."""
    config, model = config_of(tree(records, Path("run"), accumulation=1)), skeleton("tiny-llava", dtype="bf16")
    batch = typical_batch(family_of(load_processor("tiny-llava")), config)
    alone = estimate(model, make_plan(model, config.adapt), config, batch)
    return per_device(alone, model, config, Spread(2, strategy))


def test_two_processes_are_one(records: Path, alone: Path, tmp_path: Path) -> None:
    run = two(tree(records, tmp_path / "run"))
    same(run, alone)
    expected = estimated(records, "ddp")
    for found in noted(run):
        assert found["bytes"] == [sum(part.values()) for part in (expected.frozen, expected.trained, expected.moments)]
        assert sum(map(int, dict(found["buckets"])["bucket_sizes"].split(","))) == expected.sent


def test_the_estimate_counts_what_each_of_two_sharded_processes_holds(records: Path, sharded: Path) -> None:
    expected, found = estimated(records, "fsdp2"), noted(sharded)
    for number, part in enumerate((expected.frozen, expected.trained, expected.moments)):
        # The first process has the larger part where a parameter cannot be halved.
        assert found[0]["bytes"][number] == sum(part.values()) >= found[1]["bytes"][number]
    for one in found:
        assert 0.6 * expected.gathered < one["whole"][0] <= expected.gathered


def test_sharded_processes_are_one(alone: Path, sharded: Path) -> None:
    same(sharded, alone)
    for found in noted(sharded):
        assert (found["dtypes"], found["kinds"], found["summed in"]) == (
            ["torch.float32"],
            ["DTensor"],
            ["torch.float32"],
        )
        assert {"FSDPLlamaDecoderLayer", "FSDPCLIPEncoderLayer"} <= set(found["gathered"])


@pytest.mark.slow
def test_one_process_goes_on_where_sharded_ones_stopped(records: Path, alone: Path, sharded: Path, tmp_path: Path):
    run = rewound(sharded, tmp_path / "run")
    same(train(config_of(tree(records, run)), resume=True, say=silent), alone)


@pytest.mark.slow
def test_sharded_processes_go_on_where_one_stopped(records: Path, alone: Path, tmp_path: Path) -> None:
    run = rewound(alone, tmp_path / "run")
    same(two(tree(records, run), "--resume", fsdp=True), alone)


def test_an_evaluation_answers_under_the_runs_autocast(records: Path, tmp_path: Path) -> None:
    """Generation calls parts of the model, whose weights are of two dtypes, without the model's own forward."""
    values = tree(records, tmp_path / "run", evaluates=True, steps=1, eval_every=1)
    values["data"]["eval_generate_rows"] = 1
    run = train(config_of(values), say=silent)
    assert '"eval_score"' in (run / "log.jsonl").read_text()


def test_fp16_beside_bf16_is_refused(records: Path, tmp_path: Path) -> None:
    values = tree(records, tmp_path / "run")
    values["model"]["dtype"] = "fp16"
    with pytest.raises(MmdoraError, match=r"precision bf16 cannot compute with a base in model\.dtype fp16, .*; set"):
        config_of(values)
