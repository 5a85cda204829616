"""Decides whether a finished run can be made longer: only if the longer run would have begun with the same updates."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments._errors import UsageError
from experiments.training.config import plan as plans
from experiments.training.config.options import AUTO, TrainConfig
from experiments.training.recipe.norms import NORMS
from experiments.training.recipe.optimizers import OPTIMIZERS
from experiments.training.step.parts import make_descent


def why_not(there: TrainConfig, here: TrainConfig, examples: int, devices: int) -> str | None:
    """Returns why a run cannot be made longer, in a sentence; None: it can.

    Args:
      there: the configuration of the run.
      here: a configuration that differs from it only in `stored.LENGTHS`.
      examples: the number of training examples.
      devices: the number of devices of all processes.
    """
    try:
        old, new = (plans.make(config, examples, devices) for config in (there, here))
        if new.total_steps <= old.total_steps:
            return f"It was to make {old.total_steps} updates, and a run goes on to more, not to {new.total_steps}"
        if NORMS[here.norm].follows_run_length:
            which = f"The limits of --norm={here.norm}"
            return f"{which} follow the number of updates in all, so it would have been another run"
        if here.batch_ramp == AUTO:
            return "--batch_ramp=auto decides nothing at the end of a run, so it would have been another run"
        if OPTIMIZERS[here.optimizer].full_batch:
            return None
        steps = jnp.arange(old.total_steps)
        rates = [
            np.asarray(jax.vmap(make_descent(config, plan).schedule(config.peak_learning_rate))(steps))
            for config, plan in ((there, old), (here, new))
        ]
    except UsageError as error:
        return str(error)
    batches = [[p for p in plan.phases if p.first_step < old.total_steps] for plan in (old, new)]
    if np.array_equal(rates[0], rates[1]) and batches[0] == batches[1]:
        return None
    return (
        f"The rates or batches of --schedule={here.schedule} follow the length of the run, so the first "
        f"{old.total_steps} updates would have been others; --schedule=constant, or step with --step_epochs, can go on"
    )
