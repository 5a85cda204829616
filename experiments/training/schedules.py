"""The learning rate as a function of the step: linear warmup, then a decay."""

import optax

from experiments._errors import UsageError, unknown_name

# After warmup: (peak, steps) -> a schedule that starts at the peak.
DECAYS = {
    "constant": lambda peak, steps: optax.constant_schedule(peak),
    "cosine": lambda peak, steps: optax.cosine_decay_schedule(peak, steps),
    "polynomial": lambda peak, steps: optax.polynomial_schedule(peak, 0.0, power=2, transition_steps=steps),
}


def make(name: str, peak: float, *, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """A schedule that rises linearly to `peak` during warmup, an update at a time, and then decays.

    Update number i of warmup, from 0, uses peak (i + 1) / warmup_steps: no update is wasted on a rate of 0.

    Args:
      name: a key of `DECAYS`.
      peak: the rate at the end of warmup.
      warmup_steps: updates of warmup.
      total_steps: updates in all; cosine and polynomial decays reach 0 there.

    Returns:
      An Optax schedule: step -> rate.

    Raises:
      UsageError: there is no such schedule, or warmup takes the whole run.

    Example:
      >>> schedule = make("constant", 1.0, warmup_steps=4, total_steps=10)
      >>> [float(schedule(i)) for i in (0, 1, 3, 9)]
      [0.25, 0.5, 1.0, 1.0]

    Source: Goyal et al., arXiv 1706.02677, 2017, section 2.2 (warmup); You et al., arXiv 1708.03888, 2017 (power 2).
    """
    if name not in DECAYS:
        raise unknown_name("schedule", name, DECAYS)
    if warmup_steps >= total_steps:
        raise UsageError(
            f"the warmup of {warmup_steps} updates is not shorter than the training of {total_steps}; "
            "lower --warmup_epochs or train longer"
        )
    decay = DECAYS[name](peak, total_steps - warmup_steps)
    if warmup_steps == 0:
        return decay
    warmup = optax.linear_schedule(peak / warmup_steps, peak, max(warmup_steps - 1, 1))
    return optax.join_schedules([warmup, decay], [warmup_steps])
