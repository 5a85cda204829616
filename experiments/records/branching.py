"""Records of a study of branches: its rows, and the critical batch size at each point of the run."""

import math
import statistics

from msgspec import field

from .fields import Count, Finite, NonNegative, OpenInterval, Positive, Share, Size
from .record import FileRecord, Record


class BranchRow(FileRecord, frozen=True, kw_only=True):
    """A row of `branches.jsonl`: one branch.

    Attributes:
      key: the name of the branch, which says all that it depends on.
      point: the examples that the run had seen where it branched off.
      seed: the seed of the batches.
      batch_size: examples per update.
      learning_rate: the constant rate.
      examples: the examples since the point, at each evaluation.
      losses: the held-out losses there, None where one was not finite.
      seconds: the time that the branch took, with its evaluations.
    """

    key: str
    point: Count
    seed: Count
    batch_size: Size
    learning_rate: Positive
    examples: list[Count]
    losses: list[Finite | None]
    seconds: NonNegative = 0.0

    def __post_init__(self):
        if len(self.examples) != len(self.losses):
            raise ValueError("Expected as many losses as examples")


class BranchPoint(Record, frozen=True, kw_only=True):
    """The answer at one point of the run.

    Attributes:
      point: the examples that the run had seen.
      loss: the held-out loss there.
      noise_scale: the gradient noise scale in examples; None: not measured, or not finite.
      noise_interval: the 95% interval of the noise scale.
      critical_batch_size: in examples; None: the branches do not bound it.
      interval: the 95% interval from the differences between seeds; (None, None): one seed, or no bounds.
      within_tolerance: the largest batch size up to which all end within the tolerance of the original's loss.
      beyond_tolerance: the next larger batch size, which does not; None: there is none.
      efficiency: batch sizes, each with the share of its examples that the original needs for the same loss.
      learning_rates: batch sizes, each with the best of the rates that were tried.
      why_not: why there is no fit; None: there is one.
    """

    point: Count
    loss: Finite
    noise_scale: Finite | None = None
    noise_interval: OpenInterval = (None, None)
    critical_batch_size: Finite | None = None
    interval: OpenInterval = (None, None)
    within_tolerance: Size | None = None
    beyond_tolerance: Size | None = None
    efficiency: list[tuple[Size, Share]] = field(default_factory=list)
    learning_rates: list[tuple[Size, Positive]] = field(default_factory=list)
    why_not: str | None = None


class Branching(FileRecord, frozen=True, kw_only=True):
    """The contents of `branching.json`.

    Attributes:
      problem: the name of the function that made the problem.
      goal: the held-out quantity, "loss" or "accuracy"; of an accuracy, losses are shares of wrong answers.
      batch_size: the batch size of the run.
      learning_rate: its rate.
      tolerance: by how much a loss may end above the original's.
      command: the command that made the study.
      points: one entry per point.
    """

    problem: str
    goal: str
    batch_size: Size
    learning_rate: Positive
    tolerance: NonNegative
    command: str = ""
    points: list[BranchPoint]

    @property
    def critical_share(self) -> float | None:
        """The critical batch size as a share of the noise scale, in the geometric mean; None: no point has both."""
        both = [(p.critical_batch_size, p.noise_scale) for p in self.points]
        logs = [math.log(critical / noise) for critical, noise in both if critical and noise and noise > 0]
        return math.exp(statistics.mean(logs)) if logs else None
