"""`torchrun torchrun_worker.py COMMAND` is `torchrun -m mmdora COMMAND`, slow enough to be stopped on its way."""

import sys
import time

from mmdora.cli import main
from mmdora.train.trainer import AdapterTrainer

step = AdapterTrainer.training_step


def slowly(self, *args, **kwargs):
    time.sleep(0.5)
    return step(self, *args, **kwargs)


AdapterTrainer.training_step = slowly
sys.exit(main(sys.argv[1:]))
