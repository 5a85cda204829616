"""Tasks on this machine: worker processes side by side, each with its own share of the accelerators or of the cores."""

import contextlib
import importlib.util
import itertools
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ... import _commands, _files
from ..._errors import UsageError
from .task import Answer, Task

LOG = "worker.log"
# The environment variables of a worker: its cores, as numbers, and its GPUs.
CORES, GPUS = "BATCHNORM_JAX_WORKER_CORES", "CUDA_VISIBLE_DEVICES"
# The versions of CUDA for which JAX has a plugin.
CUDA_PLUGINS = (12, 13)
# Files of accelerators that a worker cannot be given a share of: TPUs, AMD's GPUs.
OTHER_ACCELERATORS = ("accel*", "kfd")


class Share(NamedTuple):
    """The part of the machine that a worker has.

    Attributes:
      cores: the numbers of its CPU cores; None: all.
      gpus: the numbers or names of its GPUs, as CUDA_VISIBLE_DEVICES has them; None: all.
      name: the name of the part in a row; "": the whole machine.
    """

    cores: tuple[int, ...] | None = None
    gpus: tuple[str, ...] | None = None
    name: str = ""

    def environment(self) -> dict[str, str]:
        """Returns the environment variables that a worker needs."""
        found = {}
        if self.cores is not None:
            found[CORES] = ",".join(map(str, self.cores))
        if self.gpus is not None:
            found[GPUS] = ",".join(self.gpus)
        return found


WHOLE = Share()


def shares(parallel: int, cores: Sequence[int], gpus: Sequence[str]) -> list[Share]:
    """Returns equal parts of a machine, one for each of several workers.

    Args:
      parallel: the number of workers.
      cores: the numbers of the CPU cores.
      gpus: the GPUs.

    Raises:
      UsageError: there are fewer GPUs or cores than workers.

    Example:
      >>> [share.cores for share in shares(2, [0, 1, 2, 3], [])]
      [(0, 1), (2, 3)]
    """
    if parallel == 1:
        return [WHOLE]
    for what, there in (("a GPU", gpus), ("a CPU core", cores)):
        if there and len(there) < parallel:
            raise UsageError(
                f"--parallel={parallel} gives each run {what} of its own, and of these there are {len(there)}; give "
                f"--parallel={len(there)} at most"
            )

    def part(of: Sequence[Any], number: int) -> tuple[Any, ...]:
        each = len(of) // parallel
        return tuple(of[number * each : (number + 1) * each])

    return [
        Share(
            part(cores, number) if cores else None,
            part(gpus, number) if gpus else None,
            f"worker {number + 1} of {parallel}",
        )
        for number in range(parallel)
    ]


def gpus_here() -> list[str]:
    """Returns the NVIDIA GPUs that this process may use, without using them."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & {name.strip() for name in platforms.split(",")}:
        return []
    if not any(importlib.util.find_spec(f"jax_cuda{number}_plugin") for number in CUDA_PLUGINS):
        return []
    given = os.environ.get(GPUS)
    if given is not None:
        # What follows a number below 0 is hidden.
        return list(itertools.takewhile(lambda name: not name.startswith("-"), filter(None, given.split(","))))
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
        return [str(number) for number, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU"))]
    return []


def _refuse_other_accelerators(parallel: int) -> None:
    """Refuses workers side by side where each would take all accelerators.

    Raises:
      UsageError: the machine has others than NVIDIA's.
    """
    if "cpu" in os.environ.get("JAX_PLATFORMS", ""):
        return
    if any(found for name in OTHER_ACCELERATORS for found in Path("/dev").glob(name)):
        raise UsageError(
            f"--parallel={parallel} can give each run a share of NVIDIA's GPUs or of the CPU cores, and this machine "
            "has other accelerators; leave it out, or set JAX_PLATFORMS=cpu"
        )


def cores_here() -> list[int]:
    """Returns the numbers of the CPU cores that this process may use; none where they cannot be told apart."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


class Local:
    """Worker processes on this machine; an `Executor`."""

    def __init__(self, folder: Path, parallel: int = 1):
        """Prepares workers, which start with their first task.

        Args:
          folder: the folder of the study, whose `worker.log` gets what the workers print.
          parallel: the number of tasks side by side.

        Raises:
          UsageError: the machine has fewer accelerators or cores.
        """
        if parallel > 1:
            _refuse_other_accelerators(parallel)
        parts = [WHOLE] if parallel == 1 else shares(parallel, cores_here(), gpus_here())
        self._workers = [_Worker(folder, part) for part in parts]
        # Where several share the machine, what is to be alone has all of it.
        self._alone = self._workers[0] if parallel == 1 else _Worker(folder, WHOLE)
        self._busy: dict[_Worker, Task] = {}

    @property
    def running(self) -> list[Task]:
        """The tasks under way."""
        return list(self._busy.values())

    def takes(self, task: Task, begun: Sequence[Task] = ()) -> bool:
        """Returns whether a worker is free for a task, beside those that are about to begin."""
        others = [*self._busy.values(), *begun]
        if task.alone or any(other.alone for other in others):
            return not others
        return len(others) < len(self._workers)

    def submit(self, tasks: Sequence[Task]) -> None:
        """Gives each task to a free worker, if possible to one that has as many devices already."""
        for task in tasks:
            if task.alone and self._alone not in self._workers:
                # Idle workers hold memory of the devices.
                for worker in self._workers:
                    worker.end()
            free = [self._alone] if task.alone else [worker for worker in self._workers if worker not in self._busy]
            worker = min(free, key=lambda worker: not worker.suits(task.num_devices))
            if not task.alone and self._alone not in self._workers:
                self._alone.end()
            self._busy[worker] = task
            worker.begin(task.what, task.num_devices)

    def finished(self, seconds: float) -> list[tuple[Task, Answer]]:
        """Returns the tasks that have ended, with their answers; waits up to some seconds for the first."""
        if not self._busy:
            return []
        with selectors.DefaultSelector() as selector:
            for worker in self._busy:
                selector.register(worker.answers, selectors.EVENT_READ, worker)
            ready = [key.data for key, _ in selector.select(seconds)]
        return [(self._busy.pop(worker), worker.answer()) for worker in ready]

    def end(self, *, now: bool = False) -> None:
        """Lets the workers end; `now`: after the update that each is at."""
        workers = {*self._workers, self._alone}
        if now:
            # All at once, since each takes a while.
            for worker in workers:
                worker.stop()
        for worker in workers:
            worker.end()
        self._busy.clear()


class _Worker:
    """A process that trains: a new one for another number of devices, and after a run that ended the last one."""

    def __init__(self, folder: Path, share: Share):
        self._folder, self._share = folder, share
        self._process: Any = None  # A subprocess.Popen, whose pipes a type checker takes to be missing.
        self._num_devices: int | None = None

    def suits(self, num_devices: int | None) -> bool:
        """Returns whether the process is there and has so many devices."""
        return self._process is not None and self._num_devices == num_devices

    def begin(self, what: Any, num_devices: int | None) -> None:
        """Asks the process for something; `answer` has to be called before the next."""
        # A CPU is divided into devices once in a process.
        if num_devices != self._num_devices:
            self.end()
        process = self._process or self._start(num_devices)
        # A process that has ended is found out by its missing answer.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(what) + "\n")
            process.stdin.flush()

    @property
    def answers(self) -> Any:
        """The stream of answers."""
        return self._process.stdout

    def answer(self) -> Answer:
        """Returns the answer, for which it waits."""
        process = self._process
        line = process.stdout.readline()
        if line:
            return {**json.loads(line), **({"ran_on": self._share.name} if self._share.name else {})}
        self.end()
        said = _files.read_lines(self._folder / LOG)[-1:]
        last = f' ("{said[0].strip():.200}")' if said and said[0].strip() else ""
        return {
            "diverged": False,
            "error": f"its process ended with exit status {process.returncode}{last}; see {LOG} in the workdir",
        }

    def _start(self, num_devices: int | None) -> Any:
        self._num_devices = num_devices
        with _files.open_to_add(self._folder / LOG) as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    _commands.module("studies.worker"),
                    *([] if num_devices is None else [str(num_devices)]),
                ],
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **self._share.environment()},
            )
        return self._process

    def stop(self) -> None:
        """Has the process end after the update that it is at, if there is one."""
        if self._process is not None:
            self._process.terminate()

    def end(self) -> None:
        """Lets the process end, if there is one, and waits for it."""
        if self._process is not None:
            # The process ends when there is nothing more to read; one that has ended may have left a line unread.
            with contextlib.suppress(BrokenPipeError):
                self._process.communicate()
        self._process = self._num_devices = None
