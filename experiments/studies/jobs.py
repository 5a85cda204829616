"""Training runs as jobs, run in another process one after the other, each result a row that is kept as it ends."""

import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from .. import _commands, _files
from .._errors import UsageError
from ..records.rows import study_row
from ..records.studies import StudyRow
from ..training.config import plan
from ..training.config.options import TrainConfig
from ..training.progress import score

FILE = "results.jsonl"
# Named rather than imported: what it imports takes seconds, which the process that trains has spent already.
BEGINS = _commands.module("studies.beginning:begins")
# Runs that differ in none of these begin alike.
KIND = ("problem", "dataset", "data_dir", "image_size", "model", "norm", "dtype", "num_devices")


class Job(NamedTuple):
    """A training run.

    Attributes:
      key: names the run; a job whose key has a row is not run again.
      options: the options of `TrainConfig`, without its workdir.
      label: the name of the run in a report.
    """

    key: str
    options: dict[str, Any]
    label: str = ""


def devices_of(options: Mapping[str, Any]) -> int | None:
    """Returns the number of devices of the process that trains; None: as many as a run would have.

    A CPU is one device for a problem, unless more are asked for.
    """
    devices = options.get("num_devices")
    return 1 if devices is None and options.get("problem") is not None else devices


def workdir(job: Job, folder: Path) -> Path:
    """Returns the folder of a job's run: another one for other options, so that a changed recipe is another run."""
    digest = hashlib.sha256(json.dumps(_without_place(job.options), sort_keys=True).encode()).hexdigest()[:8]
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
        raise _hopeless(jobs, first) from first


def _hopeless(jobs: Sequence[Job], first: object) -> UsageError:
    devices = jobs[0].options.get("num_devices")
    given = "" if devices is None else f" with --num_devices={devices}"
    return UsageError(f"no run of this study can begin{given}: {first}")


def try_out(jobs: Sequence[Job]) -> None:
    """Refuses a study none of whose runs can begin, as `Runner.try_out`, and leaves nothing behind."""
    with tempfile.TemporaryDirectory() as folder, Runner(Path(folder)) as runner:
        runner.try_out(jobs)


class Runner:
    """Runs jobs whose rows are not there yet. Use it as a context.

    A study that was stopped goes on where it was, also in the middle of a training run. A run that fails is a row with
    its error, and is tried again when the study is started again. A loss that is not finite is a result, and stays.
    """

    def __init__(self, folder: Path):
        """Opens a study.

        Args:
          folder: the folder of the study, made if need be; rows are appended to `results.jsonl` in it.
        """
        self._folder = folder
        self._rows: dict[str, StudyRow] = {row.key: row for row in read(folder / FILE) if row.is_result}
        self._worker = _Worker(folder)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        # On an interrupt, a run under way is kept up to the update that it is at.
        self._worker.end(now=kind is not None and not issubclass(kind, Exception))

    def is_done(self, job: Job) -> bool:
        """Says whether there is a row of a job that was made with its options, wherever the data lie."""
        row = self._rows.get(job.key)
        return row is not None and _without_place(row.options) == json.loads(json.dumps(_without_place(job.options)))

    def try_out(self, jobs: Iterable[Job]) -> None:
        """Refuses a study none of whose runs can begin, before any is started, by its devices, its data or its model.

        The smallest run of each kind that is not done is prepared in the process that trains, until one can begin.

        Args:
          jobs: all that are known.

        Raises:
          UsageError: none of them can; the message is that of the first.
        """
        kinds: dict[tuple, Job] = {}
        for job in sorted(jobs, key=lambda job: job.options["batch_size"]):
            if not self.is_done(job):
                kinds.setdefault(tuple(job.options.get(name) for name in KIND), job)
        first = None
        for job in kinds.values():
            options = {name: value for name, value in job.options.items() if value is not None}
            answer = self._worker.call(BEGINS, self._folder, devices_of(options), {"options": options})
            if "value" in answer:
                return
            first = first or answer["error"]
        if first is not None:
            raise _hopeless(list(kinds.values()), first)

    def run(self, job: Job, place: str = "") -> StudyRow:
        """Returns the row of a job, which is run if it has none.

        Args:
          job: to run.
          place: the place of the job among others, to be printed.
        """
        if not self.is_done(job):
            started = time.monotonic()
            self._folder.mkdir(parents=True, exist_ok=True)
            made: dict[str, object] = {
                "key": job.key,
                "options": job.options,
                "command": _commands.shareable_command(command(job, self._folder)),
                "label": job.label,
                **self._worker.train(job),
            }
            row = self._keep(made)
            print(f"{place}  {time.monotonic() - started:>5.0f} s  {job.key:<44} {_say(row)}".lstrip(), flush=True)
        return self._rows[job.key]

    def run_all(self, jobs: Iterable[Job]) -> list[StudyRow]:
        """Returns the rows of jobs, in their order; those that have none yet are run."""
        jobs = list(jobs)
        to_run = [job for job in jobs if not self.is_done(job)]
        for number, job in enumerate(to_run, start=1):
            self.run(job, f"{number} of {len(to_run)}")
        return [self.run(job) for job in jobs]

    def failed(self) -> list[str]:
        """Returns the keys of the runs that ended with an error; a loss that is not finite is a result."""
        return sorted(key for key, row in self._rows.items() if not row.is_result)

    def rows(self) -> list[StudyRow]:
        """Returns all rows of the study."""
        return list(self._rows.values())

    def note(self, job: Job, name: str, function: Callable[..., Any], named: Sequence[str] = ()) -> None:
        """Adds what a function finds out from the folder of a run to its row, once; not if there is no summary.

        Args:
          job: a job that was run.
          name: the field of the row's type, which is None until then.
          function: a function of a module, called in the process that trains; JSON must be able to hold its result.
          named: options of the job that the function takes by their names beside the folder; those that the job has
            are given.
        """
        row = self._rows.get(job.key)
        if row is None or row.summary is None or getattr(row, name) is not None:
            return
        given = {option: job.options[option] for option in named if job.options.get(option) is not None}
        answer = self._worker.call(function, workdir(job, self._folder), devices_of(job.options), given)
        if "value" in answer:
            self._keep({**msgspec.to_builtins(row), name: answer["value"]})
        else:
            # Tried again when the study is started again.
            print(f"{job.key}: {name}: {answer['error']}", flush=True)

    def _keep(self, made: dict[str, object]) -> StudyRow:
        """Adds a row to the file, and returns it as it will be read from there."""
        row = study_row(json.loads(json.dumps(made)))
        _files.add_row(self._folder / FILE, row)
        self._rows[row.key] = study_row(json.loads(_files.line(row)))
        return self._rows[row.key]

    def ask(self, function: Callable[..., Any], num_devices: int | None = None, **given: Any) -> Any:
        """Returns the value of a function of the study's folder, called in the process that trains; it is not kept.

        Args:
          function: a function of a module; JSON must be able to hold its result.
          num_devices: the number of devices of the process; None: as many as a run would have.
          **given: further arguments of the function.

        Raises:
          UsageError: it failed.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        answer = self._worker.call(function, self._folder, num_devices, given)
        if "error" in answer:
            raise UsageError(answer["error"])
        return answer["value"]


def _without_place(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "data_dir"}


def read(path: Path) -> list[StudyRow]:
    """Returns the rows of a file, the last of each key. A line that is not a whole row is named and left out."""
    return list({row.key: row for row in _files.read_rows(path, study_row)[0]}.values())


class _Worker:
    """The process that trains: a new one for another number of devices, and after a run that ended the last one."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._process: Any = None  # A subprocess.Popen, whose pipes a type checker takes to be missing.
        self._num_devices: int | None = None

    def train(self, job: Job) -> dict[str, Any]:
        """Returns the summary of a job or its error."""
        options = {k: v for k, v in job.options.items() if v is not None}
        return self._ask({"train": {**options, "workdir": str(workdir(job, self._folder))}}, devices_of(options))

    def call(
        self,
        function: Callable[..., Any] | str,
        folder: Path,
        num_devices: int | None,
        given: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Returns the value of a function, or of the function of a name, for a folder and arguments; or its error."""
        name = function if isinstance(function, str) else f"{function.__module__}:{function.__qualname__}"
        return self._ask({"call": name, "workdir": str(folder), "given": given or {}}, num_devices)

    def _ask(self, what: dict[str, Any], num_devices: int | None) -> dict[str, Any]:
        # A CPU is divided into devices once in a process.
        if num_devices != self._num_devices:
            self.end()
        process = self._process or self._start(num_devices)
        try:
            process.stdin.write(json.dumps(what) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return json.loads(answer)
        self.end()
        return {
            "diverged": False,
            "error": f"its process ended with exit status {process.returncode}; see {self._log.name} in the workdir",
        }

    @property
    def _log(self) -> Path:
        return self._folder / "worker.log"

    def _start(self, num_devices: int | None) -> Any:
        self._num_devices = num_devices
        with _files.open_to_add(self._log) as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    _commands.module("studies.worker"),
                    *([] if num_devices is None else [str(num_devices)]),
                ],
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        return self._process

    def end(self, *, now: bool = False) -> None:
        """Lets the process end, if there is one; `now`: after the update that it is at."""
        if self._process is not None:
            if now:
                self._process.terminate()
            # The process ends when there is nothing more to read; one that has ended may have left a line unread.
            with contextlib.suppress(BrokenPipeError):
                self._process.communicate()
        self._process = self._num_devices = None


def _say(row: StudyRow) -> str:
    if row.summary is None:
        return str(row.error)
    return "  ".join(f"{name} {score(result)}" for name, result in row.summary.results.items())
