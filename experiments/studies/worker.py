"""A process that trains one job after another, so that imports, data and collectives are set up once.

It reads what to do, one line of JSON each, from its standard input: {"train": options}, or {"call": "module:function",
"workdir": of a run that has ended, "given": arguments by name}. It answers each with a line: `summary` or `value`, or
`error`. Its argument is the number of devices; without one there are as many as a run would have.
`experiments.studies.jobs` starts it.
"""

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
from absl import logging

from ..problems import loading
from ..training.config.options import TrainConfig
from ..training.machine import devices
from ..training.progress import NonFiniteLossError
from ..training.session import train


def main() -> None:
    """Answers until there is nothing more to do."""
    # A terminal sends Ctrl-C to the study and to this process; the study says what is to be done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    loading.keep()
    with os.fdopen(os.dup(1), "w") as answers:
        # A run prints to the standard output, which must not be taken for an answer.
        os.dup2(2, 1)
        logging.set_verbosity(logging.WARNING)
        is_set_up = False
        for line in sys.stdin:
            print(f"\n{line}", end="", flush=True)
            try:
                if not is_set_up:
                    # Once: a CPU is divided before its first use. A run takes as many of the parts as divide its batch.
                    devices.set_up(int(sys.argv[1]) if len(sys.argv) > 1 else None)
                    is_set_up = True
                answer = _answer(json.loads(line))
            # The next job may do better, whatever the error is.
            except Exception as error:
                logging.exception("The job failed.")
                answer = {
                    "error": f"{error}" or type(error).__name__,
                    "diverged": isinstance(error, NonFiniteLossError),
                }
            print(json.dumps(answer), file=answers, flush=True)


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    if "train" in asked:
        # The summary names the command.
        sys.argv[1:] = [f"--{name}={value}" for name, value in asked["train"].items()]
        return {"summary": msgspec.to_builtins(train(TrainConfig(**asked["train"])))}
    module, _, name = asked["call"].partition(":")
    return {"value": getattr(importlib.import_module(module), name)(Path(asked["workdir"]), **asked.get("given", {}))}


if __name__ == "__main__":
    main()
