"""The whole experiment as frozen, self-validating dataclasses; YAML and dotted overrides on top.

This file is a leaf: it knows no torch and no other room. `load_config` is the only way a file
becomes a `RunConfig`; `Modality` also validates the dicts given to `mmdora.inject`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import ConfigDict, Field, StrictBool, StrictInt, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from mmdora.errors import MmdoraError
from mmdora.files import read_yaml

MODALITIES = ("vision", "projector", "language")
METHODS = ("none", "lora", "dora", "magnitude", "full")
LOW_RANK = ("lora", "dora")
MAX_RANK = 2**16
DEFAULT_RANK = {"vision": 8, "projector": 8, "language": 16}

Positive = Annotated[StrictInt, Field(ge=1)]
Rank = Annotated[StrictInt, Field(ge=1, le=MAX_RANK)]
Rate = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]

T = TypeVar("T")

_strict = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_strict)
class Modality:
    """How one modality of the model is adapted."""

    method: Annotated[Literal["none", "lora", "dora", "magnitude", "full"], Field(description="none: frozen")] = "none"
    rank: Annotated[Rank | None, Field(description="r of B A; default vision 8, projector 8, language 16")] = None
    alpha: Annotated[
        float | None, Field(gt=0, le=1e6, allow_inf_nan=False, description="scaling is alpha / rank; default 2 * rank")
    ] = None
    dropout: Annotated[Share, Field(description="on the input of the low-rank branch; embeddings have none")] = 0.0
    dropout_mode: Annotated[
        Literal["branch", "reference"],
        Field(description="reference: as in PEFT's DoRA, also on the scaled base output, a second base product"),
    ] = "branch"
    rslora: Annotated[StrictBool, Field(description="scaling alpha / sqrt(rank)")] = False
    targets: Annotated[
        tuple[str, ...],
        Field(description="roles of linears (attention, mlp, all), or names or glob patterns of any modules"),
    ] = ("all",)
    bias: Annotated[StrictBool, Field(description="its biases train too, those of norms among them")] = False
    norms: Annotated[StrictBool, Field(description="the weights of its norms train too")] = False
    lr: Annotated[Rate | None, Field(description="learning rate here; default training.lr")] = None
    lora_plus_ratio: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="learning rate of B over that of A (LoRA+: about 16); default 1"),
    ] = None
    magnitude_lr: Annotated[Rate | None, Field(description="of magnitudes; default lr of this modality")] = None
    weight_decay: Annotated[Rate | None, Field(description="default training.weight_decay")] = None
    magnitude_weight_decay: Annotated[Rate, Field(description="of magnitudes")] = 0.0

    @model_validator(mode="before")
    @classmethod
    def _one_target_is_a_list(cls, values: Any) -> Any:
        kwargs = getattr(values, "kwargs", values)
        if isinstance(kwargs, dict) and isinstance(kwargs.get("targets"), str):
            kwargs["targets"] = [kwargs["targets"]]
        return values

    @model_validator(mode="after")
    def _targets_given(self) -> Modality:
        if not self.targets:
            raise ValueError("targets is empty; leave it out for 'all', or use method: none")
        return self

    @model_validator(mode="after")
    def _not_twice(self) -> Modality:
        if self.method == "full" and (self.bias or self.norms):
            raise ValueError("method full trains biases and norms already; leave bias and norms out")
        return self


@dataclass(frozen=True, kw_only=True, config=_strict)
class Adapt:
    """What is adapted, per modality."""

    vision: Modality = Modality()
    projector: Modality = Modality()
    language: Modality = Modality()
    parts: Annotated[
        dict[Literal["vision", "projector", "language"], tuple[str, ...]] | None,
        Field(description="module prefixes per modality, for a model whose parts cannot be found"),
    ] = None


@dataclass(frozen=True, kw_only=True, config=_strict)
class Compose:
    """A LLaVA made of a tower and a language model; its projector is new."""

    vision: Annotated[
        str,
        Field(
            min_length=1,
            description="a CLIP's or SigLIP's hub id or folder, open_clip:NAME/TAG or open_clip:NAME/FILE; NAME ends in"
            " -quickgelu for OpenAI's weights in a file",
        ),
    ]
    language: Annotated[str, Field(min_length=1, description="and of this causal language model, a hub id or folder")]
    template: Annotated[
        Literal["own", "llava_v1"] | None,
        Field(description="of chats: the language model's or LLaVA's; default: its own if it has one"),
    ] = None


@dataclass(frozen=True, kw_only=True, config=_strict)
class Model:
    """The base that is adapted."""

    base: Annotated[str, Field(description="bundled name, hub id or folder")] = "tiny-llava"
    compose: Annotated[
        Compose | None,
        Field(description="instead of base: a LLaVA of vision and language, written to training.output/base"),
    ] = None
    dtype: Annotated[Literal["fp32", "bf16", "fp16"], Field(description="of the frozen weights")] = "fp32"

    @model_validator(mode="before")
    @classmethod
    def _one_base(cls, values: Any) -> Any:
        kwargs = getattr(values, "kwargs", values)
        if isinstance(kwargs, dict) and kwargs.get("compose") is not None and kwargs.setdefault("base", ""):
            raise ValueError("base and compose are two ways to name the base; leave one out")
        return values


@dataclass(frozen=True, kw_only=True, config=_strict)
class ImageTokens:
    """How many tokens an image may take; default: what the base's processor gives."""

    min: Annotated[Positive | None, Field(description="the fewest tokens of an image")] = None
    max: Annotated[Positive | None, Field(description="the most tokens of an image")] = None

    @model_validator(mode="after")
    def _in_order(self) -> ImageTokens:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self


@dataclass(frozen=True, kw_only=True, config=_strict)
class TaskData:
    """One of several tasks that are learned together."""

    train: Annotated[Path, Field(description="its records")]
    eval: Annotated[Path | None, Field(description="its held-out records")] = None
    images: Annotated[Path | None, Field(description="root of its image paths; default: the records' folder")] = None
    eval_task: Annotated[str, Field(description="how its answers are scored: a task of mmdora eval --list")] = "exact"
    soft_answers: Annotated[
        StrictBool,
        Field(description="learn one of meta.answers, drawn by their scores, its loss times that score (VQA)"),
    ] = False


@dataclass(frozen=True, kw_only=True, config=_strict)
class Data:
    """Records (JSONL: messages + images) and how they become batches."""

    train: Annotated[
        Path | None, Field(description="records to train on: JSONL, Parquet (prep --pack), or LLaVA's .json")
    ] = None
    eval: Annotated[Path | None, Field(description="records for the loss during training")] = None
    eval_rows: Annotated[Positive | None, Field(description="use only the first N of eval")] = None
    eval_generate_rows: Annotated[
        Positive | None,
        Field(description="also answer the first N of eval; their score chooses the best instead of the loss"),
    ] = None
    eval_task: Annotated[str, Field(description="how those answers are scored: a task of mmdora eval --list")] = "exact"
    images: Annotated[Path | None, Field(description="root of image paths; default: the records' folder")] = None
    tasks: Annotated[
        dict[str, TaskData] | None,
        Field(
            description="name: {train, eval, images, eval_task, soft_answers}; several tasks instead of train and eval,"
            " a batch holds one, in proportion to their rows; for VL-BART the name is that of its prompt"
        ),
    ] = None
    max_turns: Annotated[
        Positive | None, Field(description="rows with more turns become several rows, all with the images")
    ] = None
    max_length: Annotated[Positive | None, Field(description="tokens per row, images included")] = None
    too_long: Annotated[
        Literal["error", "drop", "shrink"],
        Field(description="rows over max_length; shrink leaves out turns from the end, never an image"),
    ] = "error"
    image_tokens: ImageTokens = ImageTokens()
    stream: Annotated[
        StrictBool,
        Field(
            description="read train in turn and copy nothing, for data that fit no disk: a file, a folder, a pattern,"
            " or those at hf:// or https://; needs training.steps"
        ),
    ] = False
    shuffle_buffer: Annotated[
        Positive | None, Field(description="rows of a stream shuffled together; default 1000")
    ] = None
    group_by_length: Annotated[
        StrictBool, Field(description="batches of like length and modality; false with stream")
    ] = True
    packing: Annotated[
        StrictBool,
        Field(description="several rows in one of up to max_length tokens; batch_size then counts packed rows"),
    ] = False
    feature_cache: Annotated[
        Path | None,
        Field(description="folder for what a frozen tower gives, so that it runs once per image (VL-BART)"),
    ] = None
    workers: Annotated[StrictInt, Field(ge=0, le=256, description="loader processes")] = 0

    @model_validator(mode="before")
    @classmethod
    def _stream_is_not_sorted(cls, values: Any) -> Any:
        kwargs = getattr(values, "kwargs", values)
        if isinstance(kwargs, dict) and kwargs.get("stream") is True:
            kwargs.setdefault("group_by_length", False)
        return values

    @model_validator(mode="after")
    def _stream_knows_no_lengths(self) -> Data:
        for key in ("packing", "group_by_length") if self.stream else ():
            if getattr(self, key):
                raise ValueError(f"{key} needs the lengths of all rows, which a stream does not know; leave it out")
        if self.shuffle_buffer is not None and not self.stream:
            raise ValueError("shuffle_buffer is for stream: true; without it all rows are shuffled")
        return self

    @model_validator(mode="after")
    def _tasks_have_the_data(self) -> Data:
        if self.tasks is None:
            return self
        if not self.tasks:
            raise ValueError("tasks is empty; name one, or use train")
        for name in self.tasks:
            if not name.isidentifier():
                raise ValueError(f"tasks: the name {name!r} must consist of letters, digits and _")
        for key in ("train", "eval", "images", "stream", "packing"):
            if getattr(self, key):
                raise ValueError(f"{key} is not for several tasks (each of data.tasks has its own files); leave it out")
        if self.eval_task != "exact":
            raise ValueError("eval_task belongs to each of data.tasks")
        return self

    @property
    def sources(self) -> dict[str, TaskData]:
        """Where the records are, by task; one without a name where there are no tasks, none without records."""
        if self.tasks is not None:
            return dict(self.tasks)
        if self.train is None:
            return {}
        return {"": TaskData(train=self.train, eval=self.eval, images=self.images, eval_task=self.eval_task)}

    @property
    def evaluates(self) -> bool:
        """Whether there are held-out records."""
        return any(source.eval for source in self.tasks.values()) if self.tasks else self.eval is not None

    @model_validator(mode="after")
    def _packing_has_a_limit(self) -> Data:
        if self.packing and self.max_length is None:
            raise ValueError("packing needs max_length, the tokens of a packed row")
        return self


@dataclass(frozen=True, kw_only=True, config=_strict)
class Training:
    """The optimisation."""

    output: Annotated[Path, Field(description="run folder")] = Path("runs/run")
    steps: Annotated[Positive | None, Field(le=10**9, description="optimizer steps; instead of epochs")] = None
    epochs: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    batch_size: Annotated[Positive, Field(description="rows per forward pass and process")] = 8
    accumulation: Annotated[Positive, Field(description="forward passes per optimizer step")] = 1
    lr: Annotated[Rate, Field(description="peak learning rate")] = 1e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Annotated[Rate, Field(description="steps, or a share of them when below 1")] = 0.03
    weight_decay: Rate = 0.0
    optimizer: Annotated[
        Literal["adamw", "adamw_8bit"], Field(description="adamw_8bit: moments in 8 bits; CUDA and bitsandbytes")
    ] = "adamw"
    adam_beta2: Share = 0.999
    adam_eps: Rate = 1e-8
    max_grad_norm: Rate = 1.0
    precision: Annotated[Literal["fp32", "bf16"], Field(description="of the computation (autocast)")] = "fp32"
    find_batch_size: Annotated[
        StrictBool,
        Field(description="out of memory: halve the micro-batch and go on, with as many rows per step"),
    ] = False
    gradient_checkpointing: StrictBool = False
    chunked_loss: Annotated[
        StrictBool,
        Field(description="logits of labelled positions only, in chunks: the same loss, less memory"),
    ] = True
    log_every: Positive = 10
    eval_every: Annotated[Positive | None, Field(description="steps; needs data.eval")] = None
    early_stopping: Annotated[
        Positive | None, Field(description="evaluations in turn without a better result, after which the run ends")
    ] = None
    report_to: Annotated[
        tuple[Literal["tensorboard", "wandb", "trackio"], ...], Field(description="beside log.jsonl")
    ] = ("tensorboard",)
    save_every: Annotated[Positive | None, Field(description="steps between checkpoints")] = None
    keep: Annotated[Positive, Field(description="checkpoints kept, besides the best")] = 2
    on_nonfinite: Annotated[
        Literal["stop", "skip"],
        Field(description="when loss or gradient norm is not finite: end the run, or leave out the step"),
    ] = "stop"
    max_skipped: Annotated[Positive, Field(description="steps left out before the run ends all the same")] = 10
    seed: Annotated[StrictInt, Field(ge=0, lt=2**31)] = 0


@dataclass(frozen=True, kw_only=True, config=_strict)
class RunConfig:
    """One training run."""

    model: Model = Model()
    adapt: Adapt = Adapt()
    data: Data = Data()
    training: Training = Training()

    @model_validator(mode="after")
    def _cached_tower_is_frozen(self) -> RunConfig:
        vision = self.adapt.vision
        trains = f"method {vision.method}" if vision.method != "none" else ""
        trains = trains or ("bias" if vision.bias else "norms" if vision.norms else "")
        if self.data.feature_cache is not None and trains:
            raise ValueError(
                f"data.feature_cache keeps what a frozen tower gives, and adapt.vision trains it ({trains}); "
                "leave one out"
            )
        if self.data.feature_cache is not None and self.data.stream:
            raise ValueError("data.feature_cache looks at all images before the first step, which data.stream cannot")
        return self

    @model_validator(mode="after")
    def _stream_has_no_end(self) -> RunConfig:
        if self.data.stream and self.training.steps is None:
            raise ValueError("data.stream needs training.steps: a stream has no length")
        if self.data.stream and self.training.find_batch_size:
            raise ValueError("training.find_batch_size reads rows again, which data.stream cannot; leave one out")
        return self

    @property
    def base(self) -> str:
        """The name of the base: a composed one lies in the run folder."""
        return self.model.base if self.model.compose is None else str(self.training.output / "base")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for YAML or JSON."""
        return TypeAdapter(RunConfig).dump_python(self, mode="json")

    def save(self, path: Path) -> None:
        path.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False), encoding="utf-8")


def load_config(path: Path | str, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a YAML file, apply `--a.b value` / `--a.b=value` overrides, validate.

    Raises:
        MmdoraError: naming the file (or "command line"), the key, and what was probably meant.
    """
    path = Path(path)
    tree = read_yaml(path, "config file")
    if not isinstance(tree, dict):
        raise MmdoraError(f"{path}: expected sections model, adapt, data, training; found {type(tree).__name__}")
    changed = _override(tree, list(overrides))
    return validate(RunConfig, tree, where=lambda key: "command line" if _within(key, changed) else str(path))


def _within(key: str, changed: set[str]) -> bool:
    """Whether a key, or what it is an item of, was given on the command line."""
    return any(f"{key}.".startswith(f"{own}.") for own in changed)


def validate(kind: type[T], values: Any, where: Callable[[str], str]) -> T:
    """Build `kind` from plain values; the first problem becomes one `MmdoraError` line."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise MmdoraError(_first_problem(kind, error, where)) from None


def _override(tree: dict[str, Any], tokens: list[str]) -> set[str]:
    changed = set()
    while tokens:
        token = tokens.pop(0)
        if not token.startswith("--"):
            raise MmdoraError(f"command line: expected --section.key, found {token!r}")
        key, joined, text = token[2:].partition("=")
        if not joined:
            if not tokens:
                raise MmdoraError(f"command line: --{key} needs a value")
            text = tokens.pop(0)
        key = key.replace("-", "_")
        node, parts = tree, key.split(".")
        for part in parts[:-1]:
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                raise MmdoraError(f"command line: --{key}: {part} is not a section")
            node = child
        try:
            node[parts[-1]] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise MmdoraError(f"command line: --{key}: {text!r} is not a YAML value") from None
        changed.add(key)
    return changed


def _first_problem(kind: type, error: ValidationError, where: Callable[[str], str]) -> str:
    found, unknown = error.errors(include_url=False), ("unexpected_keyword_argument", "extra_forbidden")
    problem = next((one for one in found if one["type"] in unknown), found[0])  # a misspelt key is missing too
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] in unknown:
        if location[-1] == "trust_remote_code":
            return f"{where(key)}: {key}: code of a checkpoint is not run on a file's word; add --trust-remote-code"
        known = _fields_at(kind, location[:-1])
        close = difflib.get_close_matches(location[-1], known, 1, 0.4)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        return f"{where(key)}: {key}: unknown key; {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    shown = f" (found {given!r})" if isinstance(given, (str, int, float, bool, type(None))) else ""
    return f"{where(key)}: {key}: {message}{shown}" if key else f"{where(key)}: {message}"


def _fields_at(kind: Any, location: Iterable[str]) -> list[str]:
    for name in location:
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
            continue
        field = getattr(kind, "__pydantic_fields__", {}).get(name)
        hint = field.annotation if field is not None else None
        kind = next((part for part in get_args(hint) if part is not type(None)), hint) if _optional(hint) else hint
    return [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _optional(hint: Any) -> bool:
    return type(None) in get_args(hint)


def as_modalities(adapt: Adapt | Mapping[str, Any]) -> dict[str, Modality]:
    """The `adapt` section, from a config or from a plain dict, as one `Modality` per name."""
    if not isinstance(adapt, Adapt):
        adapt = validate(Adapt, dict(adapt), where=lambda key: "adapt")
    return {name: getattr(adapt, name) for name in MODALITIES}
