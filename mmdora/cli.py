"""The command line: every command is a thin call of a function that Python users can call too.

Rooms are imported inside the commands, so that `mmdora --help` does not wait for torch.
"""

from __future__ import annotations

import difflib
import pkgutil
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

import mmdora
from mmdora.errors import Interrupted, MmdoraError

Overrides = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]
Flag = Parameter(negative=())


def _config_help(*args: Any) -> None:
    from mmdora.config_help import draw

    draw(*args)


app = App(
    name="mmdora",
    version=mmdora.__version__,
    help="Adapt vision-language models with DoRA and LoRA, modality by modality.\n\nStart with `mmdora quickstart`.",
    default_parameter=Parameter(negative_iterable=()),
    suppress_keyboard_interrupt=False,
)


@app.command(sort_key=1)
def quickstart(
    *overrides: Overrides,
    out: Path = Path("runs/quickstart"),
    limit: int | None = None,
    demo: bool = True,
    port: int = 7860,
) -> None:
    """Adapt, evaluate, export and compare a real VLM on a laptop, in minutes.

    Takes the bundled tiny-llava, fine-tunes it on easy-VQA with LoRA and with DoRA, evaluates all
    three on the whole test split, exports both as merged checkpoints, writes a report and opens a
    page where the three answer side by side. What is complete is reused; Ctrl-C is safe.

    Config overrides, as in `mmdora train`, apply to both runs: `--training.steps 50`.

    Example: `mmdora quickstart --no-demo`

    Parameters
    ----------
    out
        Folder for data, runs, checkpoints and report.html.
    limit
        Evaluate on the first N test questions only (a rehearsal; the report says so).
    demo
        Open the page at the end.
    port
        Port of the page on 127.0.0.1.
    """
    from mmdora.quickstart import quickstart as run

    run(out, overrides=overrides, limit=limit, port=port if demo else None)


@app.command(sort_key=2)
def inspect(model: str, /, *overrides: Overrides, config: Path | None = None) -> None:
    """Show a model's parts, what a config would train in it, and the memory that takes.

    Reads the model's config only: no weights are loaded, nothing is trained.

    Example: `mmdora inspect tiny-llava --config configs/tiny/dora.yaml --adapt.language.rank 16`

    Parameters
    ----------
    model
        Bundled name, hub id or checkpoint folder.
    config
        Config whose `adapt` section is planned; config overrides may follow.
    """
    from mmdora import overview
    from mmdora.config import load_config

    if config is None and overrides:
        raise MmdoraError(f"{overrides[0]}: config overrides need --config")
    overview.show_model(model, load_config(config, overrides) if config else None)


@app.command(sort_key=3, help_formatter=_config_help)
def train(
    config: Path,
    /,
    *overrides: Overrides,
    resume: Annotated[list[Path] | None, Parameter(consume_multiple=(0, 1))] = None,
    allow_changes: Annotated[bool, Flag] = False,
    dry_run: Annotated[bool, Flag] = False,
) -> None:
    """Train adapters as a config file says, and write a run folder.

    Every config key can be overridden on the command line. The resolved config is saved in the run
    folder (`training.output`), beside the plan, the log, TensorBoard files, checkpoints and adapter.

    SIGTERM and Ctrl-C finish the step in hand, save a checkpoint and exit with 143 or 130; a second
    Ctrl-C stops at once. A resumed run repeats the undisturbed one bit for bit (on a CPU).

    Examples: `mmdora train configs/tiny/dora.yaml --adapt.language.rank 16`;
    `mmdora train configs/tiny/dora.yaml --resume`

    Parameters
    ----------
    config
        YAML file with the sections model, adapt, data, training.
    resume
        Continue from the newest whole checkpoint, or from the one given.
    allow_changes
        Resume although config, data or base are not those of the stopped run.
    dry_run
        Show the plan and one decoded batch with its loss mask; train nothing.
    """
    from mmdora.config import load_config

    settings = load_config(config, overrides)
    if dry_run:
        from mmdora import overview

        return overview.show_batch(settings)
    from mmdora.train import train as run

    folder = run(settings, resume=resume[0] if resume else resume is not None, allow_changes=allow_changes)
    print(f"done: {folder}; next: mmdora eval {folder} --data RECORDS.jsonl, or mmdora export {folder} OUT")


@app.command(name="eval", sort_key=4)
def evaluate(
    *models: str,
    data: Path,
    images: Path | None = None,
    out: Path | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    trust_remote_code: Annotated[bool, Flag] = False,
) -> None:
    """Score models by the answers they generate; several models give one table.

    Example: `mmdora eval base=tiny-llava dora=runs/dora --data data/test.jsonl --limit 500`

    Parameters
    ----------
    models
        Bundled names, hub ids, checkpoint, adapter or run folders; NAME=MODEL gives a name.
    data
        JSONL of records; the last answer of each is the reference.
    images
        Root of the image paths; default: the folder of the records.
    out
        Folder for predictions.jsonl and metrics.json of each model.
    limit
        Score the first N records only.
    batch_size
        Questions per forward pass.
    trust_remote_code
        Run code that a checkpoint brings along.
    """
    import torch
    from rich.console import Console

    from mmdora.data.records import read_records
    from mmdora.evaluate.run import evaluate as score
    from mmdora.models.load import load
    from mmdora.report import Row, scores_table

    records = read_records(data, images)
    chosen = [records[i] for i in range(min(limit or len(records), len(records)))]
    rows = []
    for name, path in _named(models).items():
        device = "cuda" if torch.cuda.is_available() else None
        model, processor = load(path, device=device, trust_remote_code=trust_remote_code)
        folder = out / name if out else None
        scores = score(model, processor, chosen, records.root, batch_size=batch_size, out=folder, progress=True)
        rows.append(Row(name, scores.to_dict()))
    Console().print(scores_table(rows))


@app.command(sort_key=5)
def export(
    run: str,
    out: Path,
    /,
    *,
    dtype: Literal["fp32", "bf16", "fp16"] | None = None,
    parity: Literal["logits", "tensors"] | None = None,
    for_: Annotated[Literal["llama.cpp"] | None, Parameter(name="--for")] = None,
) -> None:
    """Merge an adapter into its base and write an ordinary checkpoint.

    Merges tensor by tensor from the base's files, without loading the model; in memory where that
    cannot be, and says why. Merges in fp32, rounds once, checks that the result is what was
    trained, and fails if it is not. Stock transformers and serving engines load it.

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
    for_
        Print the commands that convert the result for this engine.
    """
    from mmdora.export import export as write
    from mmdora.export import llama_cpp_commands

    print(f"{out}: {write(run, out, dtype=dtype, parity=parity)}")
    if for_:
        print(llama_cpp_commands(out))


@app.command(sort_key=6)
def demo(*models: str, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Open a page where one to four models answer the same question side by side.

    Example: `mmdora demo base=tiny-llava lora=runs/quickstart/export/lora dora=runs/quickstart/export/dora`

    Parameters
    ----------
    models
        NAME=MODEL, with a bundled name, hub id, checkpoint, adapter or run folder.
    host
        Address to listen on.
    port
        Port to listen on.
    """
    from mmdora.demo.app import serve

    serve(list(models), host=host, port=port)


prep = App(
    name="prep",
    help="Turn a public dataset into records: mmdora prep NAME --in FILES --images DIR --out DIR.",
    sort_key=7,
)
app.command(prep)
DATASETS = tuple(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / "data_prep")]))
for _name in DATASETS:
    prep.command(f"mmdora.data_prep.{_name}:prepare", name=_name.replace("_", "-"))


@prep.default
def prep_list(*unknown: Overrides, list: Annotated[bool, Flag] = False) -> None:
    """Turn a public dataset into records: `mmdora prep NAME --in FILES --images DIR --out DIR`.

    Without a name: the list. Example: `mmdora prep llava --in llava_v1_5_mix665k.json --images DIR --out data/llava`

    Parameters
    ----------
    list
        List the datasets with licence and source.
    """
    if unknown:
        known = [name.replace("_", "-") for name in DATASETS]
        close = difflib.get_close_matches(unknown[0], known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        raise MmdoraError(f"prep: no dataset {unknown[0]!r}; {hint}")
    for name in DATASETS:
        module = import_module(f"mmdora.data_prep.{name}")
        print(f"{module.NAME:<14} {module.LICENCE}\n{'':<14} {module.SOURCE}")
        for note in module.UNVERIFIED:
            print(f"{'':<14} unverified: {note}")


@app.command(sort_key=8)
def env() -> None:
    """Print versions and devices, for bug reports."""
    from mmdora.env import collect

    for name, value in collect().items():
        print(f"{name:<14} {value}")


def _named(models: Iterable[str]) -> dict[str, str]:
    """NAME=MODEL or MODEL, which is then named by its last part."""
    named: dict[str, str] = {}
    for spec in models:
        name, joined, path = spec.partition("=")
        name, path = (name, path) if joined else (Path(spec).name, spec)
        if not name or not path or name in named:
            raise MmdoraError(f"{spec!r}: give each model its own name, as in base=tiny-llava dora=runs/dora")
        named[name] = path
    if not named:
        raise MmdoraError("eval: name at least one model")
    return named


def main(tokens: Iterable[str] | None = None) -> int:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    try:
        result = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        if isinstance(result, dict):  # what a dataset's `prepare` wrote
            print(", ".join(f"{split}: {count:,} records" for split, count in result.items()))
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return stopped.code
    except (MmdoraError, CycloptsError) as error:
        return _fail(str(error))
    except OSError as error:
        if error.errno is None:  # not from the operating system
            raise
        return _fail(f"{error.filename or 'input/output'}: {error.strerror}")
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    return 0


def _fail(message: str) -> int:
    print(f"mmdora: error: {' '.join(message.split())}", file=sys.stderr)
    return 2
