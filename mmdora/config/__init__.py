"""The whole experiment as frozen, self-validating dataclasses; YAML and dotted overrides on top.

This room is a leaf: it knows no torch and no other room. `load_config` is the only way a file
becomes a `RunConfig`; `Modality` also validates the dicts given to `mmdora.inject`.
"""

from mmdora.config.adapt import AUTO, MAX_RANK, METHODS, MODALITIES, Adapt, Gates, Modality, as_modalities
from mmdora.config.data import Data, ImageTokens, TaskData
from mmdora.config.load import config_of, load_config
from mmdora.config.model import Compose, Model, Quantize
from mmdora.config.run import RunConfig
from mmdora.config.training import Training
from mmdora.config.validate import validate

__all__ = [
    "AUTO",
    "MAX_RANK",
    "METHODS",
    "MODALITIES",
    "Adapt",
    "Compose",
    "Data",
    "Gates",
    "ImageTokens",
    "Modality",
    "Model",
    "Quantize",
    "RunConfig",
    "TaskData",
    "Training",
    "as_modalities",
    "config_of",
    "load_config",
    "validate",
]
