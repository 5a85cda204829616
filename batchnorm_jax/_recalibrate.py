"""Exact population statistics over a data set, which also adapt a model to another domain."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from batchnorm_jax._checks import check_choice
from batchnorm_jax._moments import Moments, pool
from batchnorm_jax.typing import RecalibrationMode, VariableDict, Variables

# Moments in the places of the dicts {mean, var} of "batch_stats", nested by module as they are.
MomentsTree = Moments | Mapping[str, Any]


class Mode(NamedTuple):
    """One mode of `recalibrate`.

    Attributes:
      by_running: the layers normalise by the statistics in the variables, which takes several passes.
    """

    by_running: bool


MODES: dict[RecalibrationMode, Mode] = {"pooled": Mode(by_running=False), "layerwise": Mode(by_running=True)}


def recalibrate(
    moments_fn: Callable[[Any, Any], MomentsTree],
    variables: Variables,
    batches: Iterable[Any],
    *,
    mode: RecalibrationMode = "pooled",
) -> VariableDict:
    """Replaces running statistics by the exact moments of a data set.

    For each layer, with n_b, mean_b and var_b the count and moments of batch b and N = sum n_b:

        mean = sum n_b mean_b / N,   var = sum n_b (var_b + |mean_b - mean|^2) / N

    The moments of a layer depend on the output of the layers below it, and so on the mode:

    - "pooled", one pass: `moments_fn` normalises by each batch's own statistics, as training does. The result depends
      somewhat on how the data are cut into batches, as training does ("precise BN").
    - "layerwise": `moments_fn` normalises by the statistics in `variables`. After one pass the first layer's are final,
      after two the second's; it stops when a pass changes nothing, and makes at most as many passes as there are
      layers. The result does not depend on how the data are cut, and is what evaluation uses. (A norm that is called
      several times on input that depends on its own output never settles, and gets that many passes.)

    With batches from another domain it adapts the model to that domain, without labels ("AdaBN").

    Args:
      moments_fn: a function of the variables and a batch that gives the `Moments` of every layer, in the structure of
        `variables["batch_stats"]`: a nested dict with `Moments` in the places of the dicts {mean, var}. Layers that it
        leaves out keep their statistics. `batchnorm_jax.linen.moments_fn` makes it for a model. Under `shard_map` or
        `pmap` it pools over the devices; under `jit` with sharded batches JAX does so by itself.
      variables: with "batch_stats", and not committed to other devices than the batches. They are not changed.
      batches: arguments of `moments_fn`. For "layerwise" an iterable that can be read several times, such as a list. A
        batch whose arrays all have a leading axis of 0 holds no example and is left out.
      mode: the statistics that the layers normalise by, and so the number of passes.

    Returns:
      The variables with other statistics, in the dtypes of the old. A feature for which no position counts keeps its
      own.

    Raises:
      ValueError: the mode is not known, there is no batch, an array is given in place of a list of batches, the batches
        for "layerwise" can be read only once, or `moments_fn` gives moments where `batch_stats` has no {mean, var} of
        that shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from batchnorm_jax import batch_norm, recalibrate
      >>> variables = {"batch_stats": {"norm": {"mean": jnp.zeros(1), "var": jnp.ones(1)}}}
      >>> def moments_fn(variables, batch):
      ...     return {"norm": batch_norm(batch)[1]}
      >>> batches = [jnp.array([[1.0], [2.0]]), jnp.array([[6.0]])]
      >>> recalibrate(moments_fn, variables, batches)["batch_stats"]["norm"]["mean"]
      Array([3.], dtype=float32)

    Source: Wu and Johnson, "Rethinking 'Batch' in BatchNorm", arXiv 2105.07576, 2021, section 3; Li et al.,
    "Revisiting Batch Normalization For Practical Domain Adaptation", arXiv 1603.04779, 2016.
    """
    if not callable(moments_fn):
        raise ValueError(f"recalibrate: moments_fn must be a function of variables and a batch, not {moments_fn!r}")
    _check_arguments(moments_fn)
    check_variables(variables, caller="recalibrate")
    if not isinstance(batches, Iterable) or isinstance(batches, str | Mapping):
        raise ValueError(f"recalibrate: batches must be a list of batches, or another iterable, not {batches!r}")
    by_running = mode_named(mode).by_running
    if "batch_stats" not in variables:
        raise ValueError(
            f"recalibrate: the variables have no 'batch_stats', but {', '.join(map(repr, variables)) or 'nothing'}; "
            "give all variables of a model that has a batch normalization"
        )
    if (shape := getattr(batches, "shape", None)) is not None:
        raise ValueError(
            f"recalibrate: batches is one array, of shape {shape}, whose rows would be taken for batches; "
            "give a list of arrays, or [images] for one batch"
        )
    variables = dict(variables)
    if not by_running:
        found = _moments_of(moments_fn, variables, batches)
        return {**variables, "batch_stats": _replace(variables["batch_stats"], found, ())}
    if iter(batches) is batches:
        raise ValueError(
            "recalibrate: mode='layerwise' goes over the batches several times, and these can be gone over only once; "
            "give a list, or an object whose __iter__ starts anew"
        )
    passes = 1
    while True:
        found = _moments_of(moments_fn, variables, batches)
        new = _replace(variables["batch_stats"], found, ())
        same = all(
            bool(jnp.array_equal(a, b, equal_nan=True))
            for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(variables["batch_stats"]), strict=True)
        )
        variables["batch_stats"] = new
        # A stack of layers, as nn.scan makes it, has one count per layer.
        if same or passes >= sum(moments.count.size for moments in _leaves(found)):
            return variables
        passes += 1


def mode_named(mode: RecalibrationMode) -> Mode:
    """Returns the record of a mode.

    Raises:
      ValueError: the mode is not known.
    """
    check_choice(mode, "mode", get_args(RecalibrationMode), caller="recalibrate")
    return MODES[mode]


def _check_arguments(moments_fn: Callable[..., Any]) -> None:
    """Checks that a function can be called with two arguments."""
    try:
        signature = inspect.signature(moments_fn)
    except (TypeError, ValueError):  # Some functions in C have no signature.
        return
    try:
        signature.bind(None, None)
    except TypeError:
        name = getattr(moments_fn, "__name__", type(moments_fn).__name__)
        raise ValueError(
            f"recalibrate: moments_fn is called with the variables and a batch, which {name}{signature} does not take"
        ) from None


def check_variables(variables: Any, *, caller: str, collections: bool = False) -> None:
    """Checks that the variables are a mapping; `collections`: a mapping of mappings, as in Flax."""
    if not isinstance(variables, Mapping):
        raise ValueError(
            f"{caller}: variables must be a mapping, such as model.init gives, not {type(variables).__name__}"
        )
    for name, collection in variables.items():
        if collections and not isinstance(collection, Mapping):
            raise ValueError(
                f"{caller}: variables must map collections, such as 'params', to their variables, and {name!r} is "
                f"{type(collection).__name__}; give what model.init gives"
            )


def _moments_of(moments_fn: Callable[[Any, Any], MomentsTree], variables: Variables, batches: Iterable[Any]) -> Any:
    """Returns the moments of all batches, pooled one batch after another."""
    total, empty = None, 0
    for batch in batches:
        if _has_no_examples(batch):
            empty += 1
            continue
        found = moments_fn(variables, batch)
        total = found if total is None else _pool_two(total, found)
    if total is None and empty:
        raise ValueError(f"recalibrate: no batch has an example ({empty} empty); give at least one that has")
    if total is None:
        raise ValueError("recalibrate: there are no batches; an iterator that was gone over before has none left")
    if not _leaves(total):
        raise ValueError("recalibrate: moments_fn gives no Moments; has the model a batch normalization?")
    return total


def of_batches(moments_fn: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Returns the function with an error that explains batches, for a model that fails on a tuple (images, labels)."""

    def function(variables: Any, batch: Any) -> Any:
        for leaf in jax.tree.leaves(batch):
            texts = isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind in "OSU"
            if texts or not isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float | complex):
                raise ValueError(
                    f"recalibrate: a batch holds {leaf!r}, a {type(leaf).__name__}; give arrays, with which the model "
                    "is called"
                )
        if not isinstance(batch, tuple | list):
            return moments_fn(variables, batch)
        try:
            return moments_fn(variables, batch)
        except Exception as error:
            raise ValueError(
                f"recalibrate: a batch is the first argument of the model's call, and this one is a "
                f"{type(batch).__name__} of {len(batch)}, on which the model fails ({type(error).__name__}). If these "
                "are (images, labels), give the images alone: recalibrate(..., [images for images, _ in batches])"
            ) from error

    return function


def _has_no_examples(batch: Any) -> bool:
    """Returns whether every array of the batch has a leading axis of 0."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch) if hasattr(leaf, "shape")]
    lengths = [shape[0] for shape in shapes if shape]
    return bool(lengths) and not any(lengths)


@jax.jit
def _pool_two(first: MomentsTree, second: MomentsTree) -> MomentsTree:
    """Pools the moments of two batches, layer by layer."""
    return jax.tree.map(
        lambda a, b: pool(jax.tree.map(lambda *both: jnp.stack(both), a, b)), first, second, is_leaf=_is_moments
    )


def _is_moments(value: Any) -> bool:
    return isinstance(value, Moments)


def _leaves(tree: MomentsTree) -> list[Moments]:
    """Returns the moments of every layer."""
    return [leaf for leaf in jax.tree.leaves(tree, is_leaf=_is_moments) if _is_moments(leaf)]


def _replace(stats: Any, found: Any, path: tuple[str, ...]) -> Any:
    """Returns the statistics with the moments that were found in the places of {mean, var}."""
    where = "/".join(("batch_stats", *path))
    if not isinstance(stats, Mapping) or not isinstance(found, Moments | Mapping):
        raise ValueError(
            f"recalibrate: at {where} moments_fn gives {type(found).__name__}, where Moments or a dict fit"
        )
    if not isinstance(found, Moments):
        unknown = [name for name in found if name not in stats]
        if unknown:
            raise ValueError(
                f"recalibrate: moments_fn gives {unknown[0]!r} at {where}, which has {', '.join(map(str, stats))}"
            )
        return {
            name: _replace(old, found[name], (*path, str(name))) if name in found else old
            for name, old in stats.items()
        }
    shapes = {name: jnp.shape(stats[name]) if name in stats else None for name in ("mean", "var")}
    if any(shape != jnp.shape(found.mean) for shape in shapes.values()):
        raise ValueError(
            f"recalibrate: at {where} moments_fn gives Moments of shape {jnp.shape(found.mean)}, and the statistics "
            f"there are of shape {shapes['mean']} (mean) and {shapes['var']} (var)"
        )
    counts = jnp.broadcast_to(_over_features(found.count, found.var), found.var.shape) > 0
    new = {name: jnp.where(counts, getattr(found, name), stats[name]) for name in shapes}
    # A mean becomes complex with the first complex batch, as in Flax.
    return {
        **stats,
        **{n: a if jnp.iscomplexobj(a) else a.astype(stats[n].dtype) for n, a in new.items()},
    }


def _over_features(count: jax.Array, var: jax.Array) -> jax.Array:
    """Returns the count, which has the axes of a stack of layers, with axes for the features that it lacks."""
    return jnp.expand_dims(count, tuple(range(count.ndim, var.ndim)))
