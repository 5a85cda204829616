"""Evaluation of a stored checkpoint, on the domain that it was trained on and on others."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from flax import linen as nn
from jax.sharding import Mesh

from ... import _users
from ... import data as datasets
from ..._errors import UsageError, unknown_name
from ...data.domains import DOMAINS, to_domain
from ...records.runs import DataFacts, Result
from ..config.options import TrainConfig
from ..config.stored import read_config
from ..machine import devices
from ..state import Recipe, TrainState
from ..step import single
from ..step.parts import make_model, make_optimizer, make_recipe
from ..storage.checkpoints import Checkpoints
from . import evaluator
from .averaged import evaluated
from .population import population

RECALIBRATIONS = ("pooled", "layerwise")
OWN_DOMAIN = "its own"


class Restored(NamedTuple):
    """A checkpoint in memory, with everything needed to evaluate it.

    Attributes:
      state: the training state; of a run that evaluates an average of its weights, with that average and statistics of
        training images for it.
      model: the model of the run.
      recipe: settings of the forward pass, which say how images are standardised.
      data: the data set whose test splits are evaluated.
      mesh: the devices.
      span: examples that the norms normalise together; None: the whole batch.
    """

    state: TrainState
    model: nn.Module
    recipe: Recipe
    data: datasets.Dataset
    mesh: Mesh
    span: int | None


class Evaluated(NamedTuple):
    """The evaluation of one split in one domain.

    Attributes:
      domain: the name of the domain.
      split: the name of the split.
      before: the result with the running statistics of training.
      after: the result with statistics of the domain; None: the model was not recalibrated.
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
    """Reads a checkpoint of a run, together with the data set to evaluate it on.

    Images are standardised by the pixel statistics of the data that the run was trained on, not of `dataset`.

    A folder may come from somebody else, so a function that only the folder names ("package.module:function") is
    never run; a function that the caller names in `dataset` or `model` is.

    Args:
      workdir: the folder of the run.
      step: the step of the checkpoint; None: the newest checkpoint.
      dataset: the data set whose test splits are evaluated; None: that of the run.
      model: the model, as a name or a function; it may repeat the one that the folder names. None: that of the run.
      data_dir: the TFDS data directory; None: that of the run.
      num_devices: the number of devices to use; None: all accelerators, or on a CPU one device per core.

    Raises:
      UsageError: `workdir` is not the folder of a run or has no such checkpoint, the images of the data set do not fit
        the model, or the folder names a function that the caller did not name.
    """
    workdir = Path(workdir)
    config, facts, run = read_config(workdir)
    if not isinstance(facts, DataFacts):
        raise UsageError(
            f"{workdir} holds a run of the problem {config.problem}, which has no data set and no model to evaluate; "
            "its results are in its report"
        )
    name = _allowed(workdir, "dataset", dataset, config.dataset)
    config = dataclasses.replace(config, model=_allowed(workdir, "model", model, config.model))
    chosen = devices.set_up(num_devices)
    loaded = datasets.load(name, data_dir or config.data_dir, image_size=config.image_size)
    shape, num_classes = facts.image_shape, facts.num_classes
    if loaded.train.image_shape != shape or loaded.num_classes != num_classes:
        raise UsageError(
            f"the model takes images of shape {shape} in {num_classes} classes, and dataset {name!r} has images of "
            f"shape {loaded.train.image_shape} in {loaded.num_classes} classes; give a --dataset of the model's shape "
            "and classes"
        )
    mesh = devices.make_mesh(chosen)
    built = make_model(config, num_classes)
    optimizer = make_optimizer(config, optax.constant_schedule(0.0))
    like = jax.device_put(single.init_state(built, optimizer, shape, config.seed), devices.replicated(mesh))
    with Checkpoints(workdir, read_only=True, run=run) as checkpoints:
        state = checkpoints.restore(like, step)
    if state is None:
        raise UsageError(f"{workdir} has no checkpoint yet; run the training until it has saved one")
    recipe = make_recipe(config, num_classes, (facts.pixel_mean, facts.pixel_std))
    if config.evaluates_average:
        state = evaluated(config, built, recipe, mesh, _trained_on(config, name, loaded, data_dir))(state)
    return Restored(state, built, recipe, loaded, mesh, config.span)


def _trained_on(config: TrainConfig, name: str, loaded: datasets.Dataset, data_dir: str | None) -> datasets.Split:
    """Returns the examples that a run was trained on, from which the norms of its averaged weights get statistics.

    Raises:
      UsageError: only the folder names the function that makes them.
    """
    if name == config.dataset and not config.validation_examples:
        return loaded.train
    if name != config.dataset and _users.is_users_own(config.dataset):
        raise UsageError(
            "the norms of averaged weights get statistics of the images that the run was trained on, and these are "
            f"made by the function {config.dataset}, which is not run on the word of the folder alone: the checkpoint "
            f"can be evaluated with --dataset={config.dataset}, if you trust it, and with no other"
        )
    return datasets.load(
        config.dataset,
        data_dir or config.data_dir,
        image_size=config.image_size,
        validation_examples=config.validation_examples,
    ).train


def _allowed(workdir: Path, flag: str, given: str | None, stored: str) -> str:
    """Returns the given name, or the stored one if none is given.

    Raises:
      UsageError: the stored name is that of a function, which would be run on the word of the folder alone.
    """
    if given is None and _users.is_users_own(stored):
        raise UsageError(
            f"the checkpoint in {workdir} asks to run the function {stored}, and no code is run because a checkpoint "
            f"asks for it: the checkpoint may come from somebody else. If you trust that function, give "
            f"--{flag}={stored}"
        )
    return given or stored


def evaluate_checkpoint(
    workdir: str | Path, domains: Sequence[str] = (), recalibration: str | None = None, **options: Any
) -> tuple[int, list[Evaluated]]:
    """Evaluates a checkpoint on its test splits, unchanged or moved to other domains, and optionally recalibrated.

    With recalibration, each split is evaluated a second time, with the domain's own statistics in the norms: those of
    10,000 training images, moved to the domain. Neither labels nor test images are used for them.

    Args:
      workdir: the folder of the run.
      domains: names of `data.domains`, or "all"; empty: only the unchanged data.
      recalibration: "pooled" or "layerwise", the modes of `batchnorm_jax.recalibrate`; None: no recalibration.
      **options: keyword arguments of `restore`.

    Returns:
      The step of the checkpoint, and one row per domain and split.

    Raises:
      UsageError: a domain or recalibration mode does not exist, images to be moved to another domain are streamed, the
        model has no running statistics to replace, or `restore` fails.

    Source: Li et al., "Revisiting Batch Normalization For Practical Domain Adaptation", arXiv 1603.04779, 2016.
    """
    if recalibration not in (None, *RECALIBRATIONS):
        raise unknown_name("recalibrate", recalibration, RECALIBRATIONS)
    for domain in domains:
        if domain not in (OWN_DOMAIN, *DOMAINS.names, "all"):
            raise unknown_name("domain", domain, (*DOMAINS.names, "all"))
    restored = restore(workdir, **options)
    if recalibration and not jax.tree.leaves(restored.state.batch_stats):
        raise UsageError("--recalibrate needs a model with running statistics, and this one has none; leave it out")
    step = single.eval_step(restored.model, restored.mesh, restored.recipe)
    rows = []
    for domain in (OWN_DOMAIN, *DOMAINS.names) if "all" in domains else domains or (OWN_DOMAIN,):
        test = {name: _moved(domain, split) for name, split in restored.data.test.items()}
        evaluate = evaluator.Evaluator(step, test, restored.mesh)
        before, after = evaluate(restored.state), dict.fromkeys(test)
        if recalibration:
            statistics = population(
                restored.model,
                restored.recipe,
                restored.mesh,
                restored.data.train,
                mode=recalibration,
                span=restored.span,
                domain=None if domain == OWN_DOMAIN else domain,
            )
            after = evaluate(restored.state._replace(batch_stats=statistics(restored.state)))
        rows += [Evaluated(domain, name, before[name], after[name]) for name in test]
    return int(restored.state.step), rows


def _moved(domain: str, split: datasets.Split) -> datasets.Split:
    if domain == OWN_DOMAIN:
        return split
    if not isinstance(split, datasets.Examples):
        raise UsageError(
            "--domain needs the images in memory, and these are streamed; choose a data set that fits in memory"
        )
    return to_domain(domain, split)
