"""Tasks as jobs of a SLURM cluster, submitted through `submitit`.

A job trains in its folder, as a process of the study on this machine would, and leaves its answer there. A study that
was killed finds its jobs again when it is started again: those that have ended by their answers, and the others by the
numbers that were written down when they were submitted. A job that is preempted, or whose time is up, is put back into
the queue and goes on from its checkpoint.
"""

import contextlib
import getpass
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ... import _files
from ..._errors import UsageError
from .task import Answer, Task

# In the folder of a run: the answer, and the job that was submitted for it.
ANSWER, SUBMITTED = "answer.json", "submitted.json"
LOGS = "slurm"
# How often SLURM is asked which jobs it knows, and how long a job may be unknown to it before it counts as gone: a file
# system that machines share shows a file some time after it was written.
ASK_SECONDS, GONE_SECONDS = 5.0, 120.0
LOOK_SECONDS = 0.5
TIME = 60
# SLURM refuses arrays of more than a thousand jobs, unless it is told otherwise.
MOST_OF_AN_ARRAY = 500
# A job whose time is up goes on as often as it needs to.
MOST_TIMEOUTS = 1_000


class Settings(NamedTuple):
    """How jobs are submitted.

    Attributes:
      parameters: parameters of `submitit.AutoExecutor.update_parameters`, such as `slurm_partition`.
      parallel: the most jobs that run at once.
    """

    parameters: Mapping[str, Any]
    parallel: int = 64


class _Submitted(NamedTuple):
    """A job under way.

    Attributes:
      task: the task of the job.
      number: the number of the job in SLURM.
      seen: when SLURM last knew it, or when it was submitted.
    """

    task: Task
    number: str
    seen: float


class Slurm:
    """Jobs of SLURM; an `Executor`."""

    def __init__(self, folder: Path, settings: Settings):
        """Prepares the submission of jobs; nothing is submitted yet.

        Args:
          folder: the folder of the study, on a file system that all machines share; `slurm` in it gets the logs.
          settings: how jobs are submitted.
        """
        self._folder, self._settings = folder.resolve(), settings
        self._jobs: dict[str, _Submitted] = {}
        # Places whose answers were handed over. They are cleared when the study comes again, having kept the answers;
        # one that is killed before that finds them once more.
        self._handed_over: list[Path] = []
        self._asked = time.monotonic() - ASK_SECONDS
        self._submitters: dict[bool, Any] = {}
        self._name = str(settings.parameters.get("name", "batch-size"))

    def _made(self, *, alone: bool) -> Any:
        """Returns the submitter of jobs that have their machine for themselves or not, made when it is first needed.

        Raises:
          UsageError: `submitit` is not installed, there is no SLURM here, or a parameter is not known.
        """
        if alone not in self._submitters:
            try:
                import submitit
            except ImportError as error:
                raise UsageError(
                    "--executor=slurm needs submitit: install the extra with pip install 'batchnorm_jax[cluster]'"
                ) from error
            try:
                made = submitit.AutoExecutor(
                    folder=self._folder / LOGS,
                    cluster="slurm",
                    slurm_python=sys.executable,
                    slurm_max_num_timeout=MOST_TIMEOUTS,
                )
                made.update_parameters(
                    **{"slurm_time": TIME, **({"slurm_exclusive": True} if alone else {}), **self._settings.parameters},
                    slurm_array_parallelism=self._settings.parallel,
                )
            except RuntimeError as error:
                raise UsageError(f"--executor=slurm: there is no SLURM on this machine ({error})") from error
            except (AssertionError, NameError, TypeError, ValueError) as error:
                raise UsageError(f"--cluster_file: submitit refuses its parameters ({error})") from error
            self._submitters[alone] = made
        return self._submitters[alone]

    @property
    def running(self) -> list[Task]:
        """The tasks that were submitted."""
        return [job.task for job in self._jobs.values()]

    def takes(self, task: Task, begun: Sequence[Task] = ()) -> bool:
        """Returns whether fewer jobs wait or run than may run at once; what is to be alone waits for all others."""
        others = [*self.running, *begun]
        if task.alone or any(other.alone for other in others):
            return not others
        return len(others) < self._settings.parallel

    def submit(self, tasks: Sequence[Task]) -> None:
        """Submits tasks as arrays of jobs, but for those that an earlier driver has submitted.

        Raises:
          UsageError: SLURM does not take them.
        """
        self._clear()
        new, listed = [], {}
        for task in tasks:
            place = task.place
            number = _submitted(place, listed)
            if _is_error(place):
                # What went wrong then may be mended now.
                (place / ANSWER).unlink(missing_ok=True)
            if (place / ANSWER).exists() or number is not None:
                self._jobs[task.key] = _Submitted(task, number or "", time.monotonic())
            else:
                new.append(task)
        for first in range(0, len(new), MOST_OF_AN_ARRAY):
            self._submit_array(new[first : first + MOST_OF_AN_ARRAY])

    def _submit_array(self, tasks: Sequence[Task]) -> None:
        # What is timed has its machine for itself.
        submitter = self._made(alone=any(task.alone for task in tasks))
        name = f"{self._name}-{secrets.token_hex(4)}"
        submitter.update_parameters(name=name)
        for index, task in enumerate(tasks):
            task.place.mkdir(parents=True, exist_ok=True)
            # Written first, so that a driver that is killed while it submits finds the jobs by their name.
            _files.write_json(task.place / SUBMITTED, {"name": name, "index": index})
        try:
            with _sentences(), submitter.batch():
                given = [(dict(task.what), task.num_devices, str(task.place.resolve()), os.getcwd()) for task in tasks]
                jobs = [submitter.submit(Remote(*arguments)) for arguments in given]
        except UsageError:
            for task in tasks:
                (task.place / SUBMITTED).unlink(missing_ok=True)
            raise
        for task, job in zip(tasks, jobs, strict=True):
            _files.write_json(task.place / SUBMITTED, {"job": job.job_id})
            self._jobs[task.key] = _Submitted(task, job.job_id, time.monotonic())

    def finished(self, seconds: float) -> list[tuple[Task, Answer]]:
        """Returns the tasks that have ended, with their answers; waits up to some seconds for the first."""
        self._clear()
        until = time.monotonic() + seconds
        while True:
            self._ask()
            ended = [(key, answer) for key, job in self._jobs.items() if (answer := self._answer(job)) is not None]
            if ended or time.monotonic() >= until:
                break
            time.sleep(LOOK_SECONDS)
        self._handed_over += [self._jobs[key].task.place for key, _ in ended]
        return [(self._jobs.pop(key).task, answer) for key, answer in ended]

    def _clear(self) -> None:
        """Forgets what was handed over: the next time that it is asked for, it is to be done anew."""
        for place in self._handed_over:
            for name in (ANSWER, SUBMITTED):
                (place / name).unlink(missing_ok=True)
        self._handed_over.clear()

    def _ask(self) -> None:
        """Asks SLURM which jobs it knows."""
        if not self._jobs or time.monotonic() - self._asked < ASK_SECONDS:
            return
        listed = _listed(f"--user={getpass.getuser()}")
        # The controller may be busy or restart; jobs are not gone for that.
        known = {job.number for job in self._jobs.values()} if listed is None else {*listed}
        # SLURM may have taken long to answer.
        self._asked = now = time.monotonic()
        for key, job in self._jobs.items():
            if job.number in known:
                self._jobs[key] = job._replace(seen=now)

    def _answer(self, job: _Submitted) -> Answer | None:
        """Returns the answer of a job; None: it is under way."""
        place = job.task.place
        with contextlib.suppress(OSError, ValueError):
            return json.loads((place / ANSWER).read_text())
        if time.monotonic() - job.seen < GONE_SECONDS:
            return None
        # Machines that share a file system may remember for a while that a file was not there; this has them look.
        with contextlib.suppress(OSError):
            place.chmod(place.stat().st_mode)
        if (place / ANSWER).exists() and time.monotonic() - job.seen < 2 * GONE_SECONDS:
            return None
        return {
            "diverged": False,
            "lost": True,
            "error": f"job {job.number} of SLURM ended without an answer, as if it was cancelled; see {LOGS} in the "
            "workdir",
        }

    def end(self, *, now: bool = False) -> None:
        """Leaves the jobs to SLURM, in whose queue they stay: the same command finds them again.

        Args:
          now: the study was interrupted; its jobs are cancelled after the update that each is at.
        """
        self._clear()
        numbers = [job.number for job in self._jobs.values() if job.number]
        if now and numbers:
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                subprocess.run(["scancel", *numbers], capture_output=True, timeout=60, check=False)
            for job in self._jobs.values():
                (job.task.place / SUBMITTED).unlink(missing_ok=True)
        self._jobs.clear()


def _submitted(place: Path, listed: dict[str, list[str]]) -> str | None:
    """Returns the number of the job that was submitted for a place; None: none was.

    Args:
      place: the place of the answer.
      listed: the numbers of the jobs of a name that SLURM was asked for already; added to.
    """
    try:
        kept = json.loads((place / SUBMITTED).read_text())
        if "job" in kept:
            return str(kept["job"])
        # The driver was killed while it submitted.
        name = str(kept["name"])
        if name not in listed:
            listed[name] = _listed(f"--name={name}") or []
        numbers = listed[name]
        array = [one for one in numbers if one == f"{one.split('_')[0]}_{kept['index']}"]
        # One job alone is no array.
        alone = [one for one in numbers if "_" not in one and len(numbers) == 1]
        return next(iter([*array, *alone]), None)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_error(place: Path) -> bool:
    """Returns whether the answer in a place is an error."""
    try:
        answer = json.loads((place / ANSWER).read_text())
        return "error" in answer and not answer.get("diverged")
    except (OSError, ValueError, TypeError, AttributeError):
        return False


@contextlib.contextmanager
def _sentences() -> Iterator[None]:
    """Turns the errors of a submission into one sentence."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        yield
    except (FailedJobError, FailedSubmissionError) as error:
        said = " ".join(str(error).split())
        raise UsageError(
            f"--executor=slurm: SLURM does not take the jobs ({said:.300}); give a smaller --parallel or other "
            "parameters. What has been run is kept, and jobs in the queue are found again"
        ) from error


def _listed(which: str) -> list[str] | None:
    """Returns the numbers of jobs that wait or run; None: SLURM does not answer.

    Args:
      which: an argument of `squeue`.
    """
    command = ["squeue", "--noheader", "--array", "--format=%i", which]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None


class Remote:
    """A task, as a process of the cluster does it.

    Attributes:
      requeued: the time is up or the job is preempted, so that it will be done again.
    """

    def __init__(self, what: dict[str, Any], num_devices: int | None, place: str, directory: str):
        self.what, self.num_devices, self.place, self.directory = what, num_devices, place, directory
        self.requeued = False

    def __call__(self) -> None:
        """Does the task and writes down its answer."""
        # Modules of the user's own are found from the folder in which the study was started.
        os.chdir(self.directory)
        if self.directory not in sys.path:
            sys.path.insert(0, self.directory)
        # What it imports is slow, and not for the process that submits.
        from ..worker import answer

        made = answer(self.what, self.num_devices)
        if self.requeued:
            # The error is that of being stopped.
            return
        number = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID", ""))
        task = os.environ.get("SLURM_ARRAY_TASK_ID")
        node = os.environ.get("SLURMD_NODENAME", "")
        made["ran_on"] = f"job {number}{'' if task is None else f'_{task}'} of SLURM{node and f' on {node}'}"
        place = Path(self.place)
        place.mkdir(parents=True, exist_ok=True)
        _files.write(place / ANSWER, json.dumps(made))

    def checkpoint(self, *_: Any, **__: Any) -> Any:
        """Returns what is put back into the queue where the time is up or the job is preempted: the same again."""
        import submitit

        self.requeued = True
        return submitit.helpers.DelayedSubmission(Remote(self.what, self.num_devices, self.place, self.directory))
