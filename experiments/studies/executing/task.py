"""A task of an executor, and what an executor is to its study."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

# What a task came to: `summary` or `value`, or `error` and whether the loss `diverged`.
Answer = dict[str, Any]


class Task(NamedTuple):
    """Something to be done by a process that trains.

    Attributes:
      key: the name of the job.
      what: as `worker.answer` takes it: {"train": options}, or {"call": the name of a function, ...}.
      num_devices: the number of devices of the process; None: as many as a run would have.
      place: the folder of the run, or another one of its own, where an answer can be left.
      alone: nothing else may run on the machine at the same time, since its time is measured.
    """

    key: str
    what: Mapping[str, Any]
    num_devices: int | None
    place: Path
    alone: bool = False


class Executor(Protocol):
    """Runs tasks for one study."""

    def takes(self, task: Task, begun: Sequence[Task] = ()) -> bool:
        """Returns whether a task may be submitted, beside those that run and those that are about to."""
        ...

    def submit(self, tasks: Sequence[Task]) -> None:
        """Begins tasks, all of which it takes."""
        ...

    def finished(self, seconds: float) -> list[tuple[Task, Answer]]:
        """Returns the tasks that have ended, with their answers; waits up to some seconds for the first."""
        ...

    @property
    def running(self) -> list[Task]:
        """The tasks that were submitted and have not been returned by `finished`."""
        ...

    def end(self, *, now: bool = False) -> None:
        """Lets go of what it holds; `now`: tasks under way are stopped, and go on from their checkpoints later."""
        ...
