"""A process that trains one job after another, so that imports, data and collectives are set up once.

It reads a job's options, one line of JSON each, from its standard input, and answers each with a line: the summary of
the run or its error. `experiments.studies.jobs` starts it.
"""

import json
import os
import sys

from absl import logging

from experiments.training.config import TrainConfig
from experiments.training.loop import train
from experiments.training.progress import NonFiniteLossError


def main() -> None:
    """Answers jobs until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    # What a run prints is not an answer.
    os.dup2(2, 1)
    logging.set_verbosity(logging.WARNING)
    for line in sys.stdin:
        print(f"\n{line}", end="", flush=True)
        options = json.loads(line)
        # The summary names the command.
        sys.argv[1:] = [f"--{name}={value}" for name, value in options.items()]
        try:
            answer = {"summary": train(TrainConfig(**options))}
        # Whatever it is, the next job may do better.
        except Exception as error:
            logging.exception("The job failed.")
            answer = {"error": f"{error}" or type(error).__name__, "diverged": isinstance(error, NonFiniteLossError)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
