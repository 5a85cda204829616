"""The driver suite: what the driver of a study costs beside the runs that it makes.

No run is made: workers answer at once, with the summary of a run. Each part has a process of its own, since the most
memory of a process cannot be taken back.
"""

import contextlib
import functools
import math
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from .. import _files, _workdirs
from ..records.benchmarks.driver import DriverFile, DriverRow
from ..records.fields import Options
from ..records.runs import Result, Summary, Target
from ..studies import convergence, jobs, settings
from ..studies.driver import Runner
from ..studies.executing.task import Answer, Executor, Task
from ..studies.question import Asked, Data
from ..studies.questions import QUESTIONS
from ..studies.questions import time as time_of_update
from .suite import Chosen, Keep, Suite, forget

WORKERS, JOBS, ROWS = 64, 1_000, 10_000
SIZES, RATES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096), (0.0025, 0.005, 0.01)
EXAMPLES = 60_000
# Of the jobs, one in so many is a seed: each has a run at every size, at one rate and at the best. And one in so many
# is a round of timings, each of which has a run at every size.
SEED_SHARE, TIME_SHARE = 22, 200
# The law of the runs: least updates, critical batch size, best rate beyond it, seconds per update, examples per second.
LEAST, CRITICAL, BEST_RATE, OVERHEAD, THROUGHPUT = 300, 300.0, 0.3, 1e-3, 1e4


class Idle:
    """Workers that train nothing, and answer at once; an `Executor`."""

    def __init__(self, folder: Path, workers: int = WORKERS):
        """Prepares a number of workers; nothing is kept in the folder."""
        del folder
        self._workers = workers
        self._tasks: list[Task] = []

    @property
    def running(self) -> list[Task]:
        """The tasks that were submitted."""
        return list(self._tasks)

    def takes(self, task: Task, begun: Sequence[Task] = ()) -> bool:
        """Returns whether a worker is free."""
        del task
        return len(self._tasks) + len(begun) < self._workers

    def submit(self, tasks: Sequence[Task]) -> None:
        """Takes tasks."""
        self._tasks += tasks

    def finished(self, seconds: float) -> list[tuple[Task, Answer]]:
        """Returns the task that was submitted first, with its answer."""
        del seconds
        return [self._answered(self._tasks.pop(0))] if self._tasks else []

    def _answered(self, task: Task) -> tuple[Task, Answer]:
        return task, {"summary": msgspec.to_builtins(summary(task.what["train"]))}

    def end(self, *, now: bool = False) -> None:
        """Forgets the tasks."""
        del now
        self._tasks.clear()


class _BegunError(Exception):
    """Raised where a study has something to run."""


class _Begins(Idle):
    """Workers that are given nothing: the study ends where its first run would begin."""

    def submit(self, tasks: Sequence[Task]) -> None:
        """Ends the study.

        Raises:
          _BegunError: always.
        """
        raise _BegunError(tasks[0].key)


def summary(options: Options) -> Summary:
    """Returns the summary of a run that nobody made: to the target as long as the usual curve says, by seed."""
    size, rate, seed = (float(options[name] or 0) for name in ("batch_size", "learning_rate", "seed"))
    best = BEST_RATE / (1 + CRITICAL / size)
    off = 1 + 0.3 * math.log2(rate / best) ** 2
    updates = max(1, round(LEAST * (1 + CRITICAL / size) * off * (1 + 0.2 * math.sin(seed))))
    steps = options.get("steps")
    compute = (updates if steps is None else int(steps)) * (OVERHEAD + size / THROUGHPUT)
    return Summary(
        results={"validation": Result(accuracy=0.9, loss=0.5, examples=1_000)},
        updates=updates if steps is None else int(steps),
        epochs=2.0,
        target=None if steps is not None else Target(accuracy=0.9, reached_after_updates=updates),
        seconds={"compute": compute, "input": 0.1, "log": 0.1, "start": 1.0, "in all": compute + 1.2},
        devices="1 x cpu",
        versions={"python": platform.python_version()},
    )


def _drive(folder: Path, number: int, workers: Callable[[Path], Executor] = Idle) -> int:
    """Runs the jobs of a study on the workers, and returns how many there are."""
    data = Data({"dataset": "digits", "model": "simple_cnn"}, examples=EXAMPLES, held_out=0)
    seeds = number // SEED_SHARE
    study = settings.study_of(
        data.options,
        time_of_update.Setting(SIZES, examples=EXAMPLES, rounds=max(2, number // TIME_SHARE)),
        convergence.Setting(0.9, SIZES, SIZES, RATES, max_epochs=40, seeds=tuple(range(seeds))),
    )
    _workdirs.claim(folder, _workdirs.STUDY)
    _files.write_json(folder / "study.json", data.options)
    with Runner(folder, workers) as runner:
        asked = Asked(study, data, runner)
        runner.pursue(
            {name: functools.partial(QUESTIONS[name].answer, asked) for name in ("time", "convergence")},
            lambda name, analysis: _files.write_json(folder / f"{name}.json", analysis),
        )
    return len(runner.rows())


def _start(folder: Path, number: int) -> int:
    """Starts a study that lacks a few seeds, up to the first run, and returns how many rows it found."""
    with contextlib.suppress(_BegunError):
        _drive(folder, number + SEED_SHARE, _Begins)
    return len(jobs.read(folder / jobs.FILE))


def _report(folder: Path) -> int:
    """Writes the page of a study, and returns how many rows it has."""
    from ..reporting import write_study_page

    write_study_page(folder)
    return len(jobs.read(folder / jobs.FILE))


# By name: the number of jobs, whether their rows are there before, and what is timed.
CASES: dict[str, tuple[int, bool, Callable[[Path, int], int]]] = {
    "study": (JOBS, False, _drive),
    "start": (ROWS, True, _start),
    "resume": (ROWS, True, _drive),
    "report": (ROWS, True, lambda folder, _: _report(folder)),
}
PARTS = tuple(CASES)


def _measured(name: str, folder: str, prepares: bool, answers: Any) -> None:
    """Measures a part in this process, or prepares it, and puts number, seconds and megabytes into a queue."""
    wanted, _, work = CASES[name]
    started = time.monotonic()
    # The lines of a thousand jobs say nothing here.
    with Path(os.devnull).open("w") as nothing, contextlib.redirect_stdout(nothing):
        number = _drive(Path(folder), wanted) if prepares else work(Path(folder), wanted)
    seconds = time.monotonic() - started
    answers.put((number, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def _in_a_process(name: str, folder: Path, *, prepares: bool) -> tuple[int, float, float]:
    """Returns number, seconds and megabytes of a part, measured in a process of its own."""
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=_measured, args=(name, str(folder), prepares, answers))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the process of the part {name} ended with exit status {process.exitcode}")
    return answers.get()


def run(chosen: Chosen, keep: Keep = forget) -> list[DriverRow]:
    """Measures the driver.

    Args:
      chosen: names from `PARTS`; the timing does not matter.
      keep: a function that is given the rows so far after each row.
    """
    rows: list[DriverRow] = []
    for name in chosen.parts:
        with tempfile.TemporaryDirectory() as folder:
            if CASES[name][1]:
                _in_a_process(name, Path(folder), prepares=True)
            number, seconds, megabytes = _in_a_process(name, Path(folder), prepares=False)
        rows.append(
            DriverRow(
                part=name,
                jobs=number,
                workers=0 if CASES[name][1] else WORKERS,
                seconds=seconds,
                megabytes=megabytes,
                platform=f"{os.cpu_count()} cores, Python {platform.python_version()}",
            )
        )
        print(describe(rows[-1]), flush=True)
        keep(rows)
    return rows


def describe(row: DriverRow) -> str:
    """Returns the line of the printed table."""
    each = f"{1e3 * row.seconds / row.jobs:.2f} ms each"
    return f"{row.part:8}{row.jobs:>7,} jobs   {row.seconds:.2f} s, {each}   {row.megabytes:.0f} MB"


SUITE = Suite(
    name="driver",
    help="what the driver of a study costs: 1,000 jobs on 64 workers that train nothing, 10,000 rows",
    parts=PARTS,
    measure=lambda chosen, _, keep: run(chosen, keep),
    file=DriverFile,
)
