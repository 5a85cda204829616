"""A process that compiles one job after another; its environment is set before it imports jax.

It reads jobs, one line of JSON each, from its standard input, and answers each with a line: `figures`, or `error`.
`experiments.benchmarking.topology.compiler` starts it.
"""

import json
import os
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

from experiments.benchmarking.topology import layers, network, targets
from experiments.benchmarking.topology.jobs import AXIS, LayerJob, NetworkJob

KINDS: dict[str, tuple[type, Any]] = {
    LayerJob.__name__: (LayerJob, layers.figures),
    NetworkJob.__name__: (NetworkJob, network.figures),
}


def main() -> None:
    """Answers until there is nothing more to do."""
    answers = os.fdopen(os.dup(1), "w")
    # What a compiler prints is not an answer.
    os.dup2(2, 1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    for line in sys.stdin:
        try:
            answer = {"figures": _figures(**json.loads(line))}
        # Whatever it is, the next job may do better.
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def _figures(kind: str, job: dict[str, Any]) -> dict[str, Any]:
    make, figures = KINDS[kind]
    job = {name: tuple(value) if isinstance(value, list) else value for name, value in job.items()}
    mesh = targets.mesh(targets.parse(job["topology"]), AXIS)
    return asdict(figures(make(**job), mesh))


def _end_with(parent: int) -> None:
    """Ends this process when its parent has ended, in the middle of a compilation too."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()
