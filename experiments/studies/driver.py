"""The driver of a study: has its jobs run, takes in what they come to, and is the one writer of its rows."""

import contextlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from .. import _commands, _files, _workdirs
from .._errors import UsageError
from ..records.rows import study_row
from ..records.studies import StudyRow
from ..training.progress import score
from .executing.local import Local
from .executing.task import Answer, Executor, Task
from .jobs import FILE, Job, command, devices_of, hopeless, read, without_place, workdir
from .status import Status

# Named rather than imported: what it imports takes seconds, which the process that trains has spent already.
BEGINS = _commands.module("studies.beginning:begins")
# Runs that differ in none of these begin alike.
KIND = ("problem", "dataset", "data_dir", "image_size", "model", "norm", "dtype", "num_devices")
# How often a run is tried that ends with an error, in a study; what its own options refuse is tried once.
MOST_TRIES = 2
# How long the driver sleeps at most before it looks again.
POLL_SECONDS = 1.0
# A job that is lost, by a machine that fails or by whoever cancels it, is submitted again more often.
MOST_LOSSES = 10


def try_out(jobs: Sequence[Job]) -> None:
    """Refuses a study none of whose runs can begin, as `Runner.try_out`, and leaves nothing behind."""
    with tempfile.TemporaryDirectory() as folder, Runner(Path(folder)) as runner:
        runner.try_out(jobs)


class Note(NamedTuple):
    """A field of a row that a function finds out from the folder of the run, once it has ended.

    Attributes:
      name: the field of the row's type, which is None until then.
      function: a function of a module, called in a process that trains; JSON must be able to hold its result.
      named: options of the job that the function takes by their names beside the folder; those that the job has are
        given.
    """

    name: str
    function: Callable[..., Any]
    named: Sequence[str] = ()


class _Wanted(NamedTuple):
    """A job, or a note on one, that waits for its turn.

    Attributes:
      job: the job.
      note: the note; None: the run itself.
    """

    job: Job
    note: Note | None = None

    @property
    def name(self) -> str:
        """Names it within a study."""
        return self.job.key if self.note is None else f"{self.job.key}: {self.note.name}"


class _WaitingError(Exception):
    """Raised to leave a question that cannot go on until something has been run."""


class Runner:
    """The driver of a study: runs jobs that have no rows yet, and is the only writer of rows. Use it as a context.

    A study that was stopped goes on where it was, also in the middle of a training run. A run that ends with an error
    is tried once more; if the error stays, it is a row with its error, which is tried again when the study is started
    again. A loss that is not finite is a result, and stays.
    """

    def __init__(
        self,
        folder: Path,
        executor: Callable[[Path], Executor] = Local,
        *,
        most_tries: int = MOST_TRIES,
        is_quiet: bool = False,
    ):
        """Opens a study.

        Args:
          folder: the folder of the study, made if need be; rows are appended to `results.jsonl` in it.
          executor: returns what runs the jobs, given the folder.
          most_tries: how often a run is tried that ends with an error.
          is_quiet: shows no line of how far it is; the caller has one of its own.
        """
        self._folder, self._most_tries = folder, most_tries
        self._rows: dict[str, StudyRow] = {}
        self._read: tuple[int, int] | None = None
        self._read_rows()
        self._executor = executor(folder)
        self._queue: dict[str, tuple[int, _Wanted]] = {}
        self._under_way: dict[str, tuple[int, _Wanted, float]] = {}
        self._tries: Counter[str] = Counter()
        # What has failed for good, as far as this process is concerned.
        self._given_up: set[str] = set()
        self._is_pursuing, self._order = False, 0
        self._status = Status(folder, is_quiet=is_quiet)
        self._kept = contextlib.ExitStack()

    def __enter__(self):
        with contextlib.ExitStack() as kept:
            kept.enter_context(_workdirs.driving(self._folder))
            kept.enter_context(self._status)
            self._kept = kept.pop_all()
        # Another driver may have added rows in the meantime.
        self._read_rows()
        return self

    def _read_rows(self) -> None:
        """Reads the rows of the study, unless the file is as it was when they were read last."""
        path = self._folder / FILE
        try:
            there = path.stat()
        except FileNotFoundError:
            return
        except OSError:
            # Reading it says what is wrong.
            seen = None
        else:
            seen = there.st_size, there.st_mtime_ns
        if seen is None or seen != self._read:
            self._rows = {row.key: row for row in read(path) if row.is_result}
            self._read = seen

    def __exit__(self, kind, *_):
        # On an interrupt, a run under way is kept up to the update that it is at.
        now = kind is not None and not issubclass(kind, Exception)
        self._show()
        with self._kept:
            self._executor.end(now=now)

    def is_done(self, job: Job) -> bool:
        """Says whether there is a row of a job that was made with its options, wherever the data lie."""
        row = self._rows.get(job.key)
        return (
            row is not None
            and row.is_result
            and without_place(row.options) == json.loads(json.dumps(without_place(job.options)))
        )

    def try_out(self, jobs: Iterable[Job]) -> None:
        """Refuses a study none of whose runs can begin, before any is started, by its devices, its data or its model.

        The smallest run of each kind that is not done is prepared in a process that trains, until one can begin.

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
            answer = self._call(BEGINS, self._folder, devices_of(options), {"options": options})
            if "value" in answer:
                return
            first = first or answer["error"]
        if first is not None:
            raise hopeless(list(kinds.values()), first)

    def pursue(
        self,
        questions: Mapping[str, Callable[[], Any]],
        answered: Callable[[str, Any], None],
        after: Mapping[str, Sequence[str]] = {},
    ) -> None:
        """Answers questions side by side: each as far as it can, and again when what it waits for has been run.

        A question is a function that calls `run`, `run_all` and `note_all`. Where one of them has to wait, the function
        is left, and called again later; so it must do the same each time. The jobs of earlier questions come first.

        Args:
          questions: the functions, by their names.
          answered: called with the name and the value of each question.
          after: the names of questions that have to be answered before another one is asked, by its name.
        """
        waits: dict[str, set[str]] = {name: set() for name in questions}
        self._is_pursuing = True
        try:
            while waits:
                for order, (name, question) in enumerate(questions.items()):
                    if name not in waits or any(map(self._is_waiting, waits[name])):
                        continue
                    if any(other in waits for other in after.get(name, ())):
                        continue
                    self._order = order
                    try:
                        value = question()
                    except _WaitingError as waiting:
                        waits[name] = waiting.args[0]
                    else:
                        del waits[name]
                        answered(name, value)
                if waits:
                    self._go_on()
        finally:
            self._is_pursuing = False

    def expect(self, jobs: Iterable[Job]) -> None:
        """Has jobs run some time before the question that asks for them is answered, beside what it asks for next."""
        if self._is_pursuing:
            self._want(_Wanted(job) for job in jobs)

    def run(self, job: Job, place: str = "") -> StudyRow:
        """Returns the row of a job, which is run if it has none.

        Args:
          job: to run.
          place: the place of the job among others, to be printed.
        """
        self._need([_Wanted(job)], place)
        return self._rows[job.key]

    def run_all(self, jobs: Iterable[Job]) -> list[StudyRow]:
        """Returns the rows of jobs, in their order; those that have none yet are run."""
        jobs = list(jobs)
        self._need([_Wanted(job) for job in jobs])
        return [self._rows[job.key] for job in jobs]

    def note(self, job: Job, name: str, function: Callable[..., Any], named: Sequence[str] = ()) -> None:
        """Adds what a function finds out from the folder of a run to its row, once; not if there is no summary.

        Args:
          job: a job that was run.
          name: as for `Note`, like the others.
          function: see there.
          named: see there.
        """
        self.note_all([job], name, function, named)

    def note_all(self, jobs: Iterable[Job], name: str, function: Callable[..., Any], named: Sequence[str] = ()) -> None:
        """Adds what a function finds out from the folders of runs to their rows, as `note` does."""
        self._need([_Wanted(job, Note(name, function, named)) for job in jobs])

    def failed(self) -> list[str]:
        """Returns the runs that ended with an error, and notes that could not be made; a diverged run is a result."""
        runs = {key for key, row in self._rows.items() if not row.is_result}
        return sorted(runs | (self._given_up - self._rows.keys()))

    def rows(self) -> list[StudyRow]:
        """Returns all rows of the study."""
        return list(self._rows.values())

    def ask(self, function: Callable[..., Any], num_devices: int | None = None, **given: Any) -> Any:
        """Returns the value of a function of the study's folder, called in a process that trains; it is not kept.

        Args:
          function: a function of a module; JSON must be able to hold its result.
          num_devices: the number of devices of the process; None: as many as a run would have.
          **given: further arguments of the function.

        Raises:
          UsageError: it failed.
        """
        answer = self._call(_name_of(function), self._folder, num_devices, given)
        if "error" in answer:
            raise UsageError(answer["error"])
        return answer["value"]

    def _call(self, name: str, folder: Path, num_devices: int | None, given: Mapping[str, Any]) -> Answer:
        """Returns the answer of a process where the jobs run; nothing else is under way."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # A place of its own: what an earlier driver asked may be answered still.
        with tempfile.TemporaryDirectory(prefix="asked-", dir=self._folder, ignore_cleanup_errors=True) as place:
            self._executor.submit([Task(name, _asking(name, folder, given), num_devices, Path(place))])
            while not (ended := self._executor.finished(POLL_SECONDS)):
                pass
            return ended[0][1]

    def _is_settled(self, wanted: _Wanted) -> bool:
        """Returns whether a job has its row, or a note is on it; or what was tried has failed for good."""
        if wanted.name in self._given_up:
            return True
        if wanted.note is None:
            return self.is_done(wanted.job)
        row = self._rows.get(wanted.job.key)
        return row is None or row.summary is None or getattr(row, wanted.note.name) is not None

    def _is_waiting(self, name: str) -> bool:
        return name in self._queue or name in self._under_way

    def _want(self, wanted: Iterable[_Wanted]) -> list[_Wanted]:
        """Puts into the queue what is not settled, and returns it."""
        missing = [one for one in wanted if not self._is_settled(one)]
        for one in missing:
            if not self._is_waiting(one.name):
                self._queue[one.name] = self._order, one
        return missing

    def _need(self, wanted: Sequence[_Wanted], place: str = "") -> None:
        """Waits until something is settled; where several questions are pursued, leaves this one until then."""
        missing = self._want(wanted)
        if not missing:
            return
        if self._is_pursuing:
            raise _WaitingError({one.name for one in missing})
        while any(self._is_waiting(one.name) for one in missing):
            self._go_on(place)

    def _go_on(self, place: str = "") -> None:
        """Begins what can begin, and takes in what has ended."""
        begun = []
        for name, (order, wanted) in sorted(self._queue.items(), key=lambda item: item[1][0]):
            task = self._task(wanted)
            # What comes first begins first, though something after it might begin sooner.
            if not self._executor.takes(task, begun):
                break
            begun.append(task)
            del self._queue[name]
            self._under_way[name] = order, wanted, time.monotonic()
        if begun:
            (self._folder / "runs").mkdir(parents=True, exist_ok=True)
            self._executor.submit(begun)
        self._show()
        for task, answer in self._executor.finished(POLL_SECONDS):
            order, wanted, started = self._under_way.pop(task.key)
            if self._take(wanted, answer, time.monotonic() - started, place):
                self._queue[task.key] = order, wanted

    def _task(self, wanted: _Wanted) -> Task:
        job, note = wanted
        place = workdir(job, self._folder)
        options = {name: value for name, value in job.options.items() if value is not None}
        if note is None:
            what: dict[str, Any] = {"train": {**options, "workdir": str(place)}}
        else:
            given = {name: options[name] for name in note.named if name in options}
            what = _asking(_name_of(note.function), place, given)
            # Its answer must not be taken for that of the run.
            place = place.with_name(f"{place.name}.{note.name}")
        return Task(wanted.name, what, devices_of(options), place, alone=job.alone and note is None)

    def _take(self, wanted: _Wanted, answer: Answer, seconds: float, place: str) -> bool:
        """Keeps what something came to; returns whether it is to be tried again instead."""
        self._tries[wanted.name] += 1
        is_error = "error" in answer and not answer.get("diverged")
        most = MOST_LOSSES if answer.get("lost") else self._most_tries
        again = is_error and not answer.get("refused") and self._tries[wanted.name] < most
        if is_error and not again:
            self._given_up.add(wanted.name)
        job, note = wanted
        if note is not None:
            if "value" in answer:
                self._keep({**msgspec.to_builtins(self._rows[job.key]), note.name: answer["value"]})
            elif not again:
                print(f"{wanted.name}: {answer['error']}", flush=True)
            return again
        self._status.count(seconds, is_error=is_error and not again, again=again)
        where = place or self._status.place(len(self._queue), len(self._under_way))
        where = f"{where}  {seconds:>5.0f} s  {job.key:<44}"
        if again:
            print(f"{where} {answer['error']}; tried again".lstrip(), flush=True)
            return True
        made: dict[str, object] = {
            "key": job.key,
            "options": job.options,
            "command": _commands.shareable_command(command(job, self._folder)),
            "label": job.label,
            **{name: value for name, value in answer.items() if name not in ("refused", "lost")},
        }
        row = self._keep(made)
        print(f"{where} {_say(row)}".lstrip(), flush=True)
        return False

    def _show(self) -> None:
        """Shows, and writes for others to see, how far the study is."""
        runs = [wanted.job.key for _, wanted, _ in self._under_way.values() if wanted.note is None]
        self._status.show(runs, sum(one.note is None for _, one in self._queue.values()))

    def _keep(self, made: dict[str, object]) -> StudyRow:
        """Adds a row to the file, and returns it as it will be read from there."""
        row = study_row(json.loads(json.dumps(made)))
        _files.add_row(self._folder / FILE, row)
        self._rows[row.key] = study_row(json.loads(_files.line(row)))
        return self._rows[row.key]


def _asking(name: str, folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what asks a worker for the value of a function."""
    return {"call": name, "workdir": str(folder), "given": dict(given)}


def _name_of(function: Callable[..., Any]) -> str:
    return f"{function.__module__}:{function.__qualname__}"


def _say(row: StudyRow) -> str:
    if row.summary is None:
        return str(row.error)
    return "  ".join(f"{name} {score(result)}" for name, result in row.summary.results.items())
