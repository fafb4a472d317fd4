"""Fills the feature cache of a run before its first step; each process fills in its share of the rows."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Subset

from mmdora.config import RunConfig
from mmdora.families import Family
from mmdora.families.learning import Features
from mmdora.train.processes import Processes


def features_of(
    config: RunConfig, model: Any, family: Family, sets: list[Any], processes: Processes
) -> Features | None:
    """Fill the cache and give a function image -> features [T, F]; None without `data.feature_cache`.

    The function may be called when all processes have filled in their share.

    Args:
        sets: the sets of rows whose images will be read.

    Raises:
        MmdoraError: if this model's tower cannot be cached, an image cannot be read, or the disk is full.
    """
    if config.data.feature_cache is None:
        return None
    from mmdora.models.vlbart.feature_cache import FeatureCache  # This imports open_clip, which few runs need.

    cache = FeatureCache.of(model, family, config.data.feature_cache)
    cache.to(processes.device)
    for rows in sets:
        share: Any = Subset(rows, range(processes.index, len(rows), processes.count))
        cache.fill(share, workers=config.data.workers)
    return cache.features
