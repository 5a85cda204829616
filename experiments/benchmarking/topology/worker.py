"""A worker process that compiles one job after another, in an environment that is set before it imports jax.

`experiments.benchmarking.topology.compiler` starts the process, which reads one job per line from its standard input
and answers each with one line; `messages` declares both formats.
"""

import os
import sys
import threading
import time

import msgspec

from ...compiled import targets
from ...records.benchmarks.topology import Figures, LayerJob
from . import layers, network
from .jobs import AXIS
from .messages import Answer, Job, job_of


def main() -> None:
    """Answers jobs until the standard input ends."""
    with os.fdopen(os.dup(1), "w") as answers:
        # Compilers print to the standard output, which must not mix with the answers.
        os.dup2(2, 1)
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
        for line in sys.stdin:
            try:
                answer = Answer(figures=_figures(job_of(line)))
            # A compiler may raise any exception, and the next job may still succeed.
            except Exception as error:
                answer = Answer(error=f"{type(error).__name__}: {error}")
            print(msgspec.json.encode(answer).decode(), file=answers, flush=True)


def _figures(job: Job) -> Figures:
    mesh = targets.mesh(targets.parse(job.topology), AXIS)
    return layers.figures(job, mesh) if isinstance(job, LayerJob) else network.figures(job, mesh)


def _end_with(parent: int) -> None:
    """Ends this process when its parent has ended, even during a compilation."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()
