"""Several processes train together over loopback: numbers as in one process, and clear errors when one is lost."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments._errors import UsageError
from experiments.training.config.options import TrainConfig
from experiments.training.machine import processes
from experiments.training.storage import metrics

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "NPROC"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(workdir, processes, environment=None, **changes):
    """Starts the processes of one run, with a total of four devices."""
    port = free_port()
    given = {"dataset": "tests.own:many", "batch_size": 512, "steps": 20, "warmup_epochs": 0.1, **changes}
    given["num_devices"] = 4 // processes
    given["workdir"] = workdir
    started = []
    for i in range(processes):
        if processes > 1:
            given |= {"coordinator_address": f"127.0.0.1:{port}", "num_processes": processes, "process_id": i}
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "experiments.train", *(f"--{k}={v}" for k, v in given.items())],
                cwd=ROOT,
                env={**ENVIRONMENT, **(environment or {})},
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        )
    return started


def finish(workdir, processes, environment=None, **changes):
    """Runs to the end, and returns the output of each process; retries if XLA's collectives of fake devices abort."""
    for _ in range(3):
        started = start(workdir, processes, environment, **changes)
        outputs = [process.communicate(timeout=300)[0] for process in started]
        if all(process.returncode == 0 for process in started):
            return outputs
        assert any(process.returncode == -signal.SIGABRT for process in started), "\n".join(outputs)
        print(f"{workdir}: a collective of fake devices aborted; started again")
    raise AssertionError("\n".join(outputs))


def test_waiting_for_an_absent_coordinator_is_reported(monkeypatch, capsys):
    """Nothing listens at the port: the address and the time left are printed at once and again, then an error."""
    monkeypatch.setattr(processes, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(processes, "MESSAGE_INTERVAL_SECONDS", 0.1)
    address = f"127.0.0.1:{free_port()}"
    config = TrainConfig(coordinator_address=address, num_processes=2, process_id=1)
    with pytest.raises(processes.PeerError, match=rf"waited 0 s for process 0 at {address} .*refused"):
        processes._meet(config, address)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 3 and all(line.startswith(f"waiting   for process 0 at {address}: ") for line in lines)


def test_the_coordinator_listens_only_at_the_given_address(capsys):
    assert processes._can_listen_at(f"127.0.0.1:{free_port()}")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match=r"--coordinator_address=.* cannot listen there"):
            processes._can_listen_at(f"127.0.0.1:{taken.getsockname()[1]}")
    # RFC 5737 reserves this address for documentation, so no machine has it.
    assert not processes._can_listen_at("192.0.2.1:1234")
    assert "listens at port 1234 of all its addresses" in capsys.readouterr().out


def losses(workdir):
    return np.array([row.loss for row in metrics.read(workdir / metrics.FILE) if row.kind == "train"])


def test_two_processes_of_two_devices_train_as_one_process_of_four(tmp_path):
    """Compares twenty steps in double precision, in which only wrong pooling could make a difference."""
    double = {"environment": {"JAX_ENABLE_X64": "1"}, "model": "tests.own:double_precision_cnn"}
    outputs = finish(tmp_path / "two", 2, **double)
    finish(tmp_path / "one", 1, **double)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 20 and one[-1] < 0.5 * one[0]
    np.testing.assert_allclose(two, one, rtol=1e-5)
    assert "4 cpu devices in 2 processes x 128 per device" in outputs[0]
    # One process prints and writes.
    assert "epoch" in outputs[0] and "epoch" not in outputs[1]


@pytest.mark.slow
def test_two_processes_ramp_the_batch_size_as_one_process(tmp_path):
    ramp = {"batch_size": 64, "batch_ramp": "auto", "schedule": "constant", "warmup_epochs": 0, "steps": 1500}
    ramp |= {"dataset": "digits", "learning_rate": 0.02}
    outputs = finish(tmp_path / "two", 2, **ramp)
    finish(tmp_path / "one", 1, **ramp)
    one, two = (
        [(row.step, row.batch_size) for row in metrics.read(tmp_path / name / metrics.FILE) if row.kind == "ramp"]
        for name in ("one", "two")
    )
    assert one == two and len(one) >= 1, (one, two)
    assert "ramp      batch 128" in outputs[0] and "ramp " not in outputs[1]


def started_and_training(workdir, after=0):
    """Starts two processes, and returns them once they have trained for some steps after step `after`."""
    started = start(workdir, 2, steps=5000, checkpoint_every=10)
    rows = workdir / metrics.FILE
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and all(process.poll() is None for process in started):
        if rows.exists() and max((row.step for row in metrics.read(rows)), default=0) > after + 15:
            return started
        time.sleep(0.05)
    for process in started:
        process.kill()
    raise AssertionError("\n".join(process.communicate()[0] for process in started))


@pytest.mark.parametrize(
    ("lost", "sent"),
    [
        pytest.param("worker", signal.SIGKILL),
        pytest.param("coordinator", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("worker", signal.SIGSTOP, marks=pytest.mark.slow),
        pytest.param("coordinator", signal.SIGSTOP, marks=pytest.mark.slow),
    ],
)
def test_a_lost_process_ends_the_other_and_the_run_can_be_resumed(tmp_path, lost, sent):
    """When one process is killed or hangs, the other ends with an error within a minute, and both can be restarted."""
    started = started_and_training(tmp_path / "run")
    victim, other = started if lost == "coordinator" else started[::-1]
    victim.send_signal(sent)
    since = time.monotonic()
    output, _ = other.communicate(timeout=60)
    print(f"{lost}, {sent.name}: the other process ended after {time.monotonic() - since:.1f} s")
    victim.kill()
    victim.communicate()
    assert other.returncode != 0 and ("error" in output.lower()), output[-2000:]
    step = max(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit())
    last = metrics.read(tmp_path / "run" / metrics.FILE)[-1].step
    again = started_and_training(tmp_path / "run", after=last)
    for process in again:
        process.send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=60)[0] for process in again]
    assert [process.returncode for process in again] == [143, 143], outputs
    assert f"Going on from the checkpoint of step {step}." in outputs[0]


def test_sigterm_to_one_process_stops_all_after_the_same_step(tmp_path):
    started = started_and_training(tmp_path / "run")
    started[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=60)[0] for process in started]
    assert [process.returncode for process in started] == [143, 143], outputs
    last = metrics.read(tmp_path / "run" / metrics.FILE)[-1].step
    assert f"Stopped by SIGTERM; step {last} is saved." in outputs[0]
    assert (tmp_path / "run" / "checkpoints" / str(last)).is_dir()
