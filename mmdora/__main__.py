"""`python -m mmdora` is `mmdora`."""

import sys

from mmdora.cli import main

sys.exit(main())
