"""A run resumes after it was killed or terminated, ran out of disk space, or had its checkpoints damaged."""

import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import data
from experiments._errors import UsageError
from experiments.training import loop, session
from experiments.training.config.options import TrainConfig
from experiments.training.storage import metrics
from experiments.training.storage.checkpoints import Checkpoints, StorageError, writing_to
from experiments.training.storage.workdir import only_one
from tests import damage, rig

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "NPROC"}
# XLA's CPU collectives of fake devices abort occasionally; the tests start such a run again, and print so.
ABORTED = -signal.SIGABRT


def command(workdir, **changes):
    given = {"dataset": "tests.own:many", "batch_size": 512, "steps": 40, "warmup_epochs": 0.1, "checkpoint_every": 3}
    given |= {**changes, "workdir": workdir}
    return [sys.executable, "-m", "experiments.train", *(f"--{k}={v}" for k, v in given.items())]


def start(workdir, **changes):
    return subprocess.Popen(
        command(workdir, **changes),
        cwd=ROOT,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(workdir, **changes):
    """Runs to the end, and returns the output."""
    for _ in range(3):
        process = start(workdir, **changes)
        output, _ = process.communicate(timeout=300)
        if process.returncode != ABORTED:
            break
        print(f"{workdir}: a collective of fake devices aborted; started again")
    assert process.returncode == 0, output
    return output


def final_state(workdir, step=40):
    like = rig.run_of(TrainConfig(batch_size=512), data.load("tests.own:many"), 2).state
    with Checkpoints(workdir) as checkpoints:
        return jax.device_get(checkpoints.restore(like, step))


def assert_same_run(one, other):
    """Checks that parameters, statistics and optimizer state are equal bit for bit, and all rows of metrics equal."""
    jax.tree.map(np.testing.assert_array_equal, final_state(one), final_state(other))
    assert metrics.read(one / metrics.FILE) == metrics.read(other / metrics.FILE)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    finish(workdir)
    return workdir


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if condition():
            return
        time.sleep(0.002)


def kill_at_random(workdir, r):
    """Kills a run some time after its first update, half of the time during a save; returns which moment it hit."""
    process = start(workdir)
    checkpoints = workdir / "checkpoints"
    if r.random() < 0.5:
        moment = "while saving"
        seen = set(checkpoints.glob("*tmp*"))
        wait_for(lambda: set(checkpoints.glob("*tmp*")) - seen, process)
        time.sleep(r.uniform(0, 0.03))
    else:
        moment = "at random"
        rows = workdir / metrics.FILE
        before = rows.stat().st_mtime_ns if rows.exists() else 0
        wait_for(lambda: rows.exists() and rows.stat().st_mtime_ns > before and rows.stat().st_size > 0, process)
        time.sleep(r.uniform(0, 1.0))
    ended = process.poll()
    process.kill()
    output, _ = process.communicate()
    assert ended in (None, 0, ABORTED), output
    return moment if ended is None else "after its end"


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_repeatedly_ends_bit_for_bit_as_an_uninterrupted_one(tmp_path, uninterrupted, kills):
    workdir, r = tmp_path / "killed", random.Random(kills)
    hits = [kill_at_random(workdir, r) for _ in range(kills)]
    print(f"killed: {hits}")
    finish(workdir)
    assert_same_run(workdir, uninterrupted)
    assert hits.count("after its end") < kills and "while saving" in hits


def test_sigterm_saves_within_one_step_and_exits_143(tmp_path, uninterrupted):
    workdir = tmp_path / "stopped"
    process = start(workdir, checkpoint_every=1000)
    rows = workdir / metrics.FILE
    wait_for(lambda: rows.exists() and len(rows.read_text().splitlines()) >= 5, process)
    process.send_signal(signal.SIGTERM)
    logged = len(rows.read_text().splitlines())
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    stopped_at = metrics.read(rows)[-1].step
    # One step may end before the signal arrives, and another one is running when it does.
    assert logged <= stopped_at <= logged + 2 and f"step {stopped_at} is saved" in output
    assert f"checkpoint of step {stopped_at}" in finish(workdir, checkpoint_every=1000)
    assert_same_run(workdir, uninterrupted)


class KilledError(Exception):
    """An error that ends a run inside this process, in place of a SIGKILL."""


CONFIGURATIONS = {
    "ramp and accumulation": {
        "batch_size": 8,
        "batch_ramp": 16,
        "schedule": "step",
        "step_epochs": "1,2",
        "step_factor": 2.0,
        "accumulation_steps": 2,
    },
    "a stream with crops": {
        "batch_size": 12,
        "input": "streamed",
        "augmentation": "crop_flip",
        "accumulation_steps": 2,
    },
    "a smaller last batch": {"batch_size": 12, "drop_remainder": False, "optimizer": "lamb", "checkpoint_every": 2},
    "a ramp by the noise": {
        "dataset": "tests.own:larger",
        "batch_size": 4,
        "batch_ramp": "auto",
        "schedule": "constant",
    },
    "several backwards": {"batch_size": 16, "backwards_per_forward": 4, "checkpoint_every": 6},
    "full batch": {"batch_size": 64, "optimizer": "lbfgs", "accumulation_steps": 2},
    "a target": {"batch_size": 16, "target_accuracy": 0.3},
}


# Numbers of the updates before which a run ends, counted over all runs in the folder.
ENDS = {"a ramp by the noise": (40, 120, 150)}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_kind_of_run_resumes_bit_for_bit(tmp_path, monkeypatch, name):
    """Ends runs by an exception before some updates, and once between the last checkpoint and the summary."""
    options = {"dataset": "tests.own:dataset", "model": "tests.own:model", "epochs": 4, "warmup_epochs": 0}
    options |= {"learning_rate": 0.05, "num_devices": 2, **CONFIGURATIONS[name]}
    whole = session.train(TrainConfig(**options, workdir=str(tmp_path / "whole")))
    program, calls = loop.Fit._program, []

    def dies(self, state, sources):
        calls.append(int(state.step))
        if len(calls) in ENDS.get(name, (2, 5, 6)):
            raise KilledError
        return program(self, state, sources)

    monkeypatch.setattr(loop.Fit, "_program", dies)
    config = TrainConfig(**options, workdir=str(tmp_path / "killed"))
    for _ in range(4):
        with contextlib.suppress(KilledError):
            session.train(config)
    (tmp_path / "killed" / session.SUMMARY).unlink()
    again = session.train(config)
    assert again.results == whole.results and again.updates == whole.updates
    assert again.target == whole.target and again.starts > 1
    rows = [metrics.read(tmp_path / which / metrics.FILE) for which in ("whole", "killed")]
    assert rows[0] == rows[1]
    assert any(row.kind == "ramp" for row in rows[0]) == (options.get("batch_ramp") == "auto")
    like = rig.run_of(config, rig.tiny(), 2).state
    states = []
    for which in ("whole", "killed"):
        with Checkpoints(tmp_path / which, read_only=True) as checkpoints:
            states.append(jax.device_get(checkpoints.restore(like)))
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_a_reader_leaves_an_unfinished_save_alone(two_checkpoints):
    folder, state = two_checkpoints
    under_way = folder / "checkpoints" / "3.orbax-checkpoint-tmp"
    under_way.mkdir()
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert int(checkpoints.restore(state).step) == 2
    assert under_way.exists()
    with pytest.raises(UsageError, match="has no checkpoint yet"):
        Checkpoints(folder / "nothing", read_only=True)


def test_two_runs_in_one_folder_are_refused(tmp_path):
    with (
        only_one(tmp_path / "run"),
        pytest.raises(UsageError, match=r"process .* is training in this folder"),
        only_one(tmp_path / "run"),
    ):
        raise AssertionError("both hold the folder")
    with only_one(tmp_path / "run"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file cannot be written to"), only_one(tmp_path / "file"):
        raise AssertionError("a file is no folder")


@pytest.fixture
def two_checkpoints(tmp_path):
    """Returns a folder with checkpoints of steps 1 and 2, and a state of their shape."""
    state = rig.run_of(TrainConfig(batch_size=32, model="tests.own:model"), rig.tiny(), 2).state
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(state._replace(step=state.step + step))
    return tmp_path, state


@pytest.mark.parametrize("kind", damage.KINDS)
def test_a_damaged_checkpoint_is_never_restored(two_checkpoints, kind):
    """Damages one file after the other; restores the newest state bit for bit, or reports it and takes the one before.

    Runs in a separate process, because Orbax reads arrays concurrently, and its other reads go on when one fails.
    """
    folder, _ = two_checkpoints
    ended = subprocess.run(
        [sys.executable, "-m", "tests.damage", str(folder), kind],
        cwd=ROOT,
        env=ENVIRONMENT,
        text=True,
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["files"] > 5 and found["older"] >= 3, found


def test_the_digest_detects_a_change_that_orbax_restores_silently(two_checkpoints, monkeypatch, caplog):
    """Changes the state after Orbax has read it, so that only the digest can detect the change."""
    folder, state = two_checkpoints
    with Checkpoints(folder) as checkpoints:
        restore = checkpoints._manager.restore

        def flipped(step, **arguments):
            stored = restore(step, **arguments)
            if step == 2:
                stored["state"]["params"]["first"]["kernel"] = -stored["state"]["params"]["first"]["kernel"]
            return stored

        monkeypatch.setattr(checkpoints._manager, "restore", flipped)
        assert int(checkpoints.restore(state).step) == 1
    assert "does not match the digest that was stored with it" in caplog.text


def test_a_full_disk_is_named_and_the_last_checkpoint_is_intact(tmp_path):
    """Trains on a file system of 400 KiB, which holds one checkpoint, and to the end once there is room."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("needs Linux and unshare, to mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    train = " ".join(command(disk / "run", steps=6, checkpoint_every=1, warmup_epochs=0))
    script = (
        f"mount -t tmpfs -o size=400k tmpfs {disk} && echo mounted; {train}; echo status $?; "
        f"mount -o remount,size=8m {disk} && {train}"
    )
    ended = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", script],
        cwd=ROOT,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if "mounted" not in ended.stdout:
        pytest.skip(f"this machine does not let a test mount a file system: {ended.stdout.strip()[-200:]}")
    # Which file meets the full disk first depends on the machine.
    said = re.search(r"^error: (the checkpoint of step (\d) .*)?no space left on the disk: .*", ended.stdout, re.M)
    assert said and "status 2" in ended.stdout, ended.stdout
    assert "Event loop is closed" not in ended.stdout, ended.stdout
    went_on = re.search(r"Resuming from the checkpoint of step (\d)\.", ended.stdout)
    assert went_on and ended.returncode == 0, ended.stdout
    if said[1]:
        last = int(said[2]) - 1
        assert f"steps {', '.join(map(str, range(1, last + 1)))} are intact" in said[0] and went_on[1] == str(last)
    else:
        assert "are intact" in said[0], said


def fail(error):
    raise error


def test_the_first_error_of_a_full_disk_is_reported(tmp_path):
    """Files that are closed while an error propagates meet the same full disk, and their errors say less."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(StorageError, match=r"no space left on the disk: .* are intact"), writing_to(tmp_path):
        fail(full)
    with pytest.raises(StorageError, match="step 3"), writing_to(tmp_path), contextlib.ExitStack() as held:  # noqa: PT012
        held.callback(fail, full)
        fail(StorageError("the checkpoint of step 3 cannot be written"))
    with pytest.raises(PermissionError), writing_to(tmp_path):
        fail(PermissionError(errno.EACCES, "no"))


def test_closing_does_not_hide_why_a_save_failed(two_checkpoints, monkeypatch):
    """When it is closed, Orbax raises the error of a failed save a second time."""
    folder, _ = two_checkpoints
    checkpoints = Checkpoints(folder, read_only=True)
    monkeypatch.setattr(checkpoints._manager, "close", lambda: fail(ValueError("RESOURCE_EXHAUSTED")))
    with pytest.raises(StorageError, match="step 3"), checkpoints:
        fail(StorageError("the checkpoint of step 3 cannot be written"))
    with pytest.raises(ValueError, match="RESOURCE_EXHAUSTED"), checkpoints:
        pass
