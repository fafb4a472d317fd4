"""`python -m tests.families NAME OUT` writes a tiny random checkpoint of a family; without arguments, their names."""

from __future__ import annotations

import sys
from pathlib import Path

from .checkpoints import RECIPES, make

if len(sys.argv) != 3 or sys.argv[1] not in RECIPES:
    raise SystemExit(f"python -m tests.families NAME OUT, where NAME is one of: {', '.join(RECIPES)}")
try:
    make(sys.argv[1], Path(sys.argv[2]))
except ImportError as error:
    raise SystemExit(str(error)) from None
