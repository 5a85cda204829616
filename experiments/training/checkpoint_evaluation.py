"""Evaluating what a run left on disk."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from experiments import data as datasets
from experiments import models
from experiments._errors import UsageError
from experiments.training import devices, evaluation, optimizers, steps
from experiments.training.checkpoints import Checkpoints, read_config


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
    loaded = datasets.load(name, data_dir or config.data_dir)
    shape = tuple(facts["image_shape"])
    if loaded.train.images.shape[1:] != shape or loaded.num_classes != facts["num_classes"]:
        raise UsageError(
            f"the model takes images of shape {shape} in {facts['num_classes']} classes; dataset {name!r} has "
            f"{loaded.train.images.shape[1:]} in {loaded.num_classes}"
        )
    mesh = devices.make_mesh(chosen)
    norm = steps.make_norm(config.norm, config.running_momentum)
    model = models.create(config.model, num_classes=facts["num_classes"], norm=norm)
    optimizer = optimizers.make(
        config.optimizer, optax.constant_schedule(0.0), momentum=config.momentum, weight_decay=config.weight_decay
    )
    like = jax.device_put(steps.init_state(model, optimizer, shape, config.seed), devices.replicated(mesh))
    with Checkpoints(workdir) as checkpoints:
        state = checkpoints.restore(like, step)
    if state is None:
        raise UsageError(f"{workdir} has no checkpoint yet")
    statistics = np.array(facts["pixel_mean"], np.float32), np.array(facts["pixel_std"], np.float32)
    step_function = steps.eval_step(model, mesh)
    results = {
        split: evaluation.evaluate(step_function, state, evaluation.put(examples, statistics, mesh), mesh)
        for split, examples in loaded.test.items()
    }
    return int(state.step), results
