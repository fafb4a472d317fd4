"""Writes an adapter alone, with a model card: as it was trained, or as vLLM serves it over its base."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import Tensor

from mmdora.adapt.plan import Plan
from mmdora.adapter_files.adapters import read_adapter
from mmdora.adapter_files.files import CONFIG, OURS, WEIGHTS, own_plan, write_facts
from mmdora.adapter_files.peft_config import write_peft_config
from mmdora.config import load_config
from mmdora.errors import MmdoraError
from mmdora.export import vllm_lora
from mmdora.export.card import adapter_card
from mmdora.export.facts import ExportFacts, licence_of, methods_of, run_facts, shown_base, token_facts, versions
from mmdora.export.place import beside, readable, writing
from mmdora.export.snippet import adapter_snippet
from mmdora.families import Family, family_of
from mmdora.files import write_json, write_whole
from mmdora.models.base import skeleton
from mmdora.models.chat_template import FILE as TEMPLATE
from mmdora.models.dtypes import DTYPES
from mmdora.models.load import load_processor
from mmdora.models.locate import RUN_CONFIG, Location, locate
from mmdora.outputs.folder import check_new_folder


def export_adapter(
    source: Path | str,
    out: Path | str,
    *,
    engine: Literal["vllm"] | None = None,
    scores: Mapping[str, Any] | None = None,
    say: Callable[[str], Any] = print,
) -> str | None:
    """Write the adapter of `source` to the new folder `out`, with a model card.

    Args:
        source: run folder or adapter folder, of mmdora or of PEFT.
        out: a new or empty folder. PEFT and mmdora load what is written there.
        engine: "vllm" folds the scaling of a LoRA into B; None leaves the files of the adapter as they are.
        scores: name -> number, text or numbers of an evaluation (`read_scores`), for the card.
        say: receives a line about what was written.

    Returns:
        For vLLM the command that serves it, else None.

    Raises:
        MmdoraError: there is no adapter, its files are damaged, or vLLM would not serve it as it was trained; the
            message names the merged export, which it serves.
    """
    out = Path(out)
    check_new_folder(out)
    location = locate(source)
    if location.adapter is None:
        raise MmdoraError(f"{source}: is no adapter; give a run folder or an adapter folder")
    plan, tensors = _read(location, location.adapter)
    family = family_of(load_processor(location.base, template=location.template))
    problem = None if engine is None else vllm_lora.unserved(plan) or vllm_lora.other_prompts(location, family)
    if problem:
        raise MmdoraError(
            f"{source}: vLLM would not serve this as trained: {problem}; merge it: mmdora export {source} OUT"
        )
    template = None if engine is None else _own_template(location, family)
    with beside(out) as folder, writing(out, sum(tensor.nbytes for tensor in tensors.values())):
        if engine is None:
            _copy(location.adapter, folder)
        else:
            plan, tensors = vllm_lora.folded(plan, tensors)
            _write_folded(location, plan, tensors, folder)
        if template is not None:
            write_whole(folder / TEMPLATE, template)
        served = None if engine is None else _served(shown_base(location.base), out.name, out.name, plan, template)
        facts = _facts(location, out.name, plan, tensors, dict(scores or {}))
        text = adapter_card(facts, adapter_snippet(out.name, sees=family.sees), sees=family.sees, serve=served)
        write_whole(folder / "README.md", text)
        readable(folder)
    if engine is None:
        say(f"{out}: {', '.join(methods_of(plan))} of {len(plan.entries)} modules, as trained")
        return None
    say(f"{out}: LoRA of {len(plan.entries)} modules, rank {plan.entries[0].rank}, its scaling folded into B")
    return _served(location.source, str(out.absolute()), out.name, plan, template)


def _read(location: Location, folder: Path) -> tuple[Plan, dict[str, Tensor]]:
    """The plan and the tensors of an adapter, checked against the modules of its base, of which no weight is read.

    Raises:
        MmdoraError: the files are damaged, or fit no module of the base.
    """

    def same(_: Any) -> Mapping[str, Any]:
        return own_plan(folder).fingerprint if (folder / OURS).exists() else {}

    return read_adapter(skeleton(location.base), folder, same)


def _copy(adapter: Path, folder: Path) -> None:
    for name in (WEIGHTS, CONFIG, OURS):
        # A plan of parts trained in full has no config of PEFT, and an adapter of PEFT has no file of ours.
        if (adapter / name).is_file():
            shutil.copyfile(adapter / name, folder / name)


def _write_folded(location: Location, plan: Plan, tensors: Mapping[str, Tensor], folder: Path) -> None:
    write_whole(folder / WEIGHTS, lambda path: save_file(dict(tensors), path, metadata={"format": "pt"}))
    ranks = {entry.name: entry.rank for entry in plan.entries}
    write_json(folder / CONFIG, write_peft_config(plan, ranks, [], base=location.base))
    assert location.adapter is not None
    if (location.adapter / OURS).exists():  # PEFT's adapters do not tell their base's values, so neither does this.
        write_facts(folder, plan, base=location.base, template=location.template)


def _own_template(location: Location, family: Family) -> str | None:
    """The chat template of the training, if it is not the one that the base's files hold."""
    template = family.processor.chat_template
    return None if template == load_processor(location.base).chat_template else template


def _served(base: str, folder: str, name: str, plan: Plan, template: str | None) -> str:
    file = None if template is None else f"{folder}/{TEMPLATE}"
    return vllm_lora.command(base, folder, name, plan.entries[0].rank, file)


def _facts(
    location: Location, name: str, plan: Plan, tensors: Mapping[str, Tensor], scores: dict[str, Any]
) -> ExportFacts:
    """The facts of an adapter's card."""
    config = load_config(location.run / RUN_CONFIG) if location.run else None
    dtypes = sorted(own for own, dtype in DTYPES.items() if any(tensor.dtype == dtype for tensor in tensors.values()))
    return ExportFacts(
        name=name,
        base=shown_base(location.base),
        licence=licence_of(location.source),
        dtype=", ".join(dtypes),
        plan=plan,
        run=run_facts(config),
        image_tokens=token_facts(location.image_tokens),
        scores=scores,
        parity={},
        versions=versions(),
    )
