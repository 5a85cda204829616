"""Marks each folder of results with the program that made it, so that no other program writes into it."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from . import _commands, _files, _locks
from ._errors import UsageError

RUN, STUDY, NORM_STUDY, RECOMMENDATION = "train", "batch_size_study", "norm_study", "recommend"
BRANCHES = "branch"
# The results of each program, as an error message calls them.
RESULTS_OF = {
    RUN: f"a run of {_commands.program(RUN)}",
    STUDY: f"a study of {_commands.program(STUDY)}",
    NORM_STUDY: f"a study of {_commands.program(NORM_STUDY)}",
    RECOMMENDATION: f"a recommendation of {_commands.program(RECOMMENDATION)}",
    BRANCHES: f"branches of {_commands.program(BRANCHES)}",
}
# The file that names the program. Folders of earlier versions lack it; there the result files tell.
MARK_FILE = ".program"
# The lock that the process holds which runs a study.
DRIVER_LOCK = ".driver"
ROWS_FILE = "results.jsonl"
_FILES = {
    "recommendation.json": RECOMMENDATION,
    "study.json": STUDY,
    "branches.jsonl": BRANCHES,
    "config.json": RUN,
    "metrics.jsonl": RUN,
}
# Beginnings of the keys of a norm study's rows, and of a recommendation's.
_KEYS = (
    (NORM_STUDY, rb"grid-(?:classification|segmentation)|rate-(?:batch|frozen)"),
    (RECOMMENDATION, rb"time-b\d+\"|short-|target-|largest-"),
)


def program_of(folder: Path) -> str | None:
    """Returns the program whose results a folder holds, or None if the folder holds no known results."""
    try:
        marked = (folder / MARK_FILE).read_text(errors="replace").strip()
    except (OSError, ValueError):
        marked = ""
    if marked in RESULTS_OF:
        return marked
    for name, program in _FILES.items():
        if (folder / name).exists():
            return program
    try:
        rows = (folder / ROWS_FILE).read_bytes()
    except (OSError, ValueError):
        return None
    for program, keys in _KEYS:
        if re.search(rb'"key": "(?:' + keys + rb")", rows):
            return program
    return STUDY


def claim(folder: Path, program: str) -> None:
    """Creates a folder and marks it as a program's own; refuses a folder that holds the results of another program.

    Args:
      folder: the folder.
      program: the name of the program, such as `STUDY`.

    Raises:
      UsageError: the folder holds results of another program, or cannot be created or written to.
    """
    check(folder, program)
    _files.make_folder(folder)
    if program_of(folder) is None:
        _files.write(folder / MARK_FILE, f"{program}\n")


@contextlib.contextmanager
def driving(folder: Path) -> Iterator[None]:
    """Holds the lock of a study, which one process at a time may run, for as long as the context lasts.

    Args:
      folder: the folder of the study, made if need be.

    Raises:
      StorageError: the lock file cannot be opened.
      UsageError: another process runs the study; the message names it.
    """

    def refuse(who: str) -> str:
        return f"--workdir={folder}: {who} is running this study; wait until it ends, or give another --workdir"

    _files.make_folder(folder)
    # Whoever asks for the status of a study holds its lock for a moment.
    with _locks.held(folder / DRIVER_LOCK, refuse, wait=2.0):
        yield


def check_can_be_made(folder: Path, flag: str = "workdir") -> None:
    """Refuses a folder that cannot be created or written to; leaves nothing behind.

    Args:
      folder: the folder.
      flag: the name of the flag that gave the folder, for the message.

    Raises:
      UsageError: the folder cannot be created or written to; the message names the flag.
    """
    made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        _files.make_folder(folder, flag)
    finally:
        for path in made:
            # Another process may have put a file into the folder in the meantime.
            with contextlib.suppress(OSError):
                path.rmdir()


def check(folder: Path, program: str) -> None:
    """Refuses a folder that holds the results of another program; changes nothing.

    Raises:
      UsageError: the folder holds such results; the message names their program.
    """
    found = program_of(folder)
    if found not in (None, program):
        raise UsageError(
            f"--workdir={folder} holds {RESULTS_OF[found]}, and this would be {RESULTS_OF.get(program, program)}; give "
            "another --workdir"
        )
