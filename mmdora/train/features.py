"""The feature cache of a run, filled before its first step: each process sees to its share of the rows."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Subset

from mmdora.config import RunConfig
from mmdora.families import Family
from mmdora.families.family import Features
from mmdora.train.processes import Processes


def features_of(
    config: RunConfig, model: Any, family: Family, sets: list[Any], processes: Processes
) -> Features | None:
    """What gives the features of an image of `sets` ([T, F]) when all processes are done; None
    without `data.feature_cache`.

    Raises:
        MmdoraError: if this model's tower cannot be cached, an image cannot be read, or the disk is full.
    """
    if config.data.feature_cache is None:
        return None
    from mmdora.models.vlbart.feature_cache import FeatureCache  # imports open_clip

    cache = FeatureCache.of(model, family, config.data.feature_cache)
    cache.to(processes.device)
    for rows in sets:
        share: Any = Subset(rows, range(processes.index, len(rows), processes.count))
        cache.fill(share, workers=config.data.workers)
    return cache.features
