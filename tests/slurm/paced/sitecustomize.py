"""With this folder on PYTHONPATH each step of training takes a pause, so that a run's length is that of its pauses.

So it depends little on how busy the machine is and on the MPI, and several at once hardly disturb each other.
"""

import sys
import time

PAUSE = 0.05  # seconds a step

if "mpi_parallel.train" in sys.orig_argv:
    from mpi_parallel.training import step

    take = step.train_step

    def train_step(*arguments, **named):
        time.sleep(PAUSE)
        return take(*arguments, **named)

    step.train_step = train_step
