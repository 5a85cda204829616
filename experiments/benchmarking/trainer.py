"""Measures the trainer as a user runs it: the time outside its compiled step, and the time to its first step."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .. import _commands, _files
from .._errors import UsageError
from ..data.arrays import CACHE_VARIABLE
from ..records.benchmarks.result import Spread
from ..records.benchmarks.train import OverheadRow, Start
from ..records.fields import Options
from ..records.runs import Summary
from . import timing


class _Ended(NamedTuple):
    """A run that has ended.

    Attributes:
      overhead: the share of the training time outside the compiled step.
      first_step_ended: the moment at which the first step ended, in seconds since 1970.
    """

    overhead: float
    first_step_ended: float


def overhead(batch_sizes: Sequence[int], *, dataset: str, data_dir: str | None, rounds: int) -> list[OverheadRow]:
    """Measures the share of training outside the compiled step, without start, compilation, evaluation, checkpoints.

    Each run trains `simple_cnn` with norms for one epoch.

    Args:
      batch_sizes: the global batch sizes.
      dataset: the name of the data set.
      data_dir: the TFDS data directory.
      rounds: the number of runs at each batch size.

    Returns:
      One row per batch size, with the spread over the rounds.
    """
    rows = []
    for batch_size in batch_sizes:
        flags: Options = {"dataset": dataset, "data_dir": data_dir, "batch_size": batch_size}
        flags |= {"epochs": 1, "warmup_epochs": 0}
        shares = [_train(flags).overhead for _ in range(rounds)]
        rows.append(OverheadRow(batch_size=batch_size, overhead=timing.spread(shares, Spread)))
        percent = timing.spread([100 * share for share in shares], Spread)
        print(f"batch {batch_size:>5}   outside the compiled step {percent} %", flush=True)
    return rows


def start(rounds: int) -> Start:
    """Measures the seconds from the command to the end of its first step, at the default settings.

    Each round runs the command twice: with an empty cache, so that the run makes the data set and compiles everything,
    and with the filled cache.
    """
    cold, warm = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for seconds in (cold, warm):
                started = time.time()
                summary = _train({"steps": 2, "warmup_epochs": 0}, {CACHE_VARIABLE: cache})
                seconds.append(summary.first_step_ended - started)
    found = Start(cold=timing.spread(cold), warm=timing.spread(warm))
    print(f"first step, cold cache {found.cold} s   first step, warm cache {found.warm} s", flush=True)
    return found


def _train(flags: Options, environment: dict[str, str] | None = None) -> _Ended:
    """Runs the training command, and returns two figures of its summary."""
    with tempfile.TemporaryDirectory() as workdir:
        given = {**flags, "workdir": workdir}
        arguments = [f"--{name}={value}" for name, value in given.items() if value is not None]
        ended = subprocess.run(
            [sys.executable, "-m", _commands.module("train"), *arguments],
            env={**os.environ, **(environment or {})},
            text=True,
            capture_output=True,
            check=False,
        )
        if ended.returncode != 0:
            said = next((line for line in reversed(ended.stderr.splitlines()) if line.strip()), "it said nothing")
            raise UsageError(f"the training command failed with exit status {ended.returncode}: {said:.500}")
        summary = _files.read_json(Path(workdir) / "summary.json", Summary)
        if summary.overhead is None or summary.first_step_ended is None:
            raise UsageError("the training command took no step, and one or more are needed to measure it")
        return _Ended(summary.overhead, summary.first_step_ended)
