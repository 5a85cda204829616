"""Checks of a model that trace it in evaluation and in training, before anything is compiled."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from batchnorm_jax.linen import BatchNorm

from ... import _users, models
from ... import data as datasets
from ..._errors import UsageError
from ..config.options import TrainConfig
from ..config.preflight import Trial
from ..recipe.norms import NORMS
from ..state import Batch, TrainState

# With one image, a model that returns a single answer for the whole batch could not be told from a correct one.
TRACED_IMAGES = 2


def in_evaluation(
    config: TrainConfig, dataset: datasets.Dataset, model: nn.Module, memory: int | None
) -> tuple[Trial, Any]:
    """Traces a model in evaluation, and checks its output and its variables.

    Args:
      config: configuration of the run.
      dataset: the data set to train on.
      model: the model as it is evaluated.
      memory: memory of one device in bytes; None: unknown.

    Returns:
      The facts about the model, and its variables as shapes and dtypes without values.

    Raises:
      UsageError: the model's code fails, its output does not fit the labels, its parameters do not fit in memory, it
        has variable collections that training does not store, or --norm does not reach the norms that it builds itself.
    """
    chosen = NORMS[config.norm]
    first = dataset.train.read(np.arange(TRACED_IMAGES) % dataset.train.size)
    images = jax.ShapeDtypeStruct(first.images.shape, jnp.float32)
    positions: dict[str, int] = {}
    own_norms: list[str] = []

    def note(next_function, args, kwargs, context: nn.module.InterceptorContext):
        norm: Any = context.module
        if isinstance(norm, nn.BatchNorm | BatchNorm) and context.method_name == "__call__":
            x, path = (args[0] if args else kwargs["x"]), "/".join(norm.path)
            features = [x.shape[axis] for axis in np.atleast_1d(np.asarray(norm.axis))]
            here = int(x.size) // int(np.prod(features)) // TRACED_IMAGES
            positions[path] = min(positions.get(path, here), here)
            # A norm that a factory was given to pool over the global batch has an axis name; without one, the model
            # built it.
            alone = chosen.pools == "global" and isinstance(norm, BatchNorm) and norm.axis_name is None
            if (alone or isinstance(norm, nn.BatchNorm)) and path not in own_norms:
                own_norms.append(path)
        return next_function(*args, **kwargs)

    fixed: list[bool] = []

    def initialised(x):
        made, variables = model.init_with_output(jax.random.key(0), x, train=False)
        # Anything computed from the traced images would be a JAX tracer.
        fixed.append(isinstance(made, np.ndarray))
        return made, variables

    with _reporting(config, "its call in evaluation"), nn.intercept_methods(note):
        made, variables = jax.eval_shape(initialised, images)
    variables = nn.meta.unbox(variables)
    _check_variables(config, variables, memory)
    wanted = (*first.labels.shape, dataset.num_classes)
    if fixed[-1]:
        raise UsageError(
            f"--model={config.model} returns a NumPy array, which is the same for any images and parameters; compute "
            "the logits with jax.numpy"
        )
    if not jnp.issubdtype(getattr(made, "dtype", jnp.float32), jnp.floating):
        raise UsageError(
            f"--model={config.model} returns logits of type {made.dtype}, and the loss needs floating-point numbers; "
            "return them as float32"
        )
    if getattr(made, "shape", None) != wanted:
        others = " or ".join(f"--model={other.name}" for other in models.MODELS if other.per_pixel)
        kind = f"one class per pixel, as {others} returns" if first.labels.ndim > 1 else "one class per image"
        given = f"of shape {made.shape}" if hasattr(made, "shape") else f"in a {type(made).__name__}"
        raise UsageError(
            f"--model={config.model} returns logits {given} for {TRACED_IMAGES} images of --dataset={config.dataset}, "
            f"whose labels need an array of shape {wanted}: {kind}"
        )
    if own_norms and not chosen.reaches_own_norms:
        others = " or ".join(other.name for other in NORMS if other.reaches_own_norms)
        raise UsageError(
            f"--norm={config.norm} does not reach the norms that --model={config.model} builds itself "
            f"({_some(own_norms)}); have the model use the norm that its factory is given, or take --norm={others}"
        )
    return Trial(positions, tuple(own_norms)), variables


def in_training(
    config: TrainConfig, dataset: datasets.Dataset, variables: Any, model: nn.Module, step: Callable, optimizer: Any
) -> None:
    """Traces a user's model in evaluation with given variables, and through one training step.

    Args:
      config: configuration of the run.
      dataset: the data set to train on.
      variables: the model's variables, from `in_evaluation`.
      model: the model to train.
      step: the training step, from `single.train_step`.
      optimizer: the optimizer of that step.

    Raises:
      UsageError: the model's code fails, or a step changes the shapes or dtypes of its variables.
    """
    size = config.batch_size // config.accumulation_steps
    rest = dataset.train.size % config.batch_size
    first = dataset.train.read(np.arange(1))
    shape = first.images.shape[1:]
    images = jax.ShapeDtypeStruct((TRACED_IMAGES, *shape), jnp.float32)
    with _reporting(config, "its call in evaluation"):
        jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images)
    params = variables["params"]
    number: Any = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(number, params, variables.get("batch_stats", {}), jax.eval_shape(optimizer.init, params))
    mask = jax.ShapeDtypeStruct((size,), bool) if rest and not config.drop_remainder else None
    batch = Batch(
        jax.ShapeDtypeStruct((size, *shape), jnp.uint8),
        jax.ShapeDtypeStruct((size, *first.labels.shape[1:]), jnp.int32),
        mask,
    )
    with _reporting(config, "its training step"):
        after, _ = jax.eval_shape(step, state, batch, jax.ShapeDtypeStruct((), jnp.float32))
    for name in ("params", "batch_stats"):
        before, now = (jax.tree.map(lambda a: (a.shape, a.dtype), getattr(s, name)) for s in (state, after))
        if before != now:
            raise UsageError(
                f"--model={config.model}: a training step adds, removes or reshapes variables in {name}, which must "
                "stay as they were initialised; create all variables at initialisation, with train=False"
            )


def _reporting(config: TrainConfig, what: str) -> contextlib.AbstractContextManager:
    """Returns a context that explains an error in a user's model; built-in models keep their traceback."""
    own = _users.is_users_own(config.model)
    return _users.running("model", config.model, what) if own else contextlib.nullcontext()


def _check_variables(config: TrainConfig, variables: Any, memory: int | None) -> None:
    params = jax.tree.leaves(variables.get("params", {}))
    if not params:
        raise UsageError(f"--model={config.model} has no parameters to train; add a layer that has some")
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in params)
    if memory is not None and needed > memory:
        raise UsageError(
            f"the parameters of --model={config.model} alone need {needed / 2**30:,.1f} GiB, and the device has "
            f"{memory / 2**30:,.1f} GiB of memory; choose a smaller model"
        )
    others = sorted(name for name in variables if name not in ("params", "batch_stats"))
    if others:
        raise UsageError(
            f"--model={config.model} keeps variables in {_some(others)}, and training stores only the collections "
            "params and batch_stats; move them into one of these"
        )


def _some(names: Any, most: int = 3) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
