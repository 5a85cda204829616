"""Training runs as jobs: each in a process of its own, its result a row that is kept as soon as it ends."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

FILE = "results.jsonl"


class Job(NamedTuple):
    """A training run.

    Attributes:
      key: names it; a job whose key has a row is not run again.
      options: of `TrainConfig`, without its workdir.
    """

    key: str
    options: dict[str, Any]


def workdir(job: Job, folder: Path) -> Path:
    """The folder of a job's run: another one for other options, so that a changed recipe is another run."""
    digest = hashlib.sha256(json.dumps(job.options, sort_keys=True).encode()).hexdigest()[:8]
    return folder / "runs" / f"{job.key}-{digest}"


def command(job: Job, folder: Path) -> list[str]:
    """The arguments of the training command of a job, after `python`."""
    options = {**job.options, "workdir": workdir(job, folder)}
    return ["-m", "experiments.train", *(f"--{name}={value}" for name, value in options.items() if value is not None)]


def run(jobs: Iterable[Job], folder: Path) -> list[dict[str, Any]]:
    """Runs the jobs that have no row yet, and returns the rows of all.

    A study that was stopped goes on where it was, in the middle of a training run too. A run that fails is a row with
    its error, and is tried again when the study is started again.

    Args:
      jobs: in the order in which to run them.
      folder: of the study; rows are appended to `results.jsonl` in it.

    Returns:
      The rows, in the order of the jobs: `key`, `options`, `command`; and `summary`, as `experiments.train` leaves it,
      or `error`.
    """
    jobs = list(jobs)
    folder.mkdir(parents=True, exist_ok=True)
    done = {row["key"]: row for row in read(folder / FILE) if "summary" in row and _matches(row, jobs)}
    waiting = [job for job in jobs if job.key not in done]
    for number, job in enumerate(waiting, start=1):
        started = time.monotonic()
        row = _run(job, folder)
        _append(folder / FILE, row)
        done[job.key] = row
        print(
            f"{number} of {len(waiting)}  {time.monotonic() - started:>5.0f} s  {job.key:<44} {_say(row)}", flush=True
        )
    return [done[job.key] for job in jobs]


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, the last of each key. A line that was cut short is named and left out."""
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines() if path.exists() else [], start=1):
        try:
            row = json.loads(line)
            rows[row["key"]] = row
        except (json.JSONDecodeError, KeyError):
            logging.warning("%s, line %d is not a whole row and is left out", path, number)
    return list(rows.values())


def _append(path: Path, row: dict[str, Any]) -> None:
    """Adds a row, on a line of its own even where the last one was cut short."""
    with path.open("ab+") as file:
        cut = file.tell() > 0 and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
        file.write((b"\n" if cut else b"") + json.dumps(row).encode() + b"\n")


def _matches(row: dict[str, Any], jobs: Sequence[Job]) -> bool:
    """Whether a row is of the job that now has its key."""
    return all(row["options"] == json.loads(json.dumps(job.options)) for job in jobs if job.key == row["key"])


def _run(job: Job, folder: Path) -> dict[str, Any]:
    arguments = command(job, folder)
    ended = subprocess.run([sys.executable, *arguments], text=True, capture_output=True, check=False)
    row: dict[str, Any] = {"key": job.key, "options": job.options, "command": "python " + " ".join(arguments)}
    if ended.returncode == 0:
        summary = json.loads((workdir(job, folder) / "summary.json").read_text())
        return {**row, "summary": summary}
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    tail = ended.stderr.strip().splitlines()[-1:] or [f"exit status {ended.returncode}"]
    return {**row, "error": (errors or tail)[-1].removeprefix("error: ")}


def _say(row: dict[str, Any]) -> str:
    if "error" in row:
        return row["error"]
    return "  ".join(f"{name} {result['accuracy']:.2%}" for name, result in row["summary"]["results"].items())
