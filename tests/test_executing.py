"""The driver of a study, and workers side by side: what is run, in which order, and what no kill can lose."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from experiments import _locks, _workdirs, batch_size_study
from experiments._errors import UsageError
from experiments.studies import convergence, jobs, status
from experiments.studies.driver import Runner
from experiments.studies.executing import local
from experiments.studies.executing.choice import Where
from experiments.studies.executing.local import Local, Share, shares
from experiments.studies.jobs import Job
from tests import made, programs
from tests.executors import Stub

TINY = {
    "dataset": "tests.own:dataset", "model": "tests.own:model", "batch_size": 16, "steps": 2, "warmup_epochs": 0,
    "num_devices": 1,
}  # fmt: skip
ROOT = Path(__file__).parent.parent


def ended(task):
    """The answer of a run that ended well."""
    del task
    return {"summary": msgspec.to_builtins(made.summary())}


def stubbed(stub):
    return lambda folder: stub


def several(count):
    return [Job(f"job-{number}", {**TINY, "seed": number}) for number in range(count)]


def test_as_many_run_side_by_side_as_there_are_workers_and_all_rows_are_kept(tmp_path):
    stub = Stub(ended, slots=4, seed=0)
    with Runner(tmp_path, stubbed(stub)) as runner:
        rows = runner.run_all(several(12))
        assert [row.key for row in rows] == [f"job-{number}" for number in range(12)]
    assert stub.most == 4 and len(stub.done) == 12
    # One that was stopped goes on where it was.
    again = Stub(ended, slots=4)
    with Runner(tmp_path, stubbed(again)) as runner:
        runner.run_all(several(14))
    assert [task.key for task in again.done] == ["job-12", "job-13"]


def test_questions_are_pursued_side_by_side_the_first_ones_jobs_first(tmp_path):
    stub, answers = Stub(ended, slots=2), {}
    first, second = several(6)[:3], several(6)[3:]
    with Runner(tmp_path, stubbed(stub)) as runner:

        def adaptive():
            # Each job follows from the one before.
            return [runner.run(job).key for job in first]

        runner.pursue(
            {"adaptive": adaptive, "grid": lambda: runner.run_all(second), "last": lambda: answers["adaptive"]},
            answers.__setitem__,
            after={"last": ["adaptive"]},
        )
    assert stub.most == 2 and answers["last"] == [job.key for job in first]
    order = [task.key for task in stub.done]
    assert sorted(order) == sorted(job.key for job in (*first, *second))
    # The adaptive question's next job comes before the rest of the grid.
    assert order.index("job-1") < order.index("job-5")
    with pytest.raises(ZeroDivisionError), Runner(tmp_path, stubbed(stub)) as runner:
        runner.pursue({"broken": lambda: 1 / 0}, answers.__setitem__)


@pytest.mark.parametrize("stays", [False, True])
def test_an_error_is_no_result_of_a_search_and_is_tried_again(tmp_path, stays):
    """A worker is lost at one rate: the search goes on as if nothing had been, or says that it failed."""
    setting = convergence.Setting(
        target=0.9, fixed_sizes=(), tuned_sizes=(8, 16), rates=(0.1, 0.2, 0.4), max_epochs=5, seeds=(0,)
    )
    data = convergence.Data({"dataset": "tests.own:dataset", "model": "tests.own:model"}, examples=64, held_out=0)
    lost = []

    def answer(task):
        options = task.what["train"]
        if (options["batch_size"], options["learning_rate"]) == (8, 0.2) and (stays or not lost):
            lost.append(task)
            return {"error": "its process ended with exit status -9", "diverged": False}
        reached = 10 + round(100 * abs(options["learning_rate"] - 0.2))
        return {"summary": msgspec.to_builtins(made.summary(reached=reached, updates=reached))}

    stub = Stub(answer, slots=3)
    with Runner(tmp_path, stubbed(stub)) as runner:
        found = convergence.run_tuned(data, setting, lambda some: list(map(convergence.trial_of, runner.run_all(some))))
        failed = runner.failed()
    rows = {row.key: row for row in jobs.read(tmp_path / jobs.FILE)}
    assert len(lost) == (2 if stays else 1)
    assert failed == (["tuned-b8-r0.2-seed100"] if stays else [])
    if not stays:
        assert [tuned.rate for tuned in found] == [0.2, 0.2] and all(row.is_result for row in rows.values())


def test_what_its_own_options_refuse_is_tried_once(tmp_path):
    stub = Stub(lambda task: {"error": "--batch_size=16 is too large", "diverged": False, "refused": True})
    with Runner(tmp_path, stubbed(stub)) as runner:
        (row,) = runner.run_all(several(1))
    assert len(stub.done) == 1 and row.error == "--batch_size=16 is too large"


def test_a_second_driver_is_refused_and_told_who_the_first_is(tmp_path):
    with Runner(tmp_path, stubbed(Stub(ended))):
        code = (
            "from pathlib import Path; from experiments.studies.driver import Runner\n"
            f"with Runner(Path({str(tmp_path)!r})): pass"
        )
        ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert ran.returncode != 0
        assert f"process {os.getpid()} on {os.uname().nodename} is running this study" in ran.stderr
    with Runner(tmp_path, stubbed(Stub(ended))) as runner:
        runner.run_all(several(1))


def test_without_locks_of_the_file_system_a_process_is_found_by_its_number(tmp_path, monkeypatch):
    def refuse(who):
        return f"{who} is there"

    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(_locks.fcntl, "flock", unsupported)
    path = tmp_path / "lock"
    with _locks.held(path, refuse):
        assert _locks.is_held(path)
        with pytest.raises(UsageError, match=f"process {os.getpid()} on"), _locks.held(path, refuse):
            pass
    assert not _locks.is_held(path)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    path.write_bytes(msgspec.json.encode(_locks.Holder(host=os.uname().nodename, pid=gone.pid, since=0.0)))
    with _locks.held(path, refuse):
        pass


def test_the_machine_is_cut_into_equal_parts():
    assert shares(1, [0, 1, 2], ["0"]) == [local.WHOLE]
    assert [share.cores for share in shares(2, [0, 1, 2, 3, 4], [])] == [(0, 1), (2, 3)]
    four = shares(4, range(16), [str(number) for number in range(8)])
    assert [share.gpus for share in four] == [("0", "1"), ("2", "3"), ("4", "5"), ("6", "7")]
    assert four[1].environment() == {local.CORES: "4,5,6,7", local.GPUS: "2,3"}
    with pytest.raises(UsageError, match="a GPU of its own, and of these there are 2"):
        shares(4, range(16), ["0", "1"])
    with pytest.raises(UsageError, match="CPU core of its own, and of these there are 2; give --parallel=2 at most"):
        shares(3, [0, 1], [])
    assert Share().environment() == {}


def test_flags_of_a_cluster_without_a_cluster_are_refused(tmp_path):
    with pytest.raises(UsageError, match="--partition is for --executor=slurm"):
        Where(partition="gpu")
    with pytest.raises(UsageError, match="cannot be read"):
        Where(executor="slurm", cluster_file=str(tmp_path / "none.toml")).make()
    (tmp_path / "bad.toml").write_text("account")
    with pytest.raises(UsageError, match="is not TOML"):
        Where(executor="slurm", cluster_file=str(tmp_path / "bad.toml")).make()


def plain(row):
    """A row without what differs from one time to another: times, and where it ran."""
    found = msgspec.to_builtins(row)
    found.pop("ran_on", None)
    found.get("summary", {}).pop("seconds", None)
    for name in ("command", "compiled", "started"):
        found.pop(name, None)
        found.get("summary", {}).pop(name, None)
    return found


@pytest.mark.skipif(len(local.cores_here()) < 2, reason="needs two cores")
def test_two_workers_give_the_rows_of_one_and_each_keeps_to_its_cores(tmp_path):
    wanted = [Job(f"job-{seed}", {**TINY, "num_devices": None, "steps": 20, "seed": seed}) for seed in range(3)]
    timed = Job("timed", {**TINY, "steps": 3}, alone=True)
    with Runner(tmp_path / "one") as runner:
        alone = [*runner.run_all(wanted), runner.run(timed)]
    with Runner(tmp_path / "two", lambda folder: Local(folder, parallel=2)) as runner:
        beside = [*runner.run_all(wanted), runner.run(timed)]
    assert {row.ran_on for row in alone} == {""}
    assert {row.ran_on for row in beside[:3]} == {"worker 1 of 2", "worker 2 of 2"} and beside[3].ran_on == ""
    for one, two in zip(alone, beside, strict=True):
        assert plain(one)["summary"]["results"] == plain(two)["summary"]["results"]
        assert one.ended.devices == two.ended.devices


DRIVER = """
import sys
from pathlib import Path
from experiments.studies.driver import Runner
from experiments.studies.jobs import Job
with Runner(Path(sys.argv[1])) as runner:
    runner.run_all([Job("long", {"dataset": "tests.own:larger", "model": "tests.own:model", "batch_size": 16,
        "steps": 20000, "warmup_epochs": 0, "num_devices": 1, "checkpoint_every": 200})])
"""


def children(pid):
    """The numbers of the processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name of the program, in brackets, may contain anything.
            _, parent, *_ = path.read_text().rpartition(")")[2].split()
            found += [int(path.parent.name)] if int(parent) == pid else []
    return found


def lives(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_driver_whatever_kills_it(tmp_path, sent):
    """And what they had trained is kept: the study that is started again goes on from there."""
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], cwd=ROOT)
    rows = tmp_path / "runs"
    until = time.monotonic() + 120

    def steps():
        found = list(rows.glob("*/metrics.jsonl"))
        return found[0].read_text().count('"kind": "train"') if found else 0

    while steps() < 300 and time.monotonic() < until and driver.poll() is None:
        time.sleep(0.05)
    (worker,) = children(driver.pid)
    assert _locks.is_held(tmp_path / _workdirs.DRIVER_LOCK)
    driver.send_signal(sent)
    driver.wait()
    # Started again at once, while the worker may still be at its last update.
    assert not _locks.is_held(tmp_path / _workdirs.DRIVER_LOCK)
    began = time.monotonic()
    while lives(worker) and time.monotonic() < began + 60:
        time.sleep(0.05)
    assert not lives(worker)
    saved = max(int(p.name) for p in next(rows.glob("*/checkpoints")).iterdir() if p.name.isdigit())
    assert saved >= 200 and saved < 20_000
    assert "The study has ended; this process stops." in (tmp_path / "worker.log").read_text()
    # No row says that anything went wrong.
    assert jobs.read(tmp_path / jobs.FILE) == []


def test_how_far_a_study_is_can_be_read_elsewhere(tmp_path, capsys):
    assert status.lines(tmp_path) == [f"status    {tmp_path}: no study has been run here"]
    seen = []

    def answer(task):
        if len(stub.done) == 3:
            seen.extend(status.lines(tmp_path))
        return ended(task)

    stub = Stub(answer, slots=2)
    with Runner(tmp_path, stubbed(stub)) as runner:
        runner._status._written = -1e9
        runner.run_all(several(6))
    assert seen[0].startswith(f"status    run by process {os.getpid()} on {os.uname().nodename}, for 0:0")
    assert "running" in seen[1] and "waiting, 0 failed" in seen[1]
    said = capsys.readouterr().out
    assert said.splitlines()[-1].startswith("6 of 6 ")
    after = status.lines(tmp_path)
    assert after[0].startswith(f"status    not running; process {os.getpid()}") and "6 done, 0 running" in after[1]


def test_status_is_asked_for_while_another_process_runs_the_study(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "study"
    with Runner(folder, stubbed(Stub(ended))) as runner:
        runner.run_all(several(2))
    assert programs.run(batch_size_study, [f"--workdir={folder}", "--status"], monkeypatch) == 0
    assert "was the last to run it" in capsys.readouterr().out


def test_a_note_that_cannot_be_made_is_no_success(tmp_path):
    stub = Stub(lambda task: ended(task) if "train" in task.what else {"error": "not today", "diverged": False})
    (job,) = several(1)
    noise = job._replace(key="noise-b8")
    with Runner(tmp_path, stubbed(stub)) as runner:
        runner.run(noise)
        runner.note(noise, "noise", jobs.read)
        assert runner.failed() == ["noise-b8: noise"]
    run, note, _ = stub.done
    # It reads the folder of the run, and leaves its answer elsewhere.
    assert note.what["workdir"] == str(run.place) and note.place != run.place


def test_gpus_are_those_that_jax_would_use(monkeypatch):
    monkeypatch.setattr(local.importlib.util, "find_spec", lambda name: name)
    for given, found in (("0,2", ["0", "2"]), ("-1", []), ("", []), ("1,-1,2", ["1"])):
        monkeypatch.setenv(local.GPUS, given)
        monkeypatch.delenv("JAX_PLATFORMS", raising=False)
        assert local.gpus_here() == found
        monkeypatch.setenv("JAX_PLATFORMS", "cpu")
        assert local.gpus_here() == []
    monkeypatch.setenv(local.GPUS, "0,1")
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    assert local.gpus_here() == ["0", "1"]
    monkeypatch.setattr(local.importlib.util, "find_spec", lambda name: None)
    assert local.gpus_here() == []


def test_accelerators_that_have_no_shares_are_refused(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(local.Path, "glob", lambda self, pattern: [self / "accel0"] if pattern == "accel*" else [])
    with pytest.raises(UsageError, match="has other accelerators; leave it out, or set JAX_PLATFORMS=cpu"):
        Local(tmp_path, parallel=2)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    Local(tmp_path, parallel=2)


def test_a_lock_of_a_file_system_without_locks_is_let_go_of_after_an_error(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(_locks.fcntl, "flock", unsupported)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), _locks.held(tmp_path / "lock", str):
            _ = 1 / 0
    assert not _locks.is_held(tmp_path / "lock")
