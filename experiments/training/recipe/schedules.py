"""The learning rate as a function of the step: linear warmup, then a decay, each one declared record of `SCHEDULES`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import optax

from ... import _limits
from ..._errors import UsageError
from ..._variants import Register

# Default milestones as fractions of the whole training; Goyal et al. divide at epochs 30, 60 and 80 of 90.
STEP_FRACTIONS = (1 / 3, 2 / 3, 8 / 9)
# The lowest rate of a cycle as a fraction of its peak: Smith 2015 goes from 0.001 to 0.006.
CYCLE_FLOOR = 1 / 6
MAX_EPOCHS = 1e9


class Timing(NamedTuple):
    """When a decay does what, in updates.

    Attributes:
      steps: updates of the decay, from the end of warmup to the end of training.
      start: updates of warmup before it.
      boundaries: the updates, counted from the start of training, from which on the rate is multiplied by a factor.
      cycle: from one peak of a cycle to the next.
    """

    steps: int
    start: int
    boundaries: Mapping[int, float]
    cycle: float


@dataclass(frozen=True)
class Schedule:
    """A schedule, and what other code must know of it.

    Attributes:
      name: the value of `--schedule`.
      help: a phrase for the help of the flag.
      decay: (peak, timing) -> an Optax schedule that counts from the end of warmup.
      options: the flags that this schedule alone reads.
      is_constant: the rate stays at its peak.
      has_milestones: the rate is divided at milestones, where a batch ramp multiplies the batch instead.
      has_cycles: the rate returns to its peak after every `--cycle_epochs`.
    """

    name: str
    help: str
    decay: Callable[[float, Timing], optax.Schedule]
    options: tuple[str, ...] = ()
    is_constant: bool = False
    has_milestones: bool = False
    has_cycles: bool = False


def _constant(peak: float, timing: Timing) -> optax.Schedule:
    del timing
    return optax.constant_schedule(peak)


def _step(peak: float, timing: Timing) -> optax.Schedule:
    boundaries = {max(at - timing.start, 0): scale for at, scale in timing.boundaries.items()}
    return optax.piecewise_constant_schedule(peak, boundaries)


def _cosine(peak: float, timing: Timing) -> optax.Schedule:
    return optax.cosine_decay_schedule(peak, timing.steps)


def _polynomial(peak: float, timing: Timing) -> optax.Schedule:
    return optax.polynomial_schedule(peak, 0.0, power=2, transition_steps=timing.steps)


def _cyclic(peak: float, timing: Timing) -> optax.Schedule:
    def schedule(step):
        # From the peak, where warmup ends, down to the floor in half a cycle, and up again.
        phase = jnp.abs(1 - jnp.mod(step / timing.cycle, 1.0) * 2)
        return peak * (CYCLE_FLOOR + (1 - CYCLE_FLOOR) * phase)

    return schedule


SCHEDULES = Register(
    "schedule",
    Schedule("constant", "the peak rate throughout", _constant, is_constant=True),
    Schedule("step", "divided at --step_epochs", _step, options=("step_epochs", "step_factor"), has_milestones=True),
    Schedule("cosine", "half a cosine, down to 0", _cosine),
    # You et al., arXiv 1708.03888, 2017.
    Schedule("polynomial", "power 2, down to 0", _polynomial),
    # Smith, arXiv 1506.01186, 2015.
    Schedule(
        "cyclic",
        "down to a sixth and up again, --cycle_epochs long",
        _cyclic,
        options=("cycle_epochs",),
        has_cycles=True,
    ),
)


def make(
    name: str,
    peak: float,
    *,
    warmup_steps: int,
    total_steps: int,
    boundaries: dict[int, float] | None = None,
    cycle_steps: float = 1.0,
) -> optax.Schedule:
    """Returns a schedule that rises linearly to `peak` during warmup, once per update, and then decays.

    Update number i of warmup, from 0, uses peak (i + 1) / warmup_steps: no update is wasted on a rate of 0.

    Args:
      name: a name in `SCHEDULES`.
      peak: the rate at the end of warmup.
      warmup_steps: updates of warmup.
      total_steps: updates in all; cosine and polynomial decays reach 0 there.
      boundaries: for milestones: the updates, counted from the start of training, from which on the rate is multiplied
        by the given factor.
      cycle_steps: for cycles: updates from one peak to the next; the rate falls to a sixth between them.

    Returns:
      An Optax schedule: step -> rate.

    Raises:
      UsageError: there is no such schedule, or warmup takes the whole run.

    Example:
      >>> schedule = make("constant", 1.0, warmup_steps=4, total_steps=10)
      >>> [float(schedule(i)) for i in (0, 1, 3, 9)]
      [0.25, 0.5, 1.0, 1.0]

    Source: Goyal et al., arXiv 1706.02677, 2017, section 2.2 (warmup); those of the decays are named beside them.
    """
    chosen = SCHEDULES[name]
    if warmup_steps >= total_steps:
        raise UsageError(
            f"the warmup of {warmup_steps} updates is not shorter than the training of {total_steps}; "
            "lower --warmup_epochs or train longer"
        )
    decay = chosen.decay(peak, Timing(total_steps - warmup_steps, warmup_steps, boundaries or {}, cycle_steps))
    if warmup_steps == 0:
        return decay
    warmup = optax.linear_schedule(peak / warmup_steps, peak, max(warmup_steps - 1, 1))
    return optax.join_schedules([warmup, decay], [warmup_steps])


def parse_epochs(text: str | None) -> tuple[float, ...] | None:
    """Returns the epochs of `--step_epochs`, in order.

    Raises:
      UsageError: they are not rising numbers.

    Example:
      >>> parse_epochs("30,60,80")
      (30.0, 60.0, 80.0)
    """
    if text is None:
        return None
    try:
        epochs = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--step_epochs must be numbers such as '30,60,80', not {_limits.shown(text)}") from error
    if any(not 0 < epoch <= MAX_EPOCHS for epoch in epochs) or list(epochs) != sorted(set(epochs)):
        raise UsageError(f"--step_epochs must be positive, at most {MAX_EPOCHS:g} and rise, not {_limits.shown(text)}")
    return epochs
