"""Evaluating what a run left on disk, on its own domain and on others."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from flax import linen as nn
from jax.sharding import Mesh

from experiments import _users
from experiments import data as datasets
from experiments._errors import UsageError, unknown_name
from experiments.data.domains import DOMAINS, to_domain
from experiments.records.runs import Result
from experiments.training.config.stored import read_config
from experiments.training.evaluation import evaluator
from experiments.training.evaluation.population import population_statistics
from experiments.training.machine import devices
from experiments.training.state import Recipe, TrainState
from experiments.training.step import single
from experiments.training.step.parts import make_model, make_optimizer, make_recipe
from experiments.training.storage.checkpoints import Checkpoints

RECALIBRATIONS = ("pooled", "layerwise")
OWN_DOMAIN = "its own"


class Restored(NamedTuple):
    """A checkpoint in memory, and what it is evaluated with.

    Attributes:
      state: of the training.
      model: of the run.
      recipe: how images become numbers.
      data: whose test splits are evaluated on.
      mesh: the devices.
      span: of the norms.
    """

    state: TrainState
    model: nn.Module
    recipe: Recipe
    data: datasets.Dataset
    mesh: Mesh
    span: int | None


class Evaluated(NamedTuple):
    """A split of a domain.

    Attributes:
      domain: its name.
      split: its name.
      before: the result by the running statistics of training.
      after: the result by statistics of the domain; None: not recalibrated.
    """

    domain: str
    split: str
    before: Result
    after: Result | None


def restore(
    workdir: str | Path,
    *,
    step: int | None = None,
    dataset: str | None = None,
    model: str | None = None,
    data_dir: str | None = None,
    num_devices: int | None = None,
) -> Restored:
    """Reads a checkpoint of a run. Images are standardised by the pixel statistics of the data it was trained on.

    A folder may come from somebody else, so the functions that it names, "package.module:function", are not run: those
    that are given here are.

    Args:
      workdir: the folder of the run.
      step: whose checkpoint; None: the newest.
      dataset: whose test splits; None: those of the run's data set.
      model: in place of the name that the folder holds, which may be the same; None: that one.
      data_dir: the TFDS data directory; None: the run's own.
      num_devices: how many to use; None: all accelerators, or one a core of a CPU.

    Raises:
      UsageError: it is no folder of a run, has no such checkpoint, the data set's images do not fit the model, or a
        function would have to be run that is not given here.
    """
    workdir = Path(workdir)
    config, facts, run = read_config(workdir)
    name = _allowed(workdir, "dataset", dataset, config.dataset)
    config = dataclasses.replace(config, model=_allowed(workdir, "model", model, config.model))
    chosen = devices.set_up(num_devices)
    loaded = datasets.load(name, data_dir or config.data_dir, image_size=config.image_size)
    shape, num_classes = facts.image_shape, facts.num_classes
    if loaded.train.image_shape != shape or loaded.num_classes != num_classes:
        raise UsageError(
            f"the model takes images of shape {shape} in {num_classes} classes; dataset {name!r} has "
            f"{loaded.train.image_shape} in {loaded.num_classes}"
        )
    mesh = devices.make_mesh(chosen)
    built = make_model(config, num_classes)
    optimizer = make_optimizer(config, optax.constant_schedule(0.0))
    like = jax.device_put(single.init_state(built, optimizer, shape, config.seed), devices.replicated(mesh))
    with Checkpoints(workdir, read_only=True, run=run) as checkpoints:
        state = checkpoints.restore(like, step)
    if state is None:
        raise UsageError(f"{workdir} has no checkpoint yet")
    recipe = make_recipe(config, num_classes, (facts.pixel_mean, facts.pixel_std))
    return Restored(state, built, recipe, loaded, mesh, config.span)


def _allowed(workdir: Path, flag: str, given: str | None, stored: str) -> str:
    """What is given, or else the stored name, unless that is one of a function, which would be run."""
    if given is None and _users.is_users_own(stored):
        raise UsageError(
            f"the checkpoint in {workdir} asks to run code, the function {stored}, which is not done on its word: a "
            f"checkpoint may come from somebody else. If you trust that function, give --{flag}={stored}"
        )
    return given or stored


def evaluate_checkpoint(
    workdir: str | Path, domains: Sequence[str] = (), recalibration: str | None = None, **options: Any
) -> tuple[int, list[Evaluated]]:
    """Evaluates a checkpoint on the test splits, as they are or as other domains show them.

    And again with the domain's statistics in its norms, if that is wanted: those of 10,000 training images as the
    domain shows them. No label and no test image has a part in it.

    Args:
      workdir: the folder of the run.
      domains: of `data.domains`, or "all"; none: the data as they are.
      recalibration: "pooled" or "layerwise", the modes of `batchnorm_jax.recalibrate`; None: none.
      **options: those of `restore`.

    Returns:
      The step, and a row for each domain and split.

    Raises:
      UsageError: there is no such domain or recalibration, images for another domain are streamed, the model has no
        running statistics to replace; and what `restore` raises.

    Source: Li et al., "Revisiting Batch Normalization For Practical Domain Adaptation", arXiv 1603.04779, 2016.
    """
    if recalibration not in (None, *RECALIBRATIONS):
        raise unknown_name("recalibrate", recalibration, RECALIBRATIONS)
    for domain in domains:
        if domain not in (OWN_DOMAIN, *DOMAINS.names, "all"):
            raise unknown_name("domain", domain, (*DOMAINS.names, "all"))
    restored = restore(workdir, **options)
    if recalibration and not jax.tree.leaves(restored.state.batch_stats):
        raise UsageError("--recalibrate is for models with running statistics, and this one has none")
    step = single.eval_step(restored.model, restored.mesh, restored.recipe)
    rows = []
    for domain in (OWN_DOMAIN, *DOMAINS.names) if "all" in domains else domains or (OWN_DOMAIN,):
        test = {name: _moved(domain, split) for name, split in restored.data.test.items()}
        evaluate = evaluator.Evaluator(step, test, restored.mesh)
        before, after = evaluate(restored.state), dict.fromkeys(test)
        if recalibration:
            statistics = population_statistics(
                restored.model,
                restored.recipe,
                restored.mesh,
                restored.state,
                restored.data.train,
                mode=recalibration,
                span=restored.span,
                domain=None if domain == OWN_DOMAIN else domain,
            )
            after = evaluate(restored.state._replace(batch_stats=statistics))
        rows += [Evaluated(domain, name, before[name], after[name]) for name in test]
    return int(restored.state.step), rows


def _moved(domain: str, split: datasets.Split) -> datasets.Split:
    if domain == OWN_DOMAIN:
        return split
    if not isinstance(split, datasets.Examples):
        raise UsageError("--domain needs the images in memory, and these are streamed")
    return to_domain(domain, split)
