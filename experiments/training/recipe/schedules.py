"""The learning rate as a function of the step: linear warmup, then a decay."""

from collections.abc import Callable

import jax.numpy as jnp
import optax

from experiments import _limits
from experiments._errors import UsageError, unknown_name

# Of the whole training; Goyal et al. divide at epochs 30, 60 and 80 of 90.
STEP_FRACTIONS = (1 / 3, 2 / 3, 8 / 9)
# The least rate of a cycle, of its peak: Smith 2015 goes from 0.001 to 0.006.
CYCLE_FLOOR = 1 / 6
MOST_EPOCHS = 1e9


def _constant(peak, steps, start, boundaries, cycle):
    del steps, start, boundaries, cycle
    return optax.constant_schedule(peak)


def _step(peak, steps, start, boundaries, cycle):
    del steps, cycle
    return optax.piecewise_constant_schedule(peak, {max(at - start, 0): scale for at, scale in boundaries.items()})


def _cosine(peak, steps, start, boundaries, cycle):
    del start, boundaries, cycle
    return optax.cosine_decay_schedule(peak, steps)


def _polynomial(peak, steps, start, boundaries, cycle):
    del start, boundaries, cycle
    return optax.polynomial_schedule(peak, 0.0, power=2, transition_steps=steps)


def _cyclic(peak, steps, start, boundaries, cycle):
    del steps, start, boundaries

    def schedule(step):
        # From the peak, where warmup ends, down to the floor in half a cycle, and up again.
        phase = jnp.abs(1 - jnp.mod(step / cycle, 1.0) * 2)
        return peak * (CYCLE_FLOOR + (1 - CYCLE_FLOOR) * phase)

    return schedule


DECAYS: dict[str, Callable[..., optax.Schedule]] = {
    "constant": _constant,
    "step": _step,
    "cosine": _cosine,
    "polynomial": _polynomial,
    "cyclic": _cyclic,
}


def make(
    name: str,
    peak: float,
    *,
    warmup_steps: int,
    total_steps: int,
    boundaries: dict[int, float] | None = None,
    cycle_steps: float = 1.0,
) -> optax.Schedule:
    """A schedule that rises linearly to `peak` during warmup, an update at a time, and then decays.

    Update number i of warmup, from 0, uses peak (i + 1) / warmup_steps: no update is wasted on a rate of 0.

    Args:
      name: a key of `DECAYS`.
      peak: the rate at the end of warmup.
      warmup_steps: updates of warmup.
      total_steps: updates in all; cosine and polynomial decays reach 0 there.
      boundaries: of 'step': the updates, counted from the start of training, from which on the rate is multiplied by
        the given factor.
      cycle_steps: of 'cyclic': updates from one peak to the next; the rate falls to a sixth between them.

    Returns:
      An Optax schedule: step -> rate.

    Raises:
      UsageError: there is no such schedule, or warmup takes the whole run.

    Example:
      >>> schedule = make("constant", 1.0, warmup_steps=4, total_steps=10)
      >>> [float(schedule(i)) for i in (0, 1, 3, 9)]
      [0.25, 0.5, 1.0, 1.0]

    Source: Goyal et al., arXiv 1706.02677, 2017, section 2.2 (warmup); You et al., arXiv 1708.03888, 2017 (power 2);
    Smith, arXiv 1506.01186, 2015 (cyclic).
    """
    if name not in DECAYS:
        raise unknown_name("schedule", name, DECAYS)
    if warmup_steps >= total_steps:
        raise UsageError(
            f"the warmup of {warmup_steps} updates is not shorter than the training of {total_steps}; "
            "lower --warmup_epochs or train longer"
        )
    decay = DECAYS[name](peak, total_steps - warmup_steps, warmup_steps, boundaries or {}, cycle_steps)
    if warmup_steps == 0:
        return decay
    warmup = optax.linear_schedule(peak / warmup_steps, peak, max(warmup_steps - 1, 1))
    return optax.join_schedules([warmup, decay], [warmup_steps])


def parse_epochs(text: str | None) -> tuple[float, ...] | None:
    """The epochs of `--step_epochs`, in order.

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
    if any(not 0 < epoch <= MOST_EPOCHS for epoch in epochs) or list(epochs) != sorted(set(epochs)):
        raise UsageError(f"--step_epochs must be positive, at most {MOST_EPOCHS:g} and rise, not {_limits.shown(text)}")
    return epochs
