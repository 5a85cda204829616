"""Extension of a run to more updates, which is possible if the longer run would have begun with the same updates."""

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import UsageError
from .config import plan as plans
from .config.options import AUTO, TrainConfig
from .recipe.norms import NORMS
from .recipe.optimizers import OPTIMIZERS
from .step.parts import make_schedule


def why_not(there: TrainConfig, here: TrainConfig, examples: int, devices: int) -> str | None:
    """Returns a sentence that says why a run cannot be extended; None: it can be extended.

    A run can be extended if the updates that it made are those that the longer run would have made.

    Args:
      there: the configuration that the run was made with.
      here: the configuration of the longer run, which differs only in the options of `stored.LENGTHS`.
      examples: the number of training examples.
      devices: the number of devices of all processes.
    """
    try:
        old, new = (plans.make(config, examples, devices) for config in (there, here))
        if new.total_steps <= old.total_steps:
            return f"It was made for {old.total_steps} updates: it can be extended to more, not to {new.total_steps}"
        if NORMS[here.norm].follows_run_length:
            which = f"The limits of --norm={here.norm}"
            return f"{which} follow the total number of updates, so a longer run differs throughout"
        if here.batch_ramp == AUTO:
            return "--batch_ramp=auto makes no decision at the end of a run, where a longer run would have made one"
        if OPTIMIZERS[here.optimizer].full_batch:
            return None
        steps = jnp.arange(old.total_steps)
        rates = [
            np.asarray(jax.vmap(make_schedule(config, plan)(config.peak_learning_rate))(steps))
            for config, plan in ((there, old), (here, new))
        ]
    except UsageError as error:
        return str(error)
    batches = [[p for p in plan.phases if p.first_step < old.total_steps] for plan in (old, new)]
    if np.array_equal(rates[0], rates[1]) and batches[0] == batches[1]:
        return None
    return (
        f"The rates or batches of --schedule={here.schedule} follow the length of the run, so its first "
        f"{old.total_steps} updates would have differed; runs with --schedule=constant, or step with --step_epochs, "
        "can be extended"
    )
