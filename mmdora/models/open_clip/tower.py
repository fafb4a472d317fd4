"""Wraps an image tower of open_clip (ModifiedResNet, ViT, timm) as a `PreTrainedModel` that gives tokens.

The modules keep open_clip's names below `visual.`. A head that the tokens do not pass through is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import CLIPImageProcessor, PreTrainedModel
from transformers.image_utils import PILImageResampling
from transformers.modeling_outputs import BaseModelOutput

from mmdora.errors import MmdoraError
from mmdora.models.open_clip.config import OpenClipVisionConfig
from mmdora.models.open_clip.pool import AttentionPool
from mmdora.models.open_clip.weights import digest, reference

NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
"""Config of a tiny text model, which is thrown away: open_clip builds an image tower only together with one."""


class OpenClipVisionModel(PreTrainedModel):
    """Turns pixels into tokens. The tower is meant to be frozen, so its batch norms keep their statistics in any mode.

    Raises:
        MmdoraError: if the tower has buffers that a checkpoint does not hold.
    """

    config_class = OpenClipVisionConfig
    config: OpenClipVisionConfig
    main_input_name = "pixel_values"
    # open_clip chooses its own attention kernel, so every `attn_implementation` of transformers is accepted.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: OpenClipVisionConfig):
        super().__init__(config)
        self.visual: Any = _build(config) if config.vision_cfg else None
        self._as_referred: str | None = None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        pass  # open_clip has initialised the weights.

    def train(self, mode: bool = True) -> OpenClipVisionModel:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutput:
        """Compute the tokens of images, row by row of the map, without a class token.

        Args:
            pixel_values: [B, 3, S, S] images, preprocessed by `image_processor`.

        Returns:
            last_hidden_state [B, T, hidden_size]; T is 1 for `feature: pooled`. If hidden_states are asked for, they
            consist of last_hidden_state alone.

        Raises:
            MmdoraError: if the model has no tower.
        """
        if self.visual is None:
            raise MmdoraError(
                "this model has no image tower (vision_config.vision_cfg is empty); give it precomputed features"
            )
        if self.config.feature == "pooled":
            tokens = self.visual(pixel_values)[:, None]
        else:
            grid = self.map(pixel_values)
            if self.config.grid is not None:
                grid = adaptive_max_pool2d(grid, self.config.grid)
            tokens = grid.flatten(2).transpose(1, 2)
        asked = kwargs.get("output_hidden_states")  # LLaVA asks for them and chooses one.
        return BaseModelOutput(last_hidden_state=tokens, hidden_states=(tokens,) if asked else None)

    def map(self, pixel_values: Tensor) -> Tensor:
        """The last map [B, hidden_size, h, w] before any pooling: `layer4`, or the patches after the last norm."""
        outputs = self.visual.forward_intermediates(
            pixel_values, indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NCHW"
        )
        return cast(Tensor, outputs["image_intermediates"][-1])

    def frames(self, pixel_values: Tensor) -> Tensor:
        """One feature [B, hidden_size] per frame: the pooled embedding, or the maximum over the map."""
        return self(pixel_values).last_hidden_state.amax(1)

    # --- weights by reference

    def refer(self) -> None:
        """Load the weights that `config.pretrained` names.

        Raises:
            MmdoraError: if there are no such weights, they do not fit, or they are not the weights that the checkpoint
                was written with.
        """
        weights = reference(self.config, self.visual)
        own_digest = digest(weights)
        if self.config.sha256 not in (None, own_digest):
            raise MmdoraError(
                f"{self.config.pretrained}: these are not the tower's weights that the checkpoint was written with"
            )
        self.config.sha256 = own_digest
        self.visual.load_state_dict(weights)
        self._as_referred = digest(self.visual.state_dict())

    @property
    def is_as_referred(self) -> bool:
        """Whether the weights are still, bit for bit, those that `refer` loaded."""
        return self._as_referred is not None and self._as_referred == digest(self.visual.state_dict())


def tower_config(
    name: str | Mapping[str, Any],
    pretrained: str | None = None,
    *,
    feature: str = "grid",
    grid: int | None = None,
) -> OpenClipVisionConfig:
    """Make the config of a tower from its name in open_clip ("RN101", "local-dir:FOLDER") or from a model config.

    Args:
        name: name in open_clip, or a mapping with `embed_dim` and `vision_cfg` as in open_clip's model configs.
        pretrained: tag of open_clip, or file with weights. With None the weights are random, unless the name is a
            folder or repository ("local-dir:...", "hf-hub:..."), whose weights are taken.
        feature, grid: see `OpenClipVisionConfig`.

    Raises:
        MmdoraError: if open_clip knows no such tower, or the tower gives no tokens.
    """
    described = open_clip.get_model_config(name) if isinstance(name, str) else dict(name)
    if described is None:
        raise MmdoraError(f"open_clip has no model {name!r}; `open_clip.list_models()` lists them")
    tag = open_clip.get_pretrained_cfg(name, pretrained) if isinstance(name, str) and pretrained else {}
    if pretrained is None and isinstance(name, str) and ":" in name:
        pretrained = name
    config = OpenClipVisionConfig(
        open_clip_name=name if isinstance(name, str) else None,
        pretrained=str(Path(pretrained).resolve()) if pretrained and Path(pretrained).is_file() else pretrained,
        embed_dim=described["embed_dim"],
        vision_cfg=described["vision_cfg"],
        quick_gelu=bool(tag.get("quick_gelu", described.get("quick_gelu", False))),
        feature=feature,
        grid=grid,
    )
    with torch.device("meta"):
        tower = OpenClipVisionModel(config).eval()
        side = int(described["vision_cfg"].get("image_size", 224))
        try:
            _, config.image_tokens, config.hidden_size = tower(torch.zeros(1, 3, side, side)).last_hidden_state.shape
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise MmdoraError(f"open_clip tower {name!r}: gives no map of tokens: {error}") from None
    return config


def token_shape(config: OpenClipVisionConfig) -> tuple[int, int]:
    """The number of tokens of one image, and their width."""
    side = config.image_size or 224
    with torch.device("meta"):
        tokens = OpenClipVisionModel(config).eval()(torch.zeros(1, 3, side, side)).last_hidden_state
    return tokens.shape[1], tokens.shape[2]


def image_processor(config: OpenClipVisionConfig) -> CLIPImageProcessor:
    """The image processor of a tower: it scales pictures to the tower's square, bicubic, whatever their proportions.

    Mean and standard deviation are those of the weights' tag, or else CLIP's.
    """
    tag = {}
    if config.open_clip_name and config.pretrained:
        tag = open_clip.get_pretrained_cfg(config.open_clip_name, config.pretrained) or {}
    side = config.image_size or 224
    return CLIPImageProcessor(
        size={"height": side, "width": side},
        resample=PILImageResampling.BICUBIC,
        do_center_crop=False,
        image_mean=list(tag.get("mean", open_clip.OPENAI_DATASET_MEAN)),
        image_std=list(tag.get("std", open_clip.OPENAI_DATASET_STD)),
    )


def _build(config: OpenClipVisionConfig) -> nn.Module:
    settings = {**(config.vision_cfg or {}), "patch_dropout": 0.0, "output_tokens": False}
    text: Any = NO_TEXT
    visual: Any = open_clip.CLIP(config.embed_dim, cast(Any, settings), text, quick_gelu=config.quick_gelu).visual
    if config.feature == "grid":  # The modules that make the pooled embedding are not needed.
        if isinstance(visual, ModifiedResNet):
            visual.attnpool = cast(Any, None)
        else:
            visual.prune_intermediate_layers(1, prune_norm=False, prune_head=True)
    elif isinstance(visual, ModifiedResNet):
        # Only the class changes, so that the parameters are the same as open_clip's, random ones too.
        visual.attnpool.__class__ = AttentionPool
    kept = set(visual.state_dict())
    lost = [name for name, _ in visual.named_buffers() if name not in kept]
    if lost:
        raise MmdoraError(f"open_clip tower {config.open_clip_name}: no checkpoint holds its buffer {lost[0]}")
    return visual
