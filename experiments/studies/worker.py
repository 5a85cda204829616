"""A process that trains one job after another, so that imports, data and collectives are set up once.

It reads what to do, one line of JSON each, from its standard input: {"train": options}, or {"call": "module:function",
"workdir": of a run that has ended, "given": arguments by name}. It answers each with a line: `summary` or `value`, or
`error`. Its argument is the number of devices; without one there are as many as a run would have.
`experiments.studies.executing.local` starts it.

Where the input ends during a job, the study has ended, whatever killed it. The process then stops as on SIGTERM: the
state of the run is saved, and the run goes on from there when the study does.
"""

import importlib
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import msgspec
from absl import logging

from .. import _locks
from .._errors import HeldError, UsageError, UsersError
from ..problems import loading
from ..training.config.options import TrainConfig
from ..training.machine import devices
from ..training.progress import NonFiniteLossError
from ..training.session import train
from ..training.storage import workdir
from .executing.local import CORES
from .executing.task import Answer

# How long a process that is to stop may take for the update that it is at, and how long it waits for an earlier one
# to leave the folder of a run.
GRACE_SECONDS, WAIT_SECONDS = 60.0, 120.0


def main() -> None:
    """Answers until there is nothing more to do."""
    # A terminal sends Ctrl-C to the study and to this process; the study says what is to be done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("SIGHUP", "SIGQUIT"):
        # So does a terminal that is closed, which ends the study; its end is noticed.
        if (sent := getattr(signal, name, None)) is not None:
            signal.signal(sent, signal.SIG_IGN)
    # Before a run, which takes the arguments for its own.
    num_devices = int(sys.argv[1]) if len(sys.argv) > 1 else None
    _keep_to_share()
    with os.fdopen(os.dup(1), "w") as answers:
        # A run prints to the standard output, which must not be taken for an answer.
        os.dup2(2, 1)
        logging.set_verbosity(logging.WARNING)
        given = _Input(sys.stdin)
        for line in given.lines():
            print(f"\n{line}", end="", flush=True)
            try:
                made = answer(json.loads(line), num_devices)
            finally:
                # Also where a job ends the process: it ends as the job says.
                given.is_busy.clear()
            print(json.dumps(made), file=answers, flush=True)


def _keep_to_share() -> None:
    """Keeps the process, and the threads that it will start, to its share of the cores."""
    if cores := os.environ.get(CORES):
        # A run has as many devices as it would have on the whole machine, so that its numbers are the same.
        devices.cpu_cores()
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})


class _Input:
    """The lines of a stream; if it ends during a job, the process is told to stop.

    Attributes:
      is_busy: set from when a line is read; to be cleared when its job is done.
    """

    def __init__(self, stream: TextIO):
        self._stream, self.is_busy = stream, threading.Event()
        self._read: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def lines(self) -> Iterator[str]:
        """Yields each line."""
        threading.Thread(target=self._watch, name="input", daemon=True).start()
        while (line := self._read.get()) is not None:
            yield line

    def _watch(self) -> None:
        for line in self._stream:
            self.is_busy.set()
            self._read.put(line)
        if self.is_busy.is_set():
            print("The study has ended; this process stops.", flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(GRACE_SECONDS)
            os._exit(128 + signal.SIGTERM)
        self._read.put(None)


_is_set_up = False


def answer(asked: dict[str, Any], num_devices: int | None) -> Answer:
    """Does what is asked, and returns the answer, or the error of whatever fails.

    Args:
      asked: {"train": options}, or {"call": "module:function", "workdir": folder, "given": arguments by name}.
      num_devices: the number of devices of the process; None: as many as a run would have.
    """
    global _is_set_up
    try:
        if not _is_set_up:
            loading.keep()
            # Once: a CPU is divided before its first use. A run takes as many of the parts as divide its batch.
            devices.set_up(num_devices)
            _is_set_up = True
        return _done(asked)
    # The next job may do better, whatever the error is.
    except Exception as error:
        logging.exception("The job failed.")
        return {
            "error": f"{error}" or type(error).__name__,
            "diverged": isinstance(error, NonFiniteLossError),
            # The same options would be refused again; code of the user's own may do better, and a folder be free.
            "refused": isinstance(error, UsageError) and not isinstance(error, UsersError | HeldError),
        }


def _done(asked: dict[str, Any]) -> Answer:
    if "train" in asked:
        # The summary names the command.
        sys.argv[1:] = [f"--{name}={value}" for name, value in asked["train"].items()]
        config = TrainConfig(**asked["train"])
        _wait_for_an_earlier_process(Path(str(config.workdir)))
        return {"summary": msgspec.to_builtins(train(config))}
    module, _, name = asked["call"].partition(":")
    return {"value": getattr(importlib.import_module(module), name)(Path(asked["workdir"]), **asked.get("given", {}))}


def _wait_for_an_earlier_process(folder: Path) -> None:
    """Waits for a process of a study that was killed, which may still be at its last update."""
    until = time.monotonic() + WAIT_SECONDS
    while _locks.is_held(folder / workdir.FILE) and time.monotonic() < until:
        time.sleep(_locks.POLL_SECONDS)


if __name__ == "__main__":
    main()
