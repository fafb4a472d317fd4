"""The command line: every command is a thin call of a function that Python users can call too.

Rooms are imported inside the commands, so that `mmdora --help` does not wait for torch.
"""

from __future__ import annotations

import difflib
import os
import pkgutil
import signal
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter, validators

import mmdora
from mmdora.errors import Interrupted, MmdoraError

Overrides = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]
Flag = Parameter(negative=())
Count = Annotated[int, Parameter(validator=validators.Number(gte=1))]


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
    family: Literal["llava", "vl-bart"] = "llava",
    out: Path | None = None,
    limit: int | None = None,
    demo: bool = True,
    port: int = 7860,
) -> None:
    """Adapt, evaluate, export and compare a real VLM on a laptop, in minutes.

    Takes the bundled tiny-llava, fine-tunes it on easy-VQA with LoRA and with DoRA, evaluates all
    three on the whole test split, exports both as merged checkpoints, writes a report and opens a
    page where the three answer side by side. What is complete is reused; Ctrl-C is safe.

    With `--family vl-bart` it is tiny-vlbart, on three tasks at once: easy-VQA, captions of drawn scenes,
    and statements on two pictures.

    Config overrides, as in `mmdora train`, apply to both runs: `--training.steps 50`.

    Example: `mmdora quickstart --no-demo`

    Parameters
    ----------
    family
        Which base is adapted, and to what.
    out
        Folder for data, runs, checkpoints and report.html; default runs/quickstart, or runs/quickstart-vl-bart.
    limit
        Evaluate on the first N test questions of each task only (a rehearsal; the report says so).
    demo
        Open the page at the end.
    port
        Port of the page on 127.0.0.1.
    """
    from mmdora.quickstart import quickstart as run

    run(out, family=family, overrides=overrides, limit=limit, port=port if demo else None)


@app.command(sort_key=2)
def inspect(
    model: str,
    /,
    *overrides: Overrides,
    config: Path | None = None,
    data: Path | None = None,
    images: Path | None = None,
    trust_remote_code: Annotated[bool, Flag] = False,
) -> None:
    """Show a model's parts, what a config would train in it, and the memory that takes.

    Reads the model's config only: no weights are loaded, nothing is trained.

    With --data, instead: how long the rows of a file are in this model's tokens, the share of its images,
    the rows over the config's limit, and the padding that batches, grouping and packing would have.

    Examples: `mmdora inspect tiny-llava --config configs/tiny/dora.yaml --adapt.language.rank 16`;
    `mmdora inspect tiny-llava --data data/train.jsonl`

    Parameters
    ----------
    model
        Bundled name, hub id or checkpoint folder.
    config
        Config whose `adapt` section is planned; config overrides may follow.
    data
        Records to survey, with max_length, image_tokens and batch_size of the config.
    images
        Root of the image paths of --data; default: the config's, else the folder of the records.
    trust_remote_code
        Run code that the checkpoint brings along.
    """
    from mmdora import overview
    from mmdora.config import load_config

    if config is None and overrides:
        raise MmdoraError(f"{overrides[0]}: config overrides need --config")
    settings = load_config(config, overrides) if config else None
    if data is not None:
        return overview.show_data(model, data, images, settings, trust_remote_code=trust_remote_code)
    overview.show_model(model, settings, trust_remote_code=trust_remote_code)


@app.command(sort_key=3, help_formatter=_config_help)
def train(
    config: Path,
    /,
    *overrides: Overrides,
    resume: Annotated[list[Path] | None, Parameter(consume_multiple=(0, 1))] = None,
    allow_changes: Annotated[bool, Flag] = False,
    dry_run: Annotated[bool, Flag] = False,
    trust_remote_code: Annotated[bool, Flag] = False,
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
    trust_remote_code
        Run code that the base brings along.
    """
    from mmdora.config import load_config

    settings = load_config(config, overrides)
    if dry_run:
        from mmdora import overview

        return overview.show_batch(settings, trust_remote_code=trust_remote_code)
    from mmdora.train import train as run

    folder = run(
        settings,
        resume=resume[0] if resume else resume is not None,
        allow_changes=allow_changes,
        trust_remote_code=trust_remote_code,
    )
    if os.environ.get("RANK", "0") == "0":  # of the processes of a launcher, one speaks
        print(f"done: {folder}; next: mmdora eval {folder} --data RECORDS.jsonl, or mmdora export {folder} OUT")


@app.command(name="eval", sort_key=4)
def evaluate(
    *models: str,
    data: Path | None = None,
    task: str | None = None,
    suite: str | None = None,
    split: str | None = None,
    images: Path | None = None,
    out: Path = Path("runs/eval"),
    limit: Count | None = None,
    batch_size: Count = 64,
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
    scores: list[str] | None = None,
    list: Annotated[bool, Flag] = False,
    trust_remote_code: Annotated[bool, Flag] = False,
) -> None:
    """Score models by the answers they generate, as papers do; several models give one table.

    Writes predictions.jsonl, the dataset's official result file, metrics.json and errors.html for each model. What
    a killed run has answered is taken up by the same command. Under `accelerate launch` processes share the work.

    Examples: `mmdora eval base=tiny-llava dora=runs/dora --data data/easy-vqa`;
    `mmdora eval runs/llava-dora --suite paper-llava --data data --dtype fp16`; `mmdora eval --list`

    Parameters
    ----------
    models
        Bundled names, hub ids, checkpoint, adapter or run folders; NAME=MODEL gives a name.
    data
        Folder that `mmdora prep` wrote, or a file of records; of a suite: the folder of its tasks' folders.
    task
        How to ask and score; default: what the data's card names, else exact match.
    suite
        Columns of a paper's table: paper-llava, paper-vlbart-image or paper-vlbart-video.
    split
        Of the folder; default: the one that papers report.
    images
        Root of the image paths; default: the card's, else the folder of the records.
    out
        Folder for the results, in TASK/MODEL (of another split in TASK-SPLIT, of a rehearsal in TASK-first-N).
    limit
        Score the first N records only (a rehearsal).
    batch_size
        Questions per forward pass.
    dtype
        Of the weights.
    scores
        A server's score for a column of the suite, in percent: vqav2=78.6, or MODEL:vqav2=78.6; repeatable.
    list
        List tasks and suites.
    trust_remote_code
        Run code that a checkpoint brings along.
    """
    if list:
        from mmdora.evaluate.listing import show

        return show()
    if data is None:
        raise MmdoraError("eval: say what to evaluate on with --data")
    if suite and (task or split or images):
        raise MmdoraError("eval: --suite chooses tasks, splits and images itself; drop --task, --split, --images")
    if scores and not suite:
        raise MmdoraError("eval: --scores enters a server's score into a suite's table; add --suite")
    from mmdora.evaluate import command
    from mmdora.evaluate.source import find

    settings = command.Settings(out, limit, batch_size, dtype, trust_remote_code)
    if suite:
        command.run_suite(_named(models), suite, data, settings, scores or ())
    else:
        command.run_task(_named(models), find(data, task, split=split, images=images), settings)


@app.command(sort_key=5)
def export(
    run: str,
    out: Path,
    /,
    *,
    dtype: Literal["fp32", "bf16", "fp16"] | None = None,
    parity: Literal["logits", "tensors"] | None = None,
    for_: Annotated[Literal["llama.cpp"] | None, Parameter(name="--for")] = None,
    push_to_hub: str | None = None,
    public: Annotated[bool, Flag] = False,
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
    push_to_hub
        USER/NAME on the Hugging Face hub, to which the result is sent; needs `hf auth login` or HF_TOKEN.
    public
        Make that repository public; one that is there already stays what it is.
    """
    from mmdora.export import export as write
    from mmdora.export import llama_cpp_commands
    from mmdora.hub import check_repo, push

    if push_to_hub:
        check_repo(push_to_hub)
    print(f"{out}: {write(run, out, dtype=dtype, parity=parity)}")
    if for_:
        print(llama_cpp_commands(out))
    if push_to_hub:
        print(push(out, push_to_hub, private=not public))


@app.command(sort_key=6)
def demo(
    *models: str,
    host: str = "127.0.0.1",
    port: int = 7860,
    auth_file: Path | None = None,
    insecure: Annotated[bool, Flag] = False,
    share: Annotated[bool, Flag] = False,
    queue: Count = 64,
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
    device: str | None = None,
    shared_base: Annotated[bool, Flag] = False,
    votes: Path | None = None,
    results: Path | None = None,
) -> None:
    """Open a page where one to four models answer the same question side by side.

    Examples: `mmdora demo base=tiny-llava lora=runs/quickstart/export/lora dora=runs/quickstart/export/dora`;
    `mmdora demo dora=out/dora served=openai:http://127.0.0.1:8000/v1#out/dora`

    Parameters
    ----------
    models
        NAME=MODEL, with a bundled name, hub id, checkpoint, adapter or run folder; or NAME=openai:URL#MODEL, a server.
    host
        Address to listen on; other than this machine only with --auth-file or --insecure.
    port
        Port to listen on.
    auth_file
        Logins, NAME:PASSWORD a line.
    insecure
        Let other machines in without a login.
    share
        Serve under a public address, through Gradio's tunnel.
    queue
        Questions waiting or running at most; one more is told that the page is busy.
    dtype
        Of the weights.
    device
        Of the models, such as cpu or cuda:1; default: the GPU if there is one.
    shared_base
        Hold one base for all adapters on it, and switch them between answers.
    votes
        Append votes of blind comparisons to this JSONL file, with questions and answers, without addresses.
    results
        Folder with the runs and evaluations that "Look inside" shows, such as runs/quickstart.
    """
    from mmdora.demo.server import serve

    serve(
        models,
        host=host,
        port=port,
        auth_file=auth_file,
        insecure=insecure,
        share=share,
        queue=queue,
        dtype=dtype,
        device=device,
        shared_base=shared_base,
        votes=votes,
        results=results,
    )


@app.command(sort_key=6.2)
def verify(
    model: str,
    /,
    *,
    server: str,
    data: Path | None = None,
    images: Path | None = None,
    limit: Count = 16,
    max_tokens: Count = 64,
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
) -> None:
    """Ask a checkpoint and its server the same questions, and name the first difference.

    Example: `mmdora verify exports/dora --server http://127.0.0.1:8000/v1`

    Parameters
    ----------
    model
        The exported folder, opened here.
    server
        URL of an OpenAI-compatible server (vLLM, SGLang), http://HOST:PORT/v1, with #NAME if it serves several models.
    data
        Records whose first questions are asked; default: pictures of the easy-VQA test split.
    images
        Root of the image paths of --data.
    limit
        Questions at most.
    max_tokens
        Of an answer.
    dtype
        Of the weights here: the server's, for equal answers.
    """
    from mmdora.verify import summary
    from mmdora.verify import verify as run

    print(summary(run(model, server, data=data, images=images, limit=limit, max_new_tokens=max_tokens, dtype=dtype)))


@app.command(sort_key=6.5)
def analyze(*runs: str, out: Path | None = None) -> None:
    """Show how far training moved each weight in magnitude and in direction, by modality and layer.

    The weight-decomposition analysis of the DoRA paper, for LoRA, DoRA and full fine-tuning, over all checkpoints
    of each run. Reads files only, a tensor at a time; no model is loaded. Writes decomposition.csv, pictures and
    analysis.html.

    Example: `mmdora analyze runs/quickstart/lora runs/quickstart/dora --out runs/analysis`

    Parameters
    ----------
    runs
        Run folders or adapter folders, PEFT's too; NAME=RUN gives a name.
    out
        Folder to write to; default: `analysis` in the run, or runs/analysis for several.
    """
    if not runs:
        raise MmdoraError("analyze: name at least one run folder, or an adapter's")
    from rich.console import Console

    from mmdora.analysis import run as analysis
    from mmdora.analysis.findings import correlations, verdicts
    from mmdora.analysis.table import analysis_table

    named = _named(runs)
    out = out or (Path("runs/analysis") if len(named) > 1 else Path(*named.values()) / "analysis")
    rows = analysis.analyze(named, out=out)
    console = Console()
    console.print(analysis_table(rows))
    for line in verdicts(correlations(rows)):
        console.print(line, markup=False, highlight=False)
    console.print(f"{out / 'analysis.html'}", markup=False, highlight=False)


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
        raise MmdoraError("name at least one model")
    return named


def main(tokens: Iterable[str] | None = None) -> int:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    try:
        result = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        if isinstance(result, dict):  # what a dataset's `prepare` wrote
            print(", ".join(f"{split}: {count:,} records" for split, count in result.items()))
    except Interrupted as stopped:
        if not stopped.told:
            print(stopped, file=sys.stderr)
        return stopped.code
    except MmdoraError as error:
        return 2 if error.told else _fail(str(error))
    except CycloptsError as error:
        return _fail(str(error))
    except BrokenPipeError:  # who reads the output, such as `head`, has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno is None:  # not from the operating system
            raise
        return _fail(f"{error.filename or 'input/output'}: {error.strerror}")
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    return 0


def _fail(message: str) -> int:
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))
    print(f"mmdora: error: {shown}", file=sys.stderr)  # a file's control characters are no terminal's
    return 2
