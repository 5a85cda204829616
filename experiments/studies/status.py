"""How far a study is: a line for its own terminal, and a file for others to look at."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from .. import _files, _locks, _workdirs
from .._errors import StorageError
from ..records.studies import Progress
from ..training.terminal import StatusLine, duration

FILE = "progress.json"
# The file is written at most so often, since thousands of short jobs may end in a second.
WRITE_SECONDS = 2.0
# So many names of running jobs fit into a line.
MOST_NAMES = 3


class Status:
    """The counts of a study that runs. Use it as a context."""

    def __init__(self, folder: Path, *, is_quiet: bool = False):
        """Begins with nothing done.

        Args:
          folder: the folder of the study.
          is_quiet: shows no line; the file is written.
        """
        self._path, self._line = folder / FILE, StatusLine(hidden=is_quiet)
        self._done = self._failed = self._again = 0
        self._seconds, self._written = 0.0, -WRITE_SECONDS
        self._shown: Progress | None = None

    def __enter__(self) -> "Status":
        self._line.__enter__()
        return self

    def __exit__(self, *_) -> None:
        self._line.__exit__()
        if self._shown is not None:
            self._write(self._shown)

    def count(self, seconds: float, *, is_error: bool, again: bool) -> None:
        """Counts a job that has ended.

        Args:
          seconds: the time that it took.
          is_error: it ended with an error, and is not tried again.
          again: it ended with an error, and is tried again.
        """
        self._seconds += seconds
        self._again += again
        if not again:
            self._failed += is_error
            self._done += not is_error

    def place(self, waiting: int, running: int) -> str:
        """Returns the place of the job that ended last among all that are known.

        Args:
          waiting: the number of jobs that wait.
          running: the number of jobs under way.
        """
        ended = self._done + self._failed
        return f"{ended} of {ended + waiting + running}"

    def show(self, running: Sequence[str], waiting: int) -> None:
        """Shows how far the study is, and writes it down.

        Args:
          running: the names of the jobs under way.
          waiting: the number of jobs that wait.
        """
        ended = self._done + self._failed + self._again
        left = None
        if ended and running:
            left = self._seconds / ended * (waiting + len(running) / 2) / len(running)
        self._shown = Progress(
            done=self._done,
            running=list(running),
            waiting=waiting,
            failed=self._failed,
            seconds_left=left,
            updated=time.time(),
        )
        self._line.draw(lambda columns: describe(self._shown)[:columns] if self._shown else "")
        if time.monotonic() - self._written >= WRITE_SECONDS:
            self._write(self._shown)

    def _write(self, shown: Progress) -> None:
        self._written = time.monotonic()
        # A file that only informs must not end a study.
        with contextlib.suppress(StorageError):
            _files.write_json(self._path, shown)


def describe(progress: Progress) -> str:
    """Returns how far a study is in one line.

    Example:
      >>> describe(Progress(done=12, running=["a", "b"], waiting=30, failed=1, seconds_left=840.0, updated=0.0))
      '12 done, 2 running, 30 waiting, 1 failed, about 14:00 left: a, b'
    """
    counts = f"{progress.done} done, {len(progress.running)} running, {progress.waiting} waiting"
    failed = f", {progress.failed} failed"
    left = "" if progress.seconds_left is None else f", about {duration(progress.seconds_left)} left"
    more = len(progress.running) - MOST_NAMES
    names = ", ".join(progress.running[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
    return f"{counts}{failed}{left}{f': {names}' if names else ''}"


def lines(folder: Path) -> list[str]:
    """Returns how far a study is that another process runs, in words.

    Args:
      folder: the folder of the study.
    """
    holder = _locks.holder_of(folder / _workdirs.DRIVER_LOCK)
    here = _locks.is_held(folder / _workdirs.DRIVER_LOCK)
    found = [f"status    {folder}: no study has been run here"]
    if holder is None and (folder / FILE).exists():
        found = ["status    not running"]
    elif holder is not None:
        since = duration(max(0.0, time.time() - holder.since))
        found = [
            f"status    run by {holder}, for {since}"
            if here
            else f"status    not running; {holder} was the last to run it. The same command without --status goes on"
        ]
    if (folder / FILE).exists():
        progress = _files.read_json(folder / FILE, Progress)
        if not here:
            # What was under way waits.
            waiting = progress.waiting + len(progress.running)
            progress = Progress(
                done=progress.done, running=[], waiting=waiting, failed=progress.failed, updated=progress.updated
            )
        age = duration(max(0.0, time.time() - progress.updated))
        found.append(f"runs      {describe(progress)}; {age} ago, since it was started last")
    return found
