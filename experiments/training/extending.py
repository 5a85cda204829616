"""Going on with a run that was made for fewer updates, where nothing that was done would have been done otherwise."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments._errors import UsageError
from experiments.training import optimizers
from experiments.training import plan as plans
from experiments.training.config import AUTO, TrainConfig
from experiments.training.run import make_descent

LENGTHS = ("epochs", "steps")


def why_not(there: TrainConfig, here: TrainConfig, examples: int, devices: int) -> str | None:
    """Why a run cannot be made longer, in a sentence; None: it can, since what was done is what would have been done.

    Args:
      there: the configuration that it was made with.
      here: another one, which differs from that in `LENGTHS` alone.
      examples: of the training set.
      devices: of all processes.
    """
    try:
        old, new = (plans.make(config, examples, devices) for config in (there, here))
        if new.total_steps <= old.total_steps:
            return f"It was to make {old.total_steps} updates, and a run goes on to more, not to {new.total_steps}"
        if here.norm == "renorm":
            return "The limits of --norm=renorm follow the number of updates in all, so it would have been another run"
        if here.batch_ramp == AUTO:
            return "--batch_ramp=auto decides nothing at the end of a run, so it would have been another run"
        if here.optimizer == optimizers.FULL_BATCH:
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


def identity(config: TrainConfig) -> dict[str, Any]:
    """What a checkpoint is kept with: all that its numbers depend on, but for how long the run was to be."""
    return {name: value for name, value in config.identity().items() if name not in LENGTHS}


def check_checkpoint(config: TrainConfig, notes: dict[str, Any], step: int) -> None:
    """Refuses a checkpoint of another run, such as one of another seed that was moved here.

    Raises:
      UsageError: it was kept with another configuration; the message names what differs.
    """
    kept, here = notes.get("identity"), identity(config)
    # Those of earlier versions do not say.
    if kept is None:
        return
    differs = [f"--{name}: {kept[name]} there, {here[name]} here" for name in here if kept.get(name) != here[name]]
    if differs:
        raise UsageError(
            f"the checkpoint of step {step} is one of another run ({'; '.join(differs)}); move it away, or give "
            "another --workdir"
        )
