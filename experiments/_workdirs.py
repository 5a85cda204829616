"""Marks each folder of results with the program that made it, so that no other program writes there."""

import contextlib
import os
import re
from pathlib import Path

from experiments import _files
from experiments._errors import UsageError

RUN, STUDY, NORM_STUDY, RECOMMENDATION = "train", "batch_size_study", "norm_study", "recommend"
# What each of them makes, in words.
MAKES = {
    RUN: "a run of experiments.train",
    STUDY: "a study of experiments.batch_size_study",
    NORM_STUDY: "a study of experiments.norm_study",
    RECOMMENDATION: "a recommendation of experiments.recommend",
}
# Says it in new folders; of older ones the result files tell.
MARK = ".program"
ROWS = "results.jsonl"
_FILES = {"recommendation.json": RECOMMENDATION, "study.json": STUDY, "config.json": RUN, "metrics.jsonl": RUN}
# What the rows of a recommendation begin with, and those of a norm study.
_KEYS = (
    (NORM_STUDY, rb"grid-(?:classification|segmentation)|rate-(?:batch|frozen)"),
    (RECOMMENDATION, rb"time-b\d+\"|short-|target-|largest-"),
)


def program_of(folder: Path) -> str | None:
    """The program whose results a folder holds; None: it holds none that are known."""
    try:
        marked = (folder / MARK).read_text(errors="replace").strip()
    except (OSError, ValueError):
        marked = ""
    if marked in MAKES:
        return marked
    for name, program in _FILES.items():
        if (folder / name).exists():
            return program
    try:
        rows = (folder / ROWS).read_bytes()
    except (OSError, ValueError):
        return None
    for program, keys in _KEYS:
        if re.search(rb'"key": "(?:' + keys + rb")", rows):
            return program
    return STUDY


def claim(folder: Path, program: str) -> None:
    """Makes a folder the results of a program, or refuses one that holds those of another.

    Raises:
      UsageError: it holds what another program made, or cannot be made or written to.
    """
    check(folder, program)
    _files.make_folder(folder)
    if program_of(folder) is None:
        _files.write(folder / MARK, f"{program}\n")


def check_can_be_made(folder: Path, flag: str = "workdir") -> None:
    """Refuses a folder that cannot be made or written to, and leaves everything as it was.

    Raises:
      UsageError: the message names the flag.
    """
    made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        _files.make_folder(folder, flag)
    finally:
        for path in made:
            # Somebody else may have put something there since.
            with contextlib.suppress(OSError):
                path.rmdir()


def check(folder: Path, program: str) -> None:
    """Refuses a folder that holds the results of another program; changes nothing.

    Raises:
      UsageError: that program is named.
    """
    found = program_of(folder)
    if found not in (None, program):
        raise UsageError(
            f"--workdir={folder} holds {MAKES[found]}, and this would be {MAKES.get(program, program)}; give another "
            "--workdir"
        )
