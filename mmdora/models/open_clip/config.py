"""The config of an open_clip image tower. It can be read without open_clip and torch."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers.configuration_utils import PreTrainedConfig


class OpenClipVisionConfig(PreTrainedConfig):
    """Describes an image tower of open_clip or, without `vision_cfg`, features that were computed beforehand.

    `mmdora.models.open_clip.tower.tower_config` fills it in from a name of open_clip.

    Attributes:
        open_clip_name: name in open_clip's registry ("RN101"); None for a tower that is not in it.
        pretrained: place of the weights: a tag of open_clip ("openai") or a file. A checkpoint then holds no weights of
            the tower. None means that the weights are in the checkpoint.
        sha256: checksum of the weights that `pretrained` gave when the checkpoint was written.
        embed_dim, vision_cfg, quick_gelu: values as in open_clip's own model configs.
        feature: "grid" for the map before pooling, "pooled" for the image embedding.
        grid: side of the grid of tokens that the map is reduced to by an adaptive max pool; None keeps every position.
        hidden_size: width of a token.
        image_tokens: number of tokens of an image; None without a tower.
    """

    model_type = "open_clip_vision"
    base_config_key: ClassVar[str] = "vision_config"

    open_clip_name: str | None = None
    pretrained: str | None = None
    sha256: str | None = None
    embed_dim: int = 512
    vision_cfg: dict[str, Any] | None = None
    quick_gelu: bool = False
    feature: str = "grid"
    grid: int | None = None
    hidden_size: int = 2048
    image_tokens: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.feature not in ("grid", "pooled"):
            raise ValueError(f"vision_config.feature: {self.feature!r}; use 'grid' or 'pooled'")
        super().__post_init__(**kwargs)

    @property
    def image_size(self) -> int | None:
        """Side in pixels of the square image that the tower takes; None without a tower."""
        return self.vision_cfg.get("image_size", 224) if self.vision_cfg else None
