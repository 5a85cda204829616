"""Population statistics over a data set, and so adaptation to another domain."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from batchnorm_jax._moments import Moments, pool

MODES = ("pooled", "layerwise")


def recalibrate(
    moments_fn: Callable[[Any, Any], Any],
    variables: Mapping[str, Any],
    batches: Iterable[Any],
    *,
    mode: str = "pooled",
) -> dict[str, Any]:
    """Replaces running statistics by the exact moments of a data set.

    For each layer, with n_b, mean_b and var_b the count and moments of batch b and N = sum n_b:

        mean = sum n_b mean_b / N,   var = sum n_b (var_b + |mean_b - mean|^2) / N

    What a layer's moments are depends on what the layers below give it:

    - "pooled", one pass: `moments_fn` normalises by each batch's own statistics, as training does. What comes out
      depends somewhat on how the data are cut into batches, as training does ("precise BN").
    - "layerwise": `moments_fn` normalises by the statistics in `variables`. After one pass the first layer's are final,
      after two the second's; it goes on until a pass changes nothing, at most as many passes as there are layers. The
      result does not depend on how the data are cut, and is what evaluation sees. (A norm that is called several times
      on what depends on itself has no such end, and gets that many passes.)

    With batches from another domain it adapts the model to that domain, without labels ("AdaBN").

    Args:
      moments_fn: of the variables and a batch, the `Moments` of every layer, in the structure of
        `variables["batch_stats"]`: a nested dict with `Moments` in the places of the dicts {mean, var}. Layers that it
        leaves out keep their statistics. `batchnorm_jax.linen.moments_fn` makes it for a model. Under `shard_map` or
        `pmap` it pools over the devices; under `jit` with sharded batches it does so by itself.
      variables: with "batch_stats", not bound to other devices than the batches. They are not changed.
      batches: what `moments_fn` takes. For "layerwise" something that can be gone over again, such as a list. A batch
        whose arrays all have a leading axis of 0 holds no example and is left out.
      mode: "pooled" or "layerwise".

    Returns:
      The variables with other statistics, in the dtypes of the old. A feature for which no position counts keeps its
      own.

    Raises:
      ValueError: the mode is not known, there is no batch, an array is given in place of a list of batches, or for
        "layerwise" batches that can be gone over only once, or `moments_fn` gives moments where `batch_stats` has no
        {mean, var} of that shape.

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
    if not isinstance(mode, str) or mode not in MODES:
        raise ValueError(f"recalibrate: mode={mode!r} is not known; give one of {', '.join(map(repr, MODES))}")
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
    if mode == "pooled":
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
        # A stack of layers, as nn.scan makes it, has as many counts.
        if same or passes >= sum(moments.count.size for moments in _leaves(found)):
            return variables
        passes += 1


def _check_arguments(moments_fn: Callable[..., Any]) -> None:
    """Raises a ValueError for a function that cannot be called with two arguments."""
    try:
        signature = inspect.signature(moments_fn)
    except (TypeError, ValueError):  # Of some functions in C it is not known.
        return
    try:
        signature.bind(None, None)
    except TypeError:
        name = getattr(moments_fn, "__name__", type(moments_fn).__name__)
        raise ValueError(
            f"recalibrate: moments_fn is called with the variables and a batch, which {name}{signature} does not take"
        ) from None


def check_variables(variables: Any, *, caller: str, collections: bool = False) -> None:
    """Raises a ValueError for variables that are no mapping; `collections`: of mappings, as Flax has them."""
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


def _moments_of(moments_fn, variables, batches) -> Any:
    """The moments of all batches, pooled one batch after another."""
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
    """Returns the same function, which says what a batch is where a model fails on a tuple, as (images, labels)."""

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
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch) if hasattr(leaf, "shape")]
    lengths = [shape[0] for shape in shapes if shape]
    return bool(lengths) and not any(lengths)


@jax.jit
def _pool_two(first: Any, second: Any) -> Any:
    return jax.tree.map(
        lambda a, b: pool(jax.tree.map(lambda *both: jnp.stack(both), a, b)), first, second, is_leaf=_is_moments
    )


def _is_moments(value: Any) -> bool:
    return isinstance(value, Moments)


def _leaves(tree: Any) -> list[Moments]:
    return [leaf for leaf in jax.tree.leaves(tree, is_leaf=_is_moments) if _is_moments(leaf)]


def _replace(stats: Any, found: Any, path: tuple[str, ...]) -> Any:
    """The statistics with the moments that were found in the place of {mean, var}."""
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
    """The count with axes for the features that it lacks; it has those of a stack of layers."""
    return jnp.expand_dims(count, tuple(range(count.ndim, var.ndim)))
