"""Runs a batch-size study: each question that is asked of it, or a list of what it would run."""

import functools
import shlex
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from .. import _files, _workdirs
from .._errors import UsageError
from ..records.fields import Options
from ..records.studies import Analysis, StudyRow
from ..training.config.options import PLACES
from .driver import Runner, try_out
from .executing.local import Local
from .executing.task import Executor
from .jobs import Job, command, refuse_hopeless
from .question import Asked, Changes, Data, Study
from .questions import QUESTIONS
from .settings import data_of, fitted


def run(
    study: Study,
    parts: Sequence[str],
    folder: Path,
    executor: Callable[[Path], Executor] = Local,
    *,
    command: str | None = None,
) -> list[str]:
    """Runs what has not been run, and keeps what the report of each question needs in `QUESTION.json`.

    Args:
      study: the settings.
      parts: names of questions.
      folder: the folder of the study.
      executor: returns what runs the jobs, given the folder.
      command: the command that asks for this, which the report shows; None: it is not noted.

    Returns:
      The keys of the runs that failed; the same command tries them again.

    Raises:
      UsageError: the folder holds a study of other data or another model, a part has too few batch sizes that the data
        allow, or no run can begin.
    """
    data = data_of(study)
    study = fitted(study, data.examples, parts)
    jobs = _possible(study, parts, data, Runner(folder))
    _claim(folder, study)

    def answered(part: str, analysis: Analysis) -> None:
        # A report shows the rows that this names, and not those of other settings that the folder may hold.
        _files.write_json(folder / f"{part}.json", analysis)
        print(f"part      {part} is answered", flush=True)

    names = _in_order(parts)
    with Runner(folder, executor) as runner:
        if command is not None:
            note_command(folder, command)
        runner.try_out(jobs)
        asked = Asked(study, data, runner)
        runner.pursue(
            {name: functools.partial(QUESTIONS[name].answer, asked) for name in names},
            answered,
            after={name: QUESTIONS[name].after for name in names},
        )
    return runner.failed()


def note_command(folder: Path, command: str) -> None:
    """Adds a command to the list of those that made a study, since several commands may each add parts to it."""
    made = folder / "command.txt"
    commands = _files.read_lines(made)
    _files.write(made, "".join(f"{line}\n" for line in dict.fromkeys([*commands, command])))


def unread(study: Study, parts: Sequence[str]) -> list[str]:
    """Returns the fields of `Changes` that change no setting of any of some questions."""
    settings = [study.of(QUESTIONS[part].setting) for part in parts]
    # Values that no setting has.
    probes = (
        Changes(target=0.123456),
        Changes(max_epochs=987_654),
        Changes(batch_sizes=(987_654,)),
        Changes(rates=(0.123456,)),
        Changes(seeds=(987_654,)),
    )
    return [
        name
        for name, probe in zip(Changes._fields, probes, strict=True)
        if all(setting.changed(probe) == setting for setting in settings)
    ]


def _in_order(parts: Sequence[str]) -> list[str]:
    """Returns names of questions in the order in which they are run."""
    return [name for name in QUESTIONS if name in parts]


def _possible(study: Study, parts: Sequence[str], data: Data, runner: Runner) -> list[Job]:
    """Returns the jobs of a study that are known, unless their options refuse all of them."""
    jobs = [job for part in parts for job in planned(study, part, data, runner)]
    refuse_hopeless(jobs, data.examples)
    return jobs


def _claim(folder: Path, study: Study) -> None:
    """Writes the data and the model of a study into its folder, or compares them with those that are there."""
    here = {name: value for name, value in study.options.items() if name not in PLACES}
    path = folder / "study.json"
    there = _files.read_json(path, Options) if path.exists() else here
    if there != here:
        differs = ", ".join(
            f"--{name}: {there.get(name)} there, {here.get(name)} here"
            for name in sorted({*there, *here})
            if there.get(name) != here.get(name)
        )
        raise UsageError(f"the folder {folder} holds a study of something else ({differs}); give another --workdir")
    _workdirs.claim(folder, _workdirs.STUDY)
    _files.write_json(path, here)


def planned(study: Study, part: str, data: Data, runner: Runner) -> list[Job]:
    """Returns the jobs of a question as far as they are known.

    Args:
      study: the settings.
      part: the name of the question.
      data: the data set.
      runner: holds the rows that rates follow from; the middle of the rates stands for those that are not found yet.
    """
    return QUESTIONS[part].planned(Asked(study, data, runner))


def describe(study: Study, parts: Sequence[str], folder: Path) -> list[str]:
    """Returns the commands of the runs that are left and known, and about how long each part takes."""
    data = data_of(study)
    study = fitted(study, data.examples, parts)
    runner = Runner(folder)
    try_out([job for job in _possible(study, parts, data, runner) if not runner.is_done(job)])
    lines, total = [], 0.0
    for part in _in_order(parts):
        known = planned(study, part, data, runner)
        waiting = [job for job in known if not runner.is_done(job)]
        asked = QUESTIONS[part]
        in_all = len(known) if asked.total is None else max(len(known), asked.total(Asked(study, data, runner)))
        # Those that are not known yet follow from the first, and are taken to be as long.
        left = in_all - (len(known) - len(waiting)) if waiting else 0
        seconds = estimated_seconds(waiting, data, runner.rows()) * (left / len(waiting) if waiting else 1)
        total += seconds
        lines += [shlex.join(command(job, folder)) for job in waiting]
        found = ", their rates those that will be found" if asked.rates_follow else ""
        runs = f"{len(waiting)} runs" if left == len(waiting) else f"the first {len(waiting)} of about {left} runs"
        lines.append(f"part      {part}: {runs}{found}, about {_minutes(seconds)}")
    basis = "by the runs in this folder" if _speeds(runner.rows()) else "if it were simple_cnn on two cores"
    return [*lines, f"in all    about {_minutes(total)}, {basis}"]


def _minutes(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes} minute{'s' * (minutes != 1)}"


# Measured with `simple_cnn` on two cores.
START_SECONDS, UPDATE_OVERHEAD_SECONDS, EXAMPLES_PER_SECOND = 4.0, 5e-4, 10_000.0
# The share of its epochs that a run with a target takes.
SHARE_TO_TARGET = 0.2
# Overhead is most of an update of a smaller batch.
SMALLEST_TIMED_BATCH = 256


def estimated_seconds(jobs: Sequence[Job], data: Data, rows: Sequence[StudyRow] = ()) -> float:
    """Returns about how long jobs take: by rows that are there already, if any, else as `simple_cnn` on two cores."""
    speeds = _speeds(rows)
    throughput = statistics.median(speeds) if speeds else EXAMPLES_PER_SECOND
    total = 0.0
    for job in jobs:
        size = job.options["batch_size"]
        epochs = job.options.get("epochs", 1) * (SHARE_TO_TARGET if "target_accuracy" in job.options else 1)
        updates = job.options.get("steps", epochs * data.examples / size)
        total += START_SECONDS + updates * (UPDATE_OVERHEAD_SECONDS + size / throughput)
    return total


def _speeds(rows: Sequence[StudyRow]) -> list[float]:
    """Returns the examples per second of the runs whose batches are not so small that overhead is most of an update."""
    return [
        row.summary.updates * row.batch_size / row.summary.seconds["compute"]
        for row in rows
        if row.summary is not None and row.batch_size >= SMALLEST_TIMED_BATCH and row.summary.seconds.get("compute")
    ]
