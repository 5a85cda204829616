"""Training runs as jobs of a study: their options, folders and commands, and the rows that they leave."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import _commands, _files
from .._errors import UsageError
from ..records.rows import study_row
from ..records.studies import StudyRow
from ..training.config import plan
from ..training.config.options import TrainConfig

FILE = "results.jsonl"


class Job(NamedTuple):
    """A training run.

    Attributes:
      key: names the run; a job whose key has a row is not run again.
      options: the options of `TrainConfig`, without its workdir.
      label: the name of the run in a report.
      alone: its time is what matters, so that nothing else runs on the machine beside it.
    """

    key: str
    options: dict[str, Any]
    label: str = ""
    alone: bool = False


def devices_of(options: Mapping[str, Any]) -> int | None:
    """Returns the number of devices of the process that trains; None: as many as a run would have.

    A CPU is one device for a problem, unless more are asked for.
    """
    devices = options.get("num_devices")
    return 1 if devices is None and options.get("problem") is not None else devices


def workdir(job: Job, folder: Path) -> Path:
    """Returns the folder of a job's run: another one for other options, so that a changed recipe is another run."""
    digest = hashlib.sha256(json.dumps(without_place(job.options), sort_keys=True).encode()).hexdigest()[:8]
    return folder / "runs" / f"{job.key}-{digest}"


def command(job: Job, folder: Path) -> list[str]:
    """Returns the training command of a job."""
    options = {**job.options, "workdir": workdir(job, folder)}
    given = (f"--{name}={value}" for name, value in options.items() if value is not None)
    return [*_commands.start("train"), *given]


def refuse_hopeless(jobs: Sequence[Job], examples: int | None = None) -> None:
    """Refuses a study none of whose runs can begin, before any of them is started.

    Args:
      jobs: all that are known.
      examples: the number of training examples; None: it is not known, and sizes are not compared with it.

    Raises:
      UsageError: every one of them is refused; the message is that of the first.
    """
    first = None
    for job in jobs:
        try:
            config = TrainConfig(**job.options)
            if examples is not None:
                plan.make(config, examples, config.num_devices or 1)
            return
        except UsageError as error:
            first = first or error
    if first is not None:
        raise hopeless(jobs, first) from first


def hopeless(jobs: Sequence[Job], first: object) -> UsageError:
    """Returns the error of a study none of whose runs can begin, from that of the first."""
    devices = jobs[0].options.get("num_devices")
    given = "" if devices is None else f" with --num_devices={devices}"
    return UsageError(f"no run of this study can begin{given}: {first}")


def without_place(options: dict[str, Any]) -> dict[str, Any]:
    """Returns options without the place of the data: wherever they lie, the run is the same."""
    return {name: value for name, value in options.items() if name != "data_dir"}


def read(path: Path) -> list[StudyRow]:
    """Returns the rows of a file, the last of each key. A line that is not a whole row is named and left out."""
    return list({row.key: row for row in _files.read_rows(path, study_row)[0]}.values())
