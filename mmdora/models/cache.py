"""The name of the key-value cache among the arguments and outputs of the installed `transformers`.

Version 5.24 renamed `past_key_values` to `cache` everywhere, and warns at every call with the old name.
"""

from __future__ import annotations

import inspect

from transformers import GenerationMixin

CACHE_NAMES = ("cache", "past_key_values")
"""The names of the cache in all supported versions of `transformers`, the newest first."""

_KNOWN = inspect.signature(vars(GenerationMixin)["prepare_inputs_for_generation"]).parameters
CACHE = next(name for name in CACHE_NAMES if name in _KNOWN)
"""The name of the argument that `generate` passes to a model's forward, and of the value in the model's output."""
