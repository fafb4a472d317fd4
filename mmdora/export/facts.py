"""The facts in `mmdora.json` of an exported checkpoint, about its content and origin. Model card and page read them.

The card of an adapter alone has the same facts; its `mmdora.json` is the adapter's own (`adapter_files`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from mmdora.adapt.plan import Plan
from mmdora.adapter_files.files import OURS
from mmdora.config import ImageTokens, RunConfig
from mmdora.errors import MmdoraError
from mmdora.export.scores import shown
from mmdora.files import read_json, write_json
from mmdora.records.card import read as read_card
from mmdora.version import __version__

FORMAT = 1  # Version of `mmdora.json`. Raise it when the meaning of a key changes, so that old files are refused.
PACKAGES = ("torch", "transformers", "safetensors")


@dataclass(frozen=True)
class ExportFacts:
    """The facts about an exported checkpoint.

    Attributes:
        name: name of the exported folder.
        base: hub id or bundled name of the base; for a local folder only its last name, never its path.
        licence: licence that the base's model card states.
        dtype: dtype of the written weights: "fp32", "bf16" or "fp16".
        plan: plan of what was adapted and merged; None for a plain checkpoint.
        run: {"data": files of records, with the name of their folder, "datasets": names of public datasets, "config":
            the run's settings that are not the defaults}; None if the run is not known.
        image_tokens: {"min", "max"} tokens of each image, as far as the run set them.
        scores: name -> number or text, or the numbers of an evaluation with their interval (`scores.read_scores`).
        parity: {"kind": "logits" or "tensors", "how", "text", and the numbers that were measured}; empty for an adapter
            alone, in which nothing was merged.
        versions: versions of mmdora and of the libraries that wrote the files.
        lineage: the earlier adaptations of the base, if it is itself an export, the oldest first: each {"name", "base",
            "methods", "data"}, as the attributes of these names were then, with the files of `run`.
    """

    name: str
    base: str
    licence: str | None
    dtype: str
    plan: Plan | None
    run: Mapping[str, Any] | None
    image_tokens: Mapping[str, int]
    scores: Mapping[str, Any]
    parity: Mapping[str, Any]
    versions: Mapping[str, str]
    lineage: Sequence[Mapping[str, Any]] = ()

    @property
    def root(self) -> str:
        """The base that nobody adapted with mmdora: that of the first adaptation."""
        return self.lineage[0]["base"] if self.lineage else self.base

    @property
    def step(self) -> dict[str, Any]:
        """This adaptation as the last entry of the lineage of whatever is adapted from it."""
        return {"name": self.name, "base": self.base, "methods": self.methods, "data": (self.run or {}).get("data", [])}

    @property
    def methods(self) -> list[str]:
        """The methods that were merged, in alphabetical order."""
        return [] if self.plan is None else methods_of(self.plan)

    @property
    def shown_scores(self) -> dict[str, str]:
        """The scores as text for people (`scores.shown`)."""
        return {key: shown(value) for key, value in self.scores.items()}

    def write(self, folder: Path) -> None:
        """Write `mmdora.json`."""
        values = {"format": FORMAT, "methods": self.methods} | vars(self)
        values["plan"] = self.plan.to_dict() if self.plan else None
        write_json(folder / OURS, values)


def read_facts(folder: Path) -> ExportFacts | None:
    """The facts that `mmdora export` wrote to `folder`; None without `mmdora.json`, which older exports lack.

    Raises:
        MmdoraError: if the file is damaged, or written by a newer mmdora.
    """
    path = folder / OURS
    if not path.is_file():
        return None
    values = read_json(path, "checkpoint's file")
    if values.pop("format", None) != FORMAT:
        raise MmdoraError(f"{path}: not written by this mmdora's export, or by a newer one; update mmdora")
    values.pop("methods", None)
    try:
        plan = Plan.from_dict(values["plan"]) if values["plan"] else None
        facts = ExportFacts(**{**values, "plan": plan})
        for part, kind in ((facts.base, str), (facts.scores, dict), (facts.parity, dict), (facts.run or {}, dict)):
            if not isinstance(part, kind):
                raise TypeError(f"{part!r:.80} is no {kind.__name__}")
        for step in facts.lineage:
            if not isinstance(step, dict) or step.keys() != facts.step.keys():
                raise TypeError(f"{step!r:.80} is no step of a lineage")
        return facts
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise MmdoraError(f"{path}: damaged ({type(error).__name__}: {error!s:.200}); export again") from None


def lineage_of(base: Path) -> list[Mapping[str, Any]]:
    """The adaptations by which a base came about; none unless its folder is an export of mmdora.

    Raises:
        MmdoraError: as `read_facts`.
    """
    before = read_facts(base)
    return [] if before is None else [*before.lineage, before.step]


def methods_of(plan: Plan) -> list[str]:
    """The methods of a plan, including "full", in alphabetical order."""
    return sorted({entry.method for entry in plan.entries} | ({"full"} if plan.full else set()))


def shown_base(name: str) -> str:
    """The value of `ExportFacts.base`: only the last name of a local folder, so that the file tells nobody its path."""
    return Path(name).name if Path(name).exists() else name


def licence_of(base: Path | str) -> str | None:
    """The licence that the README.md of a base, a folder or a hub id, states in its front matter; None without one."""
    try:
        return (
            ModelCard.load(Path(base) / "README.md" if Path(base).is_dir() else str(base)).data.to_dict().get("license")
        )
    except (OSError, ValueError):
        return None


def run_facts(config: RunConfig | None) -> dict[str, Any] | None:
    """The value of `ExportFacts.run`: data, and the settings that are not the defaults; no path of this machine."""
    if config is None:
        return None
    settings = _changed(config.to_dict(), RunConfig().to_dict())
    settings.get("training", {}).pop("output", None)
    if "base" in settings.get("model", {}):
        settings["model"]["base"] = shown_base(settings["model"]["base"])
    files = [str(source.train) for source in config.data.sources.values()]
    cards = [read_card(Path(file).parent) for file in files if "://" not in file]
    # Records of one's own come from no dataset that others could look up; version 0.1 wrote "yours" as their licence.
    names = [card["name"] for card in cards if card and card.get("licence") not in (None, "yours")]
    data = [file if "://" in file else "/".join(Path(file).parts[-2:]) for file in files]
    return {"data": data, "datasets": list(dict.fromkeys(names)), "config": settings}


def _changed(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that differ from their defaults; of an absolute path the last name alone."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        default = defaults.get(key)
        if isinstance(value, dict):
            if inner := _changed(value, default if isinstance(default, dict) else {}):
                found[key] = inner
        elif value != default:
            found[key] = Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
    return found


def parity_facts(parity: Any) -> dict[str, Any]:
    """The result of the comparison with the trained model, a `Parity` or a `TensorParity`, as plain values."""
    return {"kind": parity.kind, "how": parity.how, "text": str(parity)} | asdict(parity)


def token_facts(image_tokens: ImageTokens) -> dict[str, int]:
    """The budget of tokens per image as plain values; a bound that is not set is left out."""
    return {key: value for key, value in asdict(image_tokens).items() if value is not None}


def versions() -> dict[str, str]:
    """Package -> its installed version, for the packages that an export depends on."""
    return {"mmdora": __version__} | {package: version(package) for package in PACKAGES}
