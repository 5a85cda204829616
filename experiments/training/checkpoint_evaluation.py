"""Evaluating what a run left on disk."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from experiments import data as datasets
from experiments._errors import UsageError
from experiments.training import devices, evaluation, steps
from experiments.training.checkpoints import Checkpoints, read_config
from experiments.training.run import make_model, make_optimizer, make_recipe


def evaluate_checkpoint(
    workdir: str | Path,
    *,
    step: int | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    num_devices: int | None = None,
) -> tuple[int, dict[str, dict[str, Any]]]:
    """Evaluates a checkpoint of a run.

    Images are standardised by the pixel statistics of the data that the run was trained on.

    Args:
      workdir: the folder of the run.
      step: whose checkpoint; None: the newest.
      dataset: whose test splits; None: those of the run's data set.
      data_dir: the TFDS data directory; None: the run's own.
      num_devices: how many to use; None: all accelerators, or one a core of a CPU.

    Returns:
      The step, and for each split its accuracy, loss and number of examples.

    Raises:
      UsageError: it is no folder of a run, has no such checkpoint, or the data set's images do not fit the model.
    """
    workdir = Path(workdir)
    config, facts = read_config(workdir)
    name = dataset or config.dataset
    chosen = devices.set_up(num_devices)
    loaded = datasets.load(name, data_dir or config.data_dir, image_size=config.image_size)
    shape = tuple(facts["image_shape"])
    if loaded.train.image_shape != shape or loaded.num_classes != facts["num_classes"]:
        raise UsageError(
            f"the model takes images of shape {shape} in {facts['num_classes']} classes; dataset {name!r} has "
            f"{loaded.train.image_shape} in {loaded.num_classes}"
        )
    mesh = devices.make_mesh(chosen)
    model = make_model(config, facts["num_classes"], config.running_momentum())
    optimizer = make_optimizer(config, optax.constant_schedule(0.0))
    like = jax.device_put(steps.init_state(model, optimizer, shape, config.seed), devices.replicated(mesh))
    with Checkpoints(workdir, read_only=True) as checkpoints:
        state = checkpoints.restore(like, step)
    if state is None:
        raise UsageError(f"{workdir} has no checkpoint yet")
    statistics = np.array(facts["pixel_mean"], np.float32), np.array(facts["pixel_std"], np.float32)
    recipe = make_recipe(config, facts["num_classes"], statistics)
    evaluate = evaluation.Evaluator(steps.eval_step(model, mesh, recipe), loaded.test, mesh)
    return int(state.step), evaluate(state)
