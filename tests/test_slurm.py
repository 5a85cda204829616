"""Studies as jobs of SLURM: against a cluster of one node, which the tests start, and without one."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments._errors import UsageError
from experiments.studies import jobs, worker
from experiments.studies.driver import Runner
from experiments.studies.executing import slurm
from experiments.studies.executing.local import Local
from experiments.studies.executing.slurm import Settings, Slurm
from experiments.studies.executing.task import Task
from experiments.studies.jobs import Job
from tests import slurm_cluster
from tests.test_executing import TINY, plain

ROOT = Path(__file__).parent.parent
MISSING = slurm_cluster.missing()
with_slurm = pytest.mark.skipif(bool(MISSING), reason=f"SLURM is not installed: {', '.join(MISSING)}")
JOBS = 4
DRIVER = """
import sys
from functools import partial
from pathlib import Path
from experiments.studies.executing import slurm
from tests.test_slurm import wanted
from experiments.studies.driver import Runner
slurm.ASK_SECONDS, slurm.GONE_SECONDS = 1.0, 5.0
settings = slurm.Settings({"timeout_min": 10, "slurm_cpus_per_task": 1})
with Runner(Path(sys.argv[1]), partial(slurm.Slurm, settings=settings)) as runner:
    runner.run_all(wanted())
    print("failed:", runner.failed())
"""


def wanted():
    """Runs of some seconds each."""
    # One is timed, and so has the machine for itself.
    timed = Job("timed", {**TINY, "dataset": "tests.own:larger", "steps": 200}, alone=True)
    runs = [
        Job(
            f"job-{seed}",
            {**TINY, "dataset": "tests.own:larger", "steps": 3_000, "checkpoint_every": 200, "seed": seed},
        )
        for seed in range(JOBS)
    ]
    return [*runs, timed]


def listed(environment, form="%i"):
    found = subprocess.run(
        ["squeue", "--noheader", "--array", "--states=RUNNING", f"--format={form}"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return found.stdout.split()


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)
    return found


@with_slurm
def test_a_study_is_complete_whatever_is_cancelled_and_however_often_its_driver_is_killed(tmp_path):
    folder = tmp_path / "study"
    with slurm_cluster.cluster() as environment:

        def start():
            return subprocess.Popen(
                [sys.executable, "-c", DRIVER, str(folder)], cwd=ROOT, env=environment,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip

        driver = start()
        running = until(lambda: listed(environment))
        # Jobs of the cluster outlive the driver, which finds them again.
        driver.kill()
        driver.communicate()
        assert running
        driver = start()
        until(lambda: list(folder.glob("runs/*/checkpoints/*")))
        subprocess.run(["scancel", listed(environment)[0]], env=environment, check=True)
        time.sleep(3)
        driver.kill()
        driver.communicate()
        driver = start()
        output, _ = driver.communicate(timeout=300)
        assert driver.returncode == 0 and "failed: []" in output, output
        submitted = subprocess.run(
            ["scontrol", "show", "job", "--oneliner"], env=environment, capture_output=True, text=True, check=True
        ).stdout
    rows = jobs.read(folder / jobs.FILE)
    assert sorted(row.key for row in rows) == sorted(job.key for job in wanted())
    assert all(row.ran_on.startswith("job ") and " of SLURM on " in row.ran_on for row in rows)
    assert "CANCELLED" in submitted
    # None was submitted twice but for the one that was cancelled.
    logs = "\n".join(log.read_text() for log in sorted((folder / slurm.LOGS).glob("*.err")))
    assert len(submitted.splitlines()) == JOBS + 2, f"{submitted}\n{output}\n{logs}"
    with Runner(tmp_path / "here") as runner:
        here = {row.key: row for row in runner.run_all(wanted())}
    for row in rows:
        assert plain(row)["summary"]["results"] == plain(here[row.key])["summary"]["results"]


@with_slurm
@pytest.mark.slow  # SLURM holds a job back for two minutes before it starts again.
def test_a_job_whose_time_is_up_goes_on_from_its_checkpoint(tmp_path):
    """SLURM's signal comes before the end; here it is sent by hand."""
    folder = tmp_path / "study"
    with slurm_cluster.cluster() as environment:
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(folder)], cwd=ROOT, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        until(lambda: list(folder.glob("runs/*/checkpoints/*")))
        number = listed(environment)[0]
        # Its exit status says that the job cannot be altered: the job is put back into the queue meanwhile.
        subprocess.run(["scancel", "--signal=USR2", number], env=environment, capture_output=True, check=False)
        output, _ = driver.communicate(timeout=300)
        assert driver.returncode == 0 and "failed: []" in output, output
        shown = subprocess.run(
            ["scontrol", "show", "job", number], env=environment, capture_output=True, text=True, check=True
        ).stdout
    assert "Restarts=1" in shown
    summaries = [json.loads(path.read_text()) for path in folder.glob("runs/*/summary.json")]
    assert len(summaries) == JOBS + 1 and sorted(summary.get("starts", 1) for summary in summaries)[-1] >= 2


def test_without_slurm_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="there is no SLURM on this machine"):
        Slurm(tmp_path, Settings({})).submit([Task("a", {"train": {}}, 1, tmp_path / "a")])
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UsageError, match=r"install the extra with pip install 'batchnorm_jax\[cluster\]'"):
        Slurm(tmp_path, Settings({})).submit([Task("a", {"train": {}}, 1, tmp_path / "a")])


def test_an_answer_that_an_earlier_driver_did_not_see_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    place = tmp_path / "a"
    place.mkdir()
    (place / slurm.ANSWER).write_text(json.dumps({"summary": 1}))
    executor, task = Slurm(tmp_path, Settings({})), Task("a", {"train": {}}, 1, place)
    executor.submit([task])
    assert executor.finished(5) == [(task, {"summary": 1})]


def test_an_answer_stays_until_its_study_has_kept_it(tmp_path, monkeypatch):
    """A driver that is killed in between would have its run submitted once more."""
    monkeypatch.setenv("PATH", str(tmp_path))
    place = tmp_path / "a"
    place.mkdir()
    (place / slurm.ANSWER).write_text(json.dumps({"summary": 1}))
    task = Task("a", {"train": {}}, 1, place)
    for _ in range(2):
        executor = Slurm(tmp_path, Settings({}))
        executor.submit([task])
        assert executor.finished(5) == [(task, {"summary": 1})]
    # The study has kept it when it comes for the next.
    assert executor.finished(0) == [] and list(place.iterdir()) == []


def test_what_is_asked_is_not_answered_by_an_earlier_driver(tmp_path, monkeypatch):
    places = []

    def submit(executor, tasks):
        places.extend(task.place for task in tasks)
        return submitted(executor, tasks)

    submitted = Local.submit
    monkeypatch.setattr(Local, "submit", submit)
    with Runner(tmp_path) as runner:
        for _ in range(2):
            assert runner.ask(folder_of) == str(tmp_path)
    assert len({*places}) == 2 and not any(place.exists() for place in places)


def folder_of(folder):
    return str(folder)


def test_a_job_that_is_gone_without_an_answer_is_an_error(tmp_path, monkeypatch):
    """As soon as SLURM has not known it for a while; while SLURM does not answer, it counts as known."""
    monkeypatch.setattr(slurm, "ASK_SECONDS", 0.0)
    monkeypatch.setattr(slurm, "GONE_SECONDS", 0.2)
    program = tmp_path / "squeue"
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    place = tmp_path / "a"
    place.mkdir()
    (place / slurm.SUBMITTED).write_text(json.dumps({"job": "12_3"}))
    executor, task = Slurm(tmp_path, Settings({})), Task("a", {"train": {}}, 1, place)
    for said, ends in (("exit 1", False), ("echo 12_3", False), ("echo 12_4", True)):
        program.write_text(f"#!/bin/sh\n{said}\n")
        program.chmod(0o755)
        executor.submit([task])
        ended = executor.finished(1.0)
        assert bool(ended) is ends
    assert "job 12_3 of SLURM ended without an answer" in ended[0][1]["error"]
    assert executor.finished(0) == [] and not (place / slurm.SUBMITTED).exists()


def test_no_more_jobs_wait_or_run_than_may(tmp_path):
    executor = Slurm(tmp_path, Settings({}, parallel=2))
    tasks = [Task(f"job-{number}", {"train": {}}, 1, tmp_path / f"job-{number}") for number in range(3)]
    assert executor.takes(tasks[0]) and executor.takes(tasks[1], tasks[:1]) and not executor.takes(tasks[2], tasks[:2])
    timed = tasks[0]._replace(alone=True)
    assert executor.takes(timed) and not executor.takes(timed, tasks[1:2]) and not executor.takes(tasks[1], [timed])


@pytest.mark.parametrize(("index", "listed_as", "found"), [(0, "12", "12"), (3, "12_3", "12_3"), (3, "12_30", None)])
def test_a_job_whose_driver_was_killed_while_it_submitted_is_found_by_its_name(
    tmp_path, monkeypatch, index, listed_as, found
):
    """One job alone is no array."""
    program = tmp_path / "squeue"
    program.write_text(f'#!/bin/sh\ncase "$*" in *--name=mine-1*) echo {listed_as};; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    (tmp_path / slurm.SUBMITTED).write_text(json.dumps({"name": "mine-1", "index": index}))
    assert slurm._submitted(tmp_path, {}) == found


def test_an_error_that_an_earlier_driver_did_not_see_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    place = tmp_path / "a"
    place.mkdir()
    (place / slurm.ANSWER).write_text(json.dumps({"error": "no network", "diverged": False}))
    with pytest.raises(UsageError, match="there is no SLURM on this machine"):
        Slurm(tmp_path, Settings({})).submit([Task("a", {"train": {}}, 1, place)])
    assert not (place / slurm.ANSWER).exists()


@pytest.mark.parametrize("requeued", [False, True])
def test_a_job_that_is_put_back_into_the_queue_leaves_no_error(tmp_path, monkeypatch, requeued):
    """Being stopped may look like an error of the user's own code."""
    monkeypatch.chdir(tmp_path)
    remote = slurm.Remote({"call": "tests.own:fails", "workdir": str(tmp_path)}, 1, str(tmp_path / "a"), str(ROOT))
    if requeued:
        again = remote.checkpoint().function
        assert isinstance(again, slurm.Remote) and not again.requeued
    monkeypatch.setattr(worker, "answer", lambda what, num_devices: {"error": "its update raised SystemExit: -1"})
    remote()
    assert (tmp_path / "a" / slurm.ANSWER).exists() is not requeued


def test_what_slurm_refuses_is_a_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    for name, said in (("sbatch", "QOSMaxSubmitJobPerUserLimit"), ("srun", ""), ("sacct", ""), ("squeue", "")):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\necho {said} >&2\n[ {name} != sbatch ]\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    tasks = [Task(f"job-{number}", {"train": {}}, 1, tmp_path / f"job-{number}") for number in range(2)]
    with pytest.raises(
        UsageError, match=r"SLURM does not take the jobs .*QOSMaxSubmitJobPerUserLimit.*smaller --parallel"
    ):
        Slurm(tmp_path, Settings({})).submit(tasks)
    assert not list(tmp_path.glob(f"job-*/{slurm.SUBMITTED}"))
    with pytest.raises(UsageError, match="submitit refuses its parameters"):
        Slurm(tmp_path, Settings({"slurm_nonsense": 1})).submit(tasks)
