"""`mmdora export`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from mmdora.cli.app import Flag, app
from mmdora.cli.named import check_model
from mmdora.errors import MmdoraError
from mmdora.outputs.folder import check_new_folder


@app.command(sort_key=5)
def export(
    run: str,
    out: Path,
    /,
    *,
    dtype: Literal["fp32", "bf16", "fp16"] | None = None,
    parity: Literal["logits", "tensors"] | None = None,
    requantize: Annotated[bool, Flag] = False,
    for_: Annotated[Literal["llama.cpp", "vllm"] | None, Parameter(name="--for")] = None,
    adapter: Annotated[bool, Flag] = False,
    push_to_hub: str | None = None,
    public: Annotated[bool, Flag] = False,
    preview: Annotated[bool, Flag] = False,
) -> None:
    """Merge an adapter into its base and write an ordinary checkpoint.

    Merges tensor by tensor from the base's files, without loading the model; in memory where that cannot be, and
    says why. Merges in fp32, rounds once, checks that the result is what was trained, and fails if it is not.

    Example: `mmdora export runs/dora exports/dora --dtype bf16`

    Parameters
    ----------
    run
        Run folder, adapter folder, or a plain checkpoint.
    out
        New or empty folder.
    dtype
        Of the written weights; default: that of the base.
    parity
        Check the logits of both models, or every tensor without loading a model. Default: logits
        where the model in fp32 takes at most 1/8 of the available memory.
    requantize
        Quantise the merged weights again, as the base was for training, and say what that lost.
    for_
        Print the commands that convert the result for llama.cpp, or serve it by vLLM.
    adapter
        With --for vllm: write the LoRA alone, with its scaling folded into B, to be served over its base. What vLLM
        would not serve as trained (DoRA, other parts than the language model) is refused.
    push_to_hub
        USER/NAME on the Hugging Face hub, to which the result is sent; needs `hf auth login` or HF_TOKEN.
    public
        Make that repository public; one that is there already stays what it is.
    preview
        With --push-to-hub: export, show the files and the card that would be sent, and send nothing.
    """
    check_model(run)
    check_new_folder(out)
    if preview and not push_to_hub:
        raise MmdoraError("export: --preview shows what --push-to-hub USER/NAME would send; add that")
    if adapter:
        others = {
            "--dtype": dtype,
            "--parity": parity,
            "--requantize": requantize or None,
            "--push-to-hub": push_to_hub,
        }
        return _adapter_alone(run, out, for_, others)
    how: dict[str, Any] = {"dtype": dtype, "parity": parity, "requantize": requantize}
    _merged(run, out, how, for_, push_to_hub, "preview" if preview else "public" if public else "private")


def _merged(run: str, out: Path, how: dict[str, Any], engine: str | None, repo: str | None, way: str) -> None:
    """Export, and send it to `repo` in one of the ways: private, public, or only as a preview."""
    from mmdora.export import hub
    from mmdora.export.run import export as write

    if repo:
        hub.check_repo(repo)
    print(f"{out}: {write(run, out, **how)}")
    if engine:
        print(_next_commands(out, engine))
    if repo:
        send = hub.preview if way == "preview" else hub.push
        print(send(out, repo, private=way != "public"))


def _next_commands(out: Path, engine: str) -> str:
    from mmdora.export.llama_cpp import llama_cpp_commands

    return llama_cpp_commands(out) if engine == "llama.cpp" else shlex.join(["vllm", "serve", str(out.absolute())])


def _adapter_alone(run: str, out: Path, engine: str | None, others: dict[str, Any]) -> None:
    if engine != "vllm":
        raise MmdoraError("export: --adapter writes a LoRA alone for an engine that serves it so; add --for vllm")
    if unused := [option for option, value in others.items() if value is not None]:
        raise MmdoraError(f"export: {unused[0]} is for a merged checkpoint; leave it or --adapter out")
    from mmdora.export.adapter_alone import export_adapter

    print(export_adapter(run, out))
