"""The lock of a workdir, which lets one process at a time train in it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ... import _locks, _workdirs

FILE = ".lock"


@contextlib.contextmanager
def only_one(workdir: Path) -> Iterator[None]:
    """Creates the folder of a run, and locks it against a second process for as long as the context lasts.

    Args:
      workdir: the folder of the run.

    Raises:
      StorageError: the lock file cannot be opened.
      UsageError: another process is training in the folder, the folder cannot be created, or it holds results of
        another program.
    """
    _workdirs.claim(workdir, _workdirs.RUN)

    def refuse(who: str) -> str:
        return f"--workdir={workdir}: {who} is training in this folder; wait until it ends, or give another --workdir"

    with _locks.held(workdir / FILE, refuse):
        yield
