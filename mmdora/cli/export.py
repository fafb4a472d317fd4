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
    scores: list[Path] | None = None,
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
        Write the adapter alone, as it was trained, with a model card. With --for vllm: a LoRA with its scaling folded
        into B, to be served over its base; what vLLM would not serve as trained (DoRA, other parts than the language
        model) is refused.
    push_to_hub
        USER/NAME on the Hugging Face hub, to which the result is sent; needs `hf auth login` or HF_TOKEN.
    public
        Make that repository public; one that is there already stays what it is.
    preview
        With --push-to-hub: export, show the files and the card that would be sent, and send nothing.
    scores
        Result of `mmdora eval` for the card: metrics.json or its folder, one for each task; repeatable.
    """
    check_model(run)
    check_new_folder(out)
    if preview and not push_to_hub:
        raise MmdoraError("export: --preview shows what --push-to-hub USER/NAME would send; add that")
    how = {"dtype": dtype, "parity": parity, "requantize": requantize}
    if adapter:
        if for_ == "llama.cpp":
            raise MmdoraError("export: --for llama.cpp is for a merged checkpoint; leave it or --adapter out")
        _check_alone(how)
        _send_to(push_to_hub, run, adapter=True)
        _adapter_alone(run, out, for_, scores or [])
    else:
        _send_to(push_to_hub, run, adapter=False)
        _merged(run, out, how, for_, scores or [])
    if push_to_hub:
        from mmdora.export import hub

        print((hub.preview if preview else hub.push)(out, push_to_hub, private=not public))


def _check_alone(how: dict[str, Any]) -> None:
    if unused := [key for key, value in how.items() if value]:
        raise MmdoraError(f"export: --{unused[0]} is for a merged checkpoint; leave it or --adapter out")


def _send_to(repo: str | None, run: str, *, adapter: bool) -> None:
    """Check, before anything is written, that the result can be sent to `repo`."""
    if repo is None:
        return
    from mmdora.export import hub

    hub.check_repo(repo)
    if adapter:
        hub.check_base(run)


def _merged(run: str, out: Path, how: dict[str, Any], engine: str | None, scores: list[Path]) -> None:
    from mmdora.export.llama_cpp import llama_cpp_commands
    from mmdora.export.run import export as write
    from mmdora.export.scores import read_scores

    print(f"{out}: {write(run, out, scores=read_scores(scores), **how)}")
    if engine == "llama.cpp":
        print(llama_cpp_commands(out))
    elif engine == "vllm":
        print(shlex.join(["vllm", "serve", str(out.absolute())]))


def _adapter_alone(run: str, out: Path, engine: Literal["vllm"] | None, scores: list[Path]) -> None:
    from mmdora.export.adapter_alone import export_adapter
    from mmdora.export.scores import read_scores

    command = export_adapter(run, out, engine=engine, scores=read_scores(scores))
    if command:
        print(command)
