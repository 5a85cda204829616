"""The driver suite: what the driver of a study costs beside the runs that it makes.

No run is made: workers answer at once, with the summary of a run. Each part has a process of its own, since the most
memory of a process cannot be taken back.
"""

import json
import multiprocessing
import os
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from .. import _files, _workdirs
from ..records.benchmarks.driver import DriverFile, DriverRow
from ..records.runs import Result, Summary, Target
from ..studies import jobs
from ..studies.executing.task import Answer, Task
from ..studies.jobs import Job, Runner
from .suite import Chosen, Keep, Suite, forget

WORKERS, JOBS, ROWS = 64, 1_000, 10_000
SIZES, RATES = (16, 64, 256, 1024), (0.01, 0.02, 0.04, 0.08, 0.16)


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
        return [(self._tasks.pop(0), {"summary": msgspec.to_builtins(summary())})] if self._tasks else []

    def end(self, *, now: bool = False) -> None:
        """Forgets the tasks."""
        del now
        self._tasks.clear()


def summary() -> Summary:
    """Returns the summary of a run that nobody made."""
    return Summary(
        results={"validation": Result(accuracy=0.9, loss=0.5, examples=1_000)},
        updates=500,
        epochs=2.0,
        target=Target(accuracy=0.9, reached_after_updates=400),
        seconds={"compute": 5.0, "start": 1.0, "in all": 7.0},
        devices="1 x cpu",
        versions={"python": platform.python_version()},
    )


def grid(number: int) -> list[Job]:
    """Returns a number of jobs, such as those of a grid."""
    found = []
    for place in range(number):
        size, rate = SIZES[place % len(SIZES)], RATES[place // len(SIZES) % len(RATES)]
        seed = place // (len(SIZES) * len(RATES))
        options: dict[str, Any] = {
            "dataset": "mnist", "model": "simple_cnn", "batch_size": size, "learning_rate": rate, "seed": seed,
            "target_accuracy": 0.9, "schedule": "constant", "warmup_epochs": 0,
        }  # fmt: skip
        found.append(Job(f"tuned-b{size}-r{rate:.4g}-seed{seed}", options))
    return found


def _drive(folder: Path) -> int:
    """Runs the jobs of a study on the workers, and returns their number."""
    with Runner(folder, Idle) as runner:
        return len(runner.run_all(grid(JOBS)))


def _resume(folder: Path) -> int:
    """Opens a study all of whose rows are there, and finds that there is nothing to do."""
    with Runner(folder, Idle) as runner:
        return len(runner.run_all(grid(ROWS)))


def _report(folder: Path) -> int:
    """Writes the page of a study with many rows."""
    from ..reporting import write_study_page

    write_study_page(folder)
    return ROWS


def _many_rows(folder: Path) -> None:
    """Writes the files of a study with many rows."""
    folder.mkdir(parents=True, exist_ok=True)
    _workdirs.claim(folder, _workdirs.STUDY)
    made = {"summary": msgspec.to_builtins(summary())}
    with (folder / jobs.FILE).open("w") as file:
        for job in grid(ROWS):
            row = {"version": 1, "key": job.key, "options": job.options, "command": f"train --x={job.key}", **made}
            file.write(json.dumps(row) + "\n")
    _files.write_json(folder / "study.json", {"dataset": "mnist"})
    _files.write_json(folder / "grid.json", {"version": 1, "keys": sorted(job.key for job in grid(ROWS))})


# By name: whether the rows are there before, the number of workers, and what is timed.
CASES: dict[str, tuple[bool, int, Callable[[Path], int]]] = {
    "jobs": (False, WORKERS, _drive),
    "resume": (True, 0, _resume),
    "report": (True, 0, _report),
}
PARTS = tuple(CASES)


def _measured(name: str, folder: str, answers: Any) -> None:
    """Measures a part in this process, and puts number, seconds and megabytes into a queue."""
    _, _, work = CASES[name]
    started = time.monotonic()
    number = work(Path(folder))
    seconds = time.monotonic() - started
    answers.put((number, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def run(chosen: Chosen, keep: Keep = forget) -> list[DriverRow]:
    """Measures the driver.

    Args:
      chosen: names from `PARTS`; the timing does not matter.
      keep: a function that is given the rows so far after each row.
    """
    context = multiprocessing.get_context("spawn")
    rows: list[DriverRow] = []
    for name in chosen.parts:
        has_rows, workers, _ = CASES[name]
        folder = Path(tempfile.mkdtemp())
        try:
            if has_rows:
                _many_rows(folder)
            answers = context.SimpleQueue()
            process = context.Process(target=_measured, args=(name, str(folder), answers))
            process.start()
            process.join()
            number, seconds, megabytes = answers.get()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        rows.append(
            DriverRow(
                part=name,
                jobs=number,
                workers=workers,
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
