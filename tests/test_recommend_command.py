"""`python -m experiments.recommend`: from its flags to its files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.studies import jobs
from experiments.training.config.options import TrainConfig

ROOT = Path(__file__).parent.parent


def test_the_command_line_end_to_end(tmp_path):
    """On a data set of a moment, in processes of its own; the second time no run to the target is made again."""
    command_ = [
        sys.executable, "-m", "experiments.recommend", "--dataset=tests.own:larger", "--model=tests.own:model",
        "--num_devices=1", "--target_accuracy=0.7", "--budget_minutes=0.8", "--average_weights=1000",
        f"--workdir={tmp_path}",
    ]  # fmt: skip
    first = subprocess.run(command_, capture_output=True, text=True, cwd=ROOT, check=False, timeout=600)
    assert first.returncode == 0, first.stderr
    assert "\nMeasured in " in first.stdout and (tmp_path / "report.html").exists()
    before = {row.key: row for row in jobs.read(tmp_path / jobs.FILE)}
    again = subprocess.run([*command_, "--json"], capture_output=True, text=True, cwd=ROOT, check=False, timeout=600)
    result = json.loads(again.stdout)
    # Each says when it was made, so that a row that was made again would differ.
    assert {row.key: row for row in jobs.read(tmp_path / jobs.FILE)}.items() >= before.items()
    # How far a budget goes is the machine's matter.
    assert result["evidence"]["step_time"]
    assert {row.options["average_weights"] for row in before.values()} == {1000}
    if result["advice"] is not None:
        assert TrainConfig(**result["advice"]["options"]).batch_size == result["advice"]["batch_size"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--budget_minutes=0"], "--budget_minutes must be positive and finite, such as 10, not 0"),
        (["--target_accuracy=98"], "--target_accuracy is a share of 1, such as 0.98, not 98"),
        (["--budget_minutes=inf"], "--budget_minutes must be positive and finite, such as 10, not inf"),
        (["--span=0"], "--span must be at least 1, not 0"),
        (["--span=-4"], "--span must be at least 1, not -4"),
        (
            ["--span=131072"],
            "need batches of 131,072 examples, and 60,000 are there to train on; take a smaller --span",
        ),
        (["--num_devices=0"], "--num_devices must be at least 1 and at most 1,024, not 0"),
        (["--model=simple_cn"], "Did you mean 'simple_cnn'"),
    ],
)
def test_bad_flags_are_refused(flags, message, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.recommend", f"--workdir={tmp_path}", *flags],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
