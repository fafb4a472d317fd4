"""`torchrun torchrun_worker.py COMMAND` is `torchrun -m mmdora COMMAND`, slow enough to be stopped on its way."""

import sys
import time

from mmdora.cli import main
from mmdora.train.steps import Steps

step = Steps.one_pass


def slowly(self, *args, **kwargs):
    time.sleep(0.5)
    return step(self, *args, **kwargs)


Steps.one_pass = slowly
sys.exit(main(sys.argv[1:]))
