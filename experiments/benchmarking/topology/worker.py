"""A process that compiles one job after another; its environment is set before it imports jax.

It reads jobs from its standard input, one line of `messages` each, and answers each with a line.
`experiments.benchmarking.topology.compiler` starts it.
"""

import os
import sys
import threading
import time

import msgspec

from experiments.benchmarking.topology import layers, network, targets
from experiments.benchmarking.topology.jobs import AXIS
from experiments.benchmarking.topology.messages import Answer, Job, job_of
from experiments.records.benchmarks.topology import Figures, LayerJob


def main() -> None:
    """Answers until there is nothing more to do."""
    answers = os.fdopen(os.dup(1), "w")
    # What a compiler prints is not an answer.
    os.dup2(2, 1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    for line in sys.stdin:
        try:
            answer = Answer(figures=_figures(job_of(line)))
        # Whatever it is, the next job may do better.
        except Exception as error:
            answer = Answer(error=f"{type(error).__name__}: {error}")
        print(msgspec.json.encode(answer).decode(), file=answers, flush=True)


def _figures(job: Job) -> Figures:
    mesh = targets.mesh(targets.parse(job.topology), AXIS)
    return layers.figures(job, mesh) if isinstance(job, LayerJob) else network.figures(job, mesh)


def _end_with(parent: int) -> None:
    """Ends this process when its parent has ended, in the middle of a compilation too."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()
