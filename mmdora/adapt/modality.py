"""Finds out which modules of a vision-language model are its tower, its projector and its language model.

They are found by the identity of configs, not by names: a root is the outermost module whose `.config` *is* one of the
model's sub-configs. The projector is everything outside of the roots that is neither an embedding nor the head. The
last children of a tower whose output has the text width belong to it too (Qwen's `visual.merger`). A model without a
config of vision (Chameleon, Emu3, Fuyu) has no tower, so its vision part is empty. `odd_models` has the exceptions.
A causal language model has no other part than language.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from mmdora.adapt.odd_models import ACTION_EXPERTS, INNER_PROJECTORS, NO_TOWER, PARTS
from mmdora.config import MODALITIES
from mmdora.errors import MmdoraError
from mmdora.layers import AdaptedConv

SUBCONFIGS = {
    "vision": ("vision", "image", "visual", "vit"),
    "language": ("text", "language", "llm", "decoder"),
    "other": ("audio", "speech", "talker", "code2wav", "action", "expert", "vq"),
}
"""Words in a sub-config's name. Any other sub-config (a Q-Former, a resampler) belongs to the projector."""

OTHER_BLOCKS = ("MllamaCrossAttentionDecoderLayer", "IdeficsGatedCrossAttentionLayer")
"""Blocks inside a language root that belong to none of the three: gated cross-attention to the image."""


@dataclass(frozen=True)
class ModelParts:
    """Prefixes of modules (and of loose parameters, such as `model.image_newline`) per modality.

    The longest prefix of a name decides, so a projector may lie inside a tower. Modules that belong to none of the
    three (audio, gated cross-attention) are under `other` and are never adapted.
    """

    vision: tuple[str, ...] = ()
    projector: tuple[str, ...] = ()
    language: tuple[str, ...] = ()
    other: tuple[str, ...] = ()

    def of(self, name: str) -> str | None:
        """The modality of a module or parameter, or None."""
        matches = [
            (len(prefix), modality)
            for modality in (*MODALITIES, "other")
            for prefix in getattr(self, modality)
            if name == prefix or name.startswith(prefix + ".")
        ]
        modality = max(matches, default=(0, "other"))[1]
        return None if modality == "other" else modality


def find_parts(model: nn.Module, prefixes: Mapping[Any, tuple[str, ...]] | None = None) -> ModelParts:
    """Find the parts, or check the ones given by hand.

    Args:
        model: a `transformers` vision-language or causal language model, adapted or not.
        prefixes: modality -> module prefixes, which are then taken as they are.

    Raises:
        MmdoraError: with the module tree, where a part cannot be found.
    """
    if prefixes is not None:
        return _given(model, prefixes)
    if (listed := PARTS.get(type(model).__name__)) is not None:
        known = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
        return ModelParts(**{kind: tuple(name for name in names if name in known) for kind, names in listed.items()})
    if is_text_only(getattr(model, "config", None)):
        return ModelParts(language=tuple(_outside(model, "", set(), [])))
    roots = _roots(model)
    sees = (
        "vision" in dict(_subconfigs(getattr(model, "config", None))).values() and type(model).__name__ not in NO_TOWER
    )
    for kind, native in (("vision", _native_encoder), ("language", _native_decoder)):
        if (sees or kind != "vision") and kind not in roots.values() and (name := native(model)):
            roots[name] = kind
    missing = [kind for kind in ("vision", "language") if (sees or kind != "vision") and kind not in roots.values()]
    if missing:
        raise MmdoraError(
            f"{type(model).__name__}: cannot tell which module is the {' or the '.join(missing)} part; name the "
            f"prefixes under adapt.parts, as in {{vision: [...], projector: [...], language: [...]}}. Its modules: "
            + _tree(model)
        )
    modules = dict(model.named_modules())
    prefixes_of: dict[str, list[str]] = {kind: [] for kind in (*MODALITIES, "other")}
    for name, kind in roots.items():
        prefixes_of[kind].append(name)
    width = _text_width(modules[prefixes_of["language"][0]])
    for name in prefixes_of["vision"]:
        own = INNER_PROJECTORS.get(type(modules[name]).__name__)
        inner = _inner_projectors(name, modules[name], width) if own is None else [f"{name}.{leaf}" for leaf in own]
        prefixes_of["projector"] += inner
    heads = _embeddings(model)
    prefixes_of["language"] += [name for name in heads if not _within(name, roots)]
    prefixes_of["other"] += ACTION_EXPERTS.get(type(model).__name__, ())
    prefixes_of["projector"] += _outside(model, "", {*roots, *heads, *prefixes_of["other"]}, prefixes_of["other"])
    prefixes_of["other"] += [
        name
        for root in prefixes_of["language"]
        for name, module in modules[root].named_modules(prefix=root)
        if type(module).__name__ in OTHER_BLOCKS
    ]
    order = {name: index for index, name in enumerate([*modules, *dict(model.named_parameters())])}
    return ModelParts(**{kind: tuple(sorted(set(names), key=order.__getitem__)) for kind, names in prefixes_of.items()})


def is_text_only(config: Any) -> bool:
    """Whether a config is that of a causal language model, which reads no picture.

    Of architectures whose code comes with the checkpoint, the config says so by the Auto class that it names.
    """
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return False
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        # Phi-4 Multimodal reads pictures, and is registered as a text model alone.
        return not any(kind == "vision" for _, kind in _subconfigs(config))
    named = getattr(config, "auto_map", None) or {}
    return "AutoModelForCausalLM" in named and not any("vision" in key for key in vars(config))


def _given(model: nn.Module, prefixes: Mapping[Any, tuple[str, ...]]) -> ModelParts:
    known = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
    for modality, names in prefixes.items():
        for name in names:
            if not name or name not in known:
                raise MmdoraError(
                    f"adapt.parts.{modality}: {type(model).__name__} has no module {name!r}. Its modules: "
                    + _tree(model)
                )
    return ModelParts(**{kind: tuple(names) for kind, names in prefixes.items()})


def _roots(model: nn.Module) -> dict[str, str]:
    """Outermost module name -> kind, for modules whose config is a sub-config."""
    kinds = dict(_subconfigs(getattr(model, "config", None)))
    roots: dict[str, str] = {}
    for name, module in model.named_modules():
        kind = kinds.get(id(getattr(module, "config", None)))
        if name and kind and isinstance(module, PreTrainedModel) and not _within(name, roots):
            roots[name] = kind
    return roots


def _subconfigs(config: Any) -> Iterator[tuple[int, str]]:
    for key in getattr(config, "sub_configs", None) or {}:
        sub = getattr(config, key, None)
        if sub is None:
            continue
        for kind, words in SUBCONFIGS.items():
            if any(word in key for word in words):
                yield id(sub), kind
                break
        yield from _subconfigs(sub)


def _native_encoder(model: Any) -> str | None:
    return _name_of(model, model.get_encoder(modality="image")) if hasattr(model, "get_encoder") else None


def _native_decoder(model: Any) -> str | None:
    return _name_of(model, model.get_decoder()) if hasattr(model, "get_decoder") else None


def _name_of(model: nn.Module, module: Any) -> str | None:
    return next((name for name, candidate in model.named_modules() if name and candidate is module), None)


def _embeddings(model: nn.Module) -> list[str]:
    """Names of the input embedding and the output head."""
    names = []
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        try:
            module = getattr(model, getter)()
        except (AttributeError, NotImplementedError):
            continue
        if module is not None and (name := _name_of(model, module)):
            names.append(name)
    return names


def _text_width(language: nn.Module) -> int | None:
    config: Any = getattr(language, "config", None)
    return getattr(config, "hidden_size", None) or getattr(config, "d_model", None)


def _inner_projectors(name: str, tower: nn.Module, text_width: int | None) -> list[str]:
    """Names of the modules that come after the tower's blocks and bring their output to the width of the text.

    If the blocks have that width themselves, a module that keeps it is no projector.
    """
    children = list(tower.named_children())
    blocks = [i for i, (_, child) in enumerate(children) if _blocks(child)]
    if not blocks:
        return []
    block_width = _widths(_blocks(children[blocks[-1]][1])[-1])[-1:]
    projectors = []
    for leaf, child in children[blocks[-1] + 1 :]:
        widths = _widths(child)
        keeps = block_width and widths and widths[0][0] == block_width[0][1] == text_width
        if widths and widths[-1][1] == text_width and not keeps:
            projectors.append(f"{name}.{leaf}")
    return projectors


def _blocks(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.modules() if isinstance(child, GradientCheckpointingLayer)]


def _widths(module: nn.Module) -> list[tuple[int, int]]:
    """The number of inputs and outputs of every linear and convolution, plain or adapted, in order of registration."""
    widths = []
    for child in module.modules():
        if hasattr(child, "in_features") and hasattr(child, "out_features"):
            widths.append((child.in_features, child.out_features))
        elif isinstance(child, (nn.modules.conv._ConvNd, AdaptedConv)):
            widths.append((child.in_channels, child.out_channels))
    return widths


def _outside(module: nn.Module, name: str, taken: set[str], other: list[str]) -> list[str]:
    """Names of the outermost modules, and of loose parameters, that hold no module of `taken`.

    Modules for audio are appended to `other` instead.
    """
    join = f"{name}.{{}}".format if name else str
    outermost = [join(leaf) for leaf, _ in module.named_parameters(recurse=False)]
    for leaf, child in module.named_children():
        path = join(leaf)
        if path in taken or not any(True for _ in child.parameters()):
            continue
        if any(entry.startswith(path + ".") for entry in taken):
            outermost += _outside(child, path, taken, other)
        elif any(word in leaf for word in SUBCONFIGS["other"]):
            other.append(path)
        else:
            outermost.append(path)
    return outermost


def _within(name: str, roots: Mapping[str, str] | set[str]) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)


def _tree(model: nn.Module) -> str:
    """The two upper levels of the module tree, on one line."""
    return ", ".join(
        f"{name} ({type(module).__name__})" for name, module in model.named_modules() if name and name.count(".") < 2
    )
