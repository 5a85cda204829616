"""The study of branches: how large the batch of any training program may become, at several points of a run."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from batchnorm_jax.batch_size import (
    Branch,
    fit_branches,
    measure_noise,
    scale_learning_rate,
    train_branches,
)

from .. import _commands, _files
from .._errors import UsageError
from .._limits import option, option_as_in
from ..problems import loading
from ..problems.problem import Problem
from ..records.branching import Branching, BranchPoint, BranchRow
from ..records.fields import finite
from ..training.config.options import TrainConfig
from .smoothness import pooled_noise_scale

ROWS, RESULT = "branches.jsonl", "branching.json"
# The seed of the run, and that of the examples which measure its noise.
RUN_SEED, NOISE_SEED = 1_000, 2_000
NOISE_BATCHES, NOISE_SHARDS, SHARD_EXAMPLES = 16, 8, 16
# The fewest updates of the largest batch, where the length of a branch is not given.
LEAST_UPDATES = 8
LOSS_DIGITS = 6


@dataclass(frozen=True)
class Request:
    """The options of a study; the entry point makes one flag per field, documented by `FIELD.metadata["help"]`."""

    problem: str = option(
        f"{_commands.module('problems.mlp')}:problem",
        "The training program: a function 'package.module:function' that returns its five functions.",
        form=loading.check_name,
    )
    batch_size: int | None = option(None, "Batch size of the run. Default: the problem's.", least=1)
    learning_rate: float | None = option(None, "Rate of the run. Default: the problem's.", above=0)
    branch_points: tuple[int, ...] | None = option(
        None,
        "Examples after which branches leave the run. Default: half an epoch and two epochs.",
        example="2000,8000",
        what="whole numbers",
        least=1,
    )
    branch_examples: int | None = option(
        None, "Examples of each branch. Default: as many as the run has seen, and eight updates or more.", least=1
    )
    multiples: tuple[int, ...] = option(
        (2, 4, 8, 16), "Batch sizes of the branches, as multiples of the run's.", example="2,4,8", least=2
    )
    rate_factors: tuple[float, ...] = option(
        (1.0, 0.5), "Rates to try in each branch, as multiples of the scaling rule's.", example="1,0.5", above=0
    )
    seeds: tuple[int, ...] = option(
        (0, 1, 2), "Seeds of the batches; the interval needs two or more.", example="0,1,2", least=0
    )
    tolerance: float = option(0.01, "Loss by which a branch may end above the run's own.", least=0)
    workdir: str | None = option_as_in(
        TrainConfig, "workdir", None, "Folder for the results. Default: runs/branch-NAME."
    )

    def __post_init__(self):
        """Checks what the limits of single options do not say."""
        points = list(self.branch_points or ())
        if points != sorted(set(points)):
            raise UsageError(f"--branch_points must rise, as in 2000,8000, not {','.join(map(str, points))}")

    @property
    def folder(self) -> Path:
        """The folder for the results."""
        name = self.problem.replace(":", "_")
        return Path(self.workdir or f"runs/branch-{name}")


class Study:
    """A study of one problem: the run, its branches, and the rows of those that are done."""

    def __init__(self, request: Request, problem: Problem):
        """Prepares a study; nothing is trained yet.

        Raises:
          UsageError: a branch is shorter than a batch.
        """
        self.request, self.problem, self.folder = request, problem, request.folder
        self.batch_size = request.batch_size or problem.batch_size
        self.learning_rate = request.learning_rate or problem.learning_rate
        given = request.branch_points or (problem.examples // 2, 2 * problem.examples)
        # The run is at a whole number of updates.
        self.points = [whole_updates(point, self.batch_size) for point in given]
        largest = self.batch_size * max(request.multiples)
        self.lengths = {point: request.branch_examples or usual_length(point, largest) for point in self.points}
        if min(self.lengths.values()) < largest:
            raise UsageError(
                f"--branch_examples={request.branch_examples} is less than the largest batch, {largest:,} examples; "
                "give more of them or smaller --multiples"
            )
        rows = _files.read_rows(self.folder / ROWS, BranchRow)[0] if (self.folder / ROWS).exists() else []
        self._rows = {row.key: row for row in rows}

    def run(self, command: str) -> Branching:
        """Trains the run and what is missing of its branches, and writes and returns the answers.

        Args:
          command: the command that made the study, to be stored.

        Raises:
          UsageError: the loss of the run is not finite at a point.
        """
        answers = []
        for point, state in self._run():
            loss = self.problem.loss(state)
            if not math.isfinite(loss):
                raise UsageError(f"the held-out loss is {loss} after {point:,} examples; give a lower --learning_rate")
            branches = [branch for seed in self.request.seeds for branch in self._branches(point, state, seed)]
            answers.append(self._answer(point, loss, state, branches))
            print(line(answers[-1]), flush=True)
        result = Branching(
            problem=self.request.problem,
            goal=self.problem.goal,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            tolerance=self.request.tolerance,
            command=command,
            points=answers,
        )
        _files.write_json(self.folder / RESULT, result)
        return result

    def _run(self) -> Iterator[tuple[int, Any]]:
        """Yields each point and the state of the run there."""
        problem, state, done = self.problem, self.problem.init(RUN_SEED), 0
        for point in self.points:
            for step in range(done, point // self.batch_size):
                state, _ = problem.update(state, problem.batch(RUN_SEED, step, self.batch_size), self.learning_rate)
            done = point // self.batch_size
            yield point, state

    def _key(self, point: int, seed: int, batch_size: int, rate: float) -> str:
        run = f"{self.request.problem}-b{self.batch_size}-r{self.learning_rate:.6g}"
        return f"{run}-at{point}-for{self.lengths[point]}-seed{seed}-b{batch_size}-r{rate:.6g}"

    def _branches(self, point: int, state: Any, seed: int) -> list[Branch]:
        """Returns the branches of a seed at a point; all of them are trained unless the rows of all are there."""
        request, problem = self.request, self.problem
        wanted = self._wanted(point, seed)
        if not all(key in self._rows for key in wanted):
            started = time.monotonic()
            for branch in train_branches(
                state, problem.update, problem.batch, problem.loss,
                batch_size=self.batch_size, learning_rate=self.learning_rate, examples=self.lengths[point],
                rule=problem.rule, multiples=request.multiples, factors=request.rate_factors, seeds=(seed,),
                start=point,
            ):  # fmt: skip
                now = time.monotonic()
                self._keep(point, branch, now - started)
                started = now
        return [_branch(self._rows[key]) for key in wanted]

    def _wanted(self, point: int, seed: int) -> list[str]:
        """Returns the keys of the branches of a seed at a point, as `train_branches` makes them."""
        keys = [self._key(point, seed, self.batch_size, self.learning_rate)]
        for multiple in sorted(set(self.request.multiples)):
            size = self.batch_size * multiple
            rate = scale_learning_rate(self.learning_rate, self.batch_size, size, rule=self.problem.rule)
            keys += [self._key(point, seed, size, rate * factor) for factor in self.request.rate_factors]
        return keys

    def _keep(self, point: int, branch: Branch, seconds: float) -> None:
        row = BranchRow(
            key=self._key(point, branch.seed, branch.batch_size, branch.learning_rate),
            point=point,
            seed=branch.seed,
            batch_size=branch.batch_size,
            learning_rate=branch.learning_rate,
            examples=[int(count) for count in branch.examples],
            # The digits of a loss that say something, so that a study of many branches stays small.
            losses=[finite(float(f"{loss:.{LOSS_DIGITS}g}")) for loss in branch.losses],
            seconds=round(seconds, 3),
        )
        _files.add_row(self.folder / ROWS, row)
        self._rows[row.key] = row
        print(
            f"at {point:,}  seed {branch.seed}  batch {branch.batch_size:,}  rate {branch.learning_rate:.4g}  "
            f"loss {branch.losses[0]:.4f} to {branch.losses[-1]:.4f}  {seconds:.1f} s",
            flush=True,
        )

    def _answer(self, point: int, loss: float, state: Any, branches: list[Branch]) -> BranchPoint:
        noise = self._noise(state)
        try:
            fit = fit_branches(branches, tolerance=self.request.tolerance)
        except ValueError as error:
            return BranchPoint(point=point, loss=loss, **noise, why_not=str(error))
        low, high = fit.interval or (math.inf, math.inf)
        return BranchPoint(
            point=point,
            loss=loss,
            **noise,
            critical_batch_size=finite(fit.critical_batch_size),
            interval=(finite(low), finite(high)),
            within_tolerance=fit.within_tolerance,
            beyond_tolerance=fit.beyond_tolerance,
            efficiency=list(fit.efficiency.items()),
            learning_rates=list(fit.learning_rates.items()),
        )

    def _noise(self, state: Any) -> dict[str, Any]:
        """Returns the fields of the gradient noise scale at a state; none if the problem has no gradient."""
        problem, size = self.problem, NOISE_SHARDS * SHARD_EXAMPLES
        if problem.gradient is None:
            return {}
        batches = (problem.batch(NOISE_SEED, step, size) for step in range(NOISE_BATCHES))
        measured = measure_noise(problem.gradient, state, batches, NOISE_SHARDS)
        scale, (low, high) = pooled_noise_scale(measured)
        return {"noise_scale": finite(scale), "noise_interval": (finite(low), finite(high))}


def whole_updates(examples: int, batch_size: int) -> int:
    """Returns the nearest number of examples that one update or more make.

    Example:
      >>> whole_updates(70, 32), whole_updates(1, 32)
      (64, 32)
    """
    return max(1, round(examples / batch_size)) * batch_size


def usual_length(point: int, largest: int) -> int:
    """Returns the examples of a branch whose length is not given: as many as the run has seen, and some updates."""
    return max(point, LEAST_UPDATES * largest)


def _branch(row: BranchRow) -> Branch:
    losses = [math.inf if loss is None else loss for loss in row.losses]
    return Branch(row.batch_size, row.learning_rate, row.seed, np.array(row.examples), np.array(losses))


def line(point: BranchPoint) -> str:
    """Returns the answer at a point in a line."""
    said = f"after {point.point:,} examples, loss {point.loss:.4f}: "
    if point.why_not is not None:
        return f"{said}no answer: {point.why_not}"
    critical = "above what was tried" if point.critical_batch_size is None else f"{point.critical_batch_size:,.0f}"
    low, high = point.interval
    if point.critical_batch_size is not None and (low, high) != (None, None):
        critical += f" ({low or 0:,.0f} to {'no bound' if high is None else f'{high:,.0f}'})"
    if point.beyond_tolerance is None:
        tolerated = f"all up to {point.within_tolerance:,} end within the tolerance"
    else:
        tolerated = f"{point.within_tolerance:,} ends within the tolerance, {point.beyond_tolerance:,} does not"
    noise = "" if point.noise_scale is None else f"; gradient noise scale {point.noise_scale:,.0f}"
    return f"{said}critical batch size {critical}; {tolerated}{noise}"


def ramp_lines(result: Branching) -> list[str]:
    """Returns the flags of a run whose batch follows the critical batch size, if it and the noise scale are known."""
    if (share := result.critical_share) is None:
        return []
    return [
        f"The critical batch size is {share:.2g} of the gradient noise scale. A run whose batch follows it: "
        f"{_commands.program('train')} --schedule=constant --batch_ramp=auto --critical_share={share:.2g}"
    ]
