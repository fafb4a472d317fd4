"""Opens image towers for a LLaVA by name: towers of open_clip, or CLIP's and SigLIP's of `transformers`."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Any

from transformers import AutoConfig, AutoImageProcessor, CLIPVisionModel, SiglipVisionModel

from mmdora.errors import MmdoraError
from mmdora.models.locate import OPEN_CLIP

FOLDERS = ("hf-hub:", "local-dir:")  # A name in open_clip that begins like this also says where the weights are.
KINDS: dict[str, Any] = {"clip_vision_model": CLIPVisionModel, "siglip_vision_model": SiglipVisionModel}
LAYER = -2
"""Index of the hidden states that LLaVA's projector reads: those of the last layer but one, as in LLaVA-1.5. Towers
that cannot be converted to a `CLIPVisionModel` give only those of their last layer."""


@dataclass(frozen=True)
class Tower:
    """A tower with its weights, and the facts that LLaVA has to know about it.

    Attributes:
        module: the tower.
        side: side of the square picture, in pixels.
        patch: side of the square that becomes a token, in pixels.
        mean, std: mean and standard deviation by which the three channels of pictures are normalised.
        layer: index of the hidden states that the projector reads.
        class_token: whether the first token is a class token instead of a patch.
    """

    module: Any
    side: int
    patch: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layer: int = LAYER
    class_token: bool = True


def open_tower(name: str) -> Tower:
    """Open a tower by `open_clip:NAME/TAG`, `open_clip:NAME/FILE`, or the hub id or folder of a CLIP or SigLIP.

    A ViT of CLIP's architecture becomes a `CLIPVisionModel`, which needs nothing but `transformers`. Other towers of
    open_clip are kept as they are. To load a LLaVA with such a tower, `import mmdora` has to come first.

    Raises:
        MmdoraError: if there is no such tower, its weights cannot be read, or its tokens do not form a square.
    """
    return _open_clip(name) if name.startswith(OPEN_CLIP) else _stock(name)


def _open_clip(name: str) -> Tower:
    from mmdora.models.open_clip.convert import as_clip
    from mmdora.models.open_clip.tower import OpenClipVisionModel, image_processor, token_shape, tower_config

    model, tag = name.removeprefix(OPEN_CLIP), None
    if not model.startswith(FOLDERS):
        model, _, tag = model.partition("/")
        if not tag:
            raise MmdoraError(
                f"vision {name!r}: name its weights too, as in open_clip:ViT-L-14-336/openai or "
                "open_clip:ViT-L-14/FILE.safetensors"
            )
    config = tower_config(model, tag)
    tower = OpenClipVisionModel(config)
    tower.refer()
    config.pretrained = config.sha256 = None  # The weights will be in the checkpoint, so it must not refer elsewhere.
    images: Any = image_processor(config)
    colours: Any = {"mean": tuple(images.image_mean), "std": tuple(images.image_std)}
    if (clip := as_clip(tower.visual)) is not None:
        vision_config: Any = clip.config
        return Tower(clip, vision_config.image_size, vision_config.patch_size, **colours)
    side, tokens = config.image_size or 224, token_shape(config)[0]
    rows = isqrt(tokens)
    patch = side // rows
    if rows * rows != tokens or side // patch != rows:
        raise MmdoraError(
            f"vision {name!r}: its {tokens} tokens for a picture of {side} pixels do not form a square, "
            "which LLaVA needs; use another tower"
        )
    return Tower(tower.eval(), side, patch, **colours, layer=-1, class_token=False)


def _stock(name: str) -> Tower:
    try:
        config: Any = AutoConfig.from_pretrained(name)
        config = getattr(config, "vision_config", config)
        if config.model_type not in KINDS:
            raise MmdoraError(
                f"vision {name!r}: a {config.model_type}; use a CLIP, a SigLIP, or a tower of open_clip "
                f"({OPEN_CLIP}NAME/TAG)"
            )
        images: Any = AutoImageProcessor.from_pretrained(name)
        loaded: Any = KINDS[config.model_type].from_pretrained(name, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise MmdoraError(f"vision {name!r}: no CLIP or SigLIP that can be loaded: {reason}") from None
    module, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise MmdoraError(f"vision {name!r}: {len(missing)} tensors are missing in its files, such as {missing[0]}")
    return Tower(
        module,
        config.image_size,
        config.patch_size,
        tuple(images.image_mean),
        tuple(images.image_std),
        class_token=config.model_type == "clip_vision_model",
    )
