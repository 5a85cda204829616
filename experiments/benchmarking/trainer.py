"""The trainer as a whole, run as a user runs it: what it adds to its compiled step, and how soon it begins."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import _files, records
from experiments._errors import UsageError
from experiments._shapes import every, record
from experiments.benchmarking import timing
from experiments.data.arrays import CACHE_VARIABLE

# A summary with what is read here of it.
_SUMMARY = every(records.SUMMARY, record({"overhead": records.NUMBER, "first_step_ended": records.POSITIVE}))


def overhead(batch_sizes: Sequence[int], *, dataset: str, data_dir: str | None, rounds: int) -> list[dict[str, Any]]:
    """The share of training that is outside the compiled step, without start, compilation, evaluation, checkpoints.

    Args:
      batch_sizes: global batch sizes.
      dataset: to train `simple_cnn` with norm on, for one epoch.
      data_dir: the TFDS data directory.
      rounds: runs of each.

    Returns:
      A row a batch size with the share, as a spread over the rounds.
    """
    rows = []
    for batch_size in batch_sizes:
        flags = {"dataset": dataset, "data_dir": data_dir, "batch_size": batch_size, "epochs": 1, "warmup_epochs": 0}
        shares = [_train(flags)["overhead"] for _ in range(rounds)]
        rows.append({"batch_size": batch_size, "overhead": timing.spread(shares)._asdict()})
        print(
            f"batch {batch_size:>5}   outside the compiled step {timing.spread([100 * s for s in shares])} %",
            flush=True,
        )
    return rows


def start(rounds: int) -> dict[str, Any]:
    """Seconds from the command to the end of its first step, at the default settings.

    Returns:
      Spreads over the rounds: `cold`, with nothing in the project's cache (the data set is made, all is compiled), and
      `warm`, the same command after that.
    """
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for kind in seconds:
                started = time.time()
                summary = _train({"steps": 2, "warmup_epochs": 0}, {CACHE_VARIABLE: cache})
                seconds[kind].append(summary["first_step_ended"] - started)
    row = {kind: timing.spread(values)._asdict() for kind, values in seconds.items()}
    print("   ".join(f"first step, {k} cache {timing.spread(v)} s" for k, v in seconds.items()), flush=True)
    return row


def _train(flags: dict[str, Any], environment: dict[str, str] | None = None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as workdir:
        given = {**flags, "workdir": workdir}
        arguments = [f"--{name}={value}" for name, value in given.items() if value is not None]
        ended = subprocess.run(
            [sys.executable, "-m", "experiments.train", *arguments],
            env={**os.environ, **(environment or {})},
            text=True,
            capture_output=True,
            check=False,
        )
        if ended.returncode != 0:
            said = next((line for line in reversed(ended.stderr.splitlines()) if line.strip()), "it said nothing")
            raise UsageError(f"the training command failed with exit status {ended.returncode}: {said:.500}")
        return _files.read_json(Path(workdir) / "summary.json", _SUMMARY)
