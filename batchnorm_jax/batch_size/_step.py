"""Loss, gradient and noise in one pass: `jax.value_and_grad` with an estimate of the gradient noise beside it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from batchnorm_jax._collectives import axis_size, check_axis_name, vary_like
from batchnorm_jax._compat import varying_axes
from batchnorm_jax.batch_size._noise import NoiseEstimate, check_when, noise_from_norms
from batchnorm_jax.batch_size._squares import squared_norm
from batchnorm_jax.typing import AxisName


class _Sums(NamedTuple):
    """Sums over parts of a batch: the loss, the gradient, and the gradient's squared norm."""

    value: Any
    gradient: Any
    square: Any


def value_and_grad_with_noise(
    loss_fn: Callable[..., Any],
    *,
    axis_name: AxisName | None = None,
    shards: int = 1,
    micro_batches: int = 1,
    has_aux: bool = False,
) -> Callable[..., tuple[Any, Any, NoiseEstimate]]:
    """Returns a `jax.value_and_grad` for a batch that is cut into parts, which estimates the gradient noise as well.

    The noise follows from how far the gradients of the parts lie apart. A training step computes these gradients
    anyway: each device its own, and gradient accumulation one for each micro-batch. What is added is the squared norm
    of each, and one scalar in the collective that averages the gradients.

    With K parts in all, the product of `shards`, `micro_batches` and the participants on `axis_name`, the loss and the
    gradient are the means over the parts, as a batch without parts would give them.

    The parts must be independent: a batch norm that pools over `axis_name`, or over the whole batch under `jit`, makes
    them depend on each other, and the estimate is then biased. Give the norm spans inside a part.

    Args:
      loss_fn: (params, batch, *args) -> the mean loss of the batch, or (loss, aux) with `has_aux`. It must not average
        over devices itself.
      axis_name: the name or names of the mapped axes of `shard_map` (checked or not), `pmap` or `vmap`, over whose
        participants the batch is divided. None: the batch is whole here, as under `jit`.
      shards: parts that are computed side by side (`vmap`). For `jit` with a batch that is sharded over devices: give
        the number of devices, and each computes its own part. Their gradients are in memory at once, one per shard.
      micro_batches: parts that are computed one after the other (`scan`), with one gradient in memory: gradient
        accumulation. Of four, the first holds examples 0, 4, 8 and so on: some of every device, under `jit`. With both,
        each micro-batch is cut into shards.
      has_aux: whether `loss_fn` returns more than the loss.

    Returns:
      A function (params, batch, *args, weights=None, when=True) -> (loss, gradient, estimate), or ((loss, aux),
      gradient, estimate). `batch` is a tree of arrays whose first axis counts the examples on this participant, and is
      a multiple of `shards` times `micro_batches`; `args` go to every part as they are. `weights` are those of
      `squared_norm`: the noise as an optimizer sees it (see `adam_weights`). `aux` is that of this participant; with
      several parts here its leaves have a first axis of micro-batches, if there are several, then one of shards, if
      there are several. The others are the same on all participants. The estimate costs digits as `noise_from_norms`
      says; take its running average (`update_noise`).

      `when` is whether the noise is measured in this step: a bool, which is static, or a boolean scalar that is traced
      and the same on all participants, which puts a branch into the step. Where it is not measured, no squared norm is
      computed, and the estimate is nan: give `update_noise` the same `when`.

    Raises:
      ValueError: there are fewer than two parts in all, a number of parts is less than 1 or does not divide the
        examples, leaves of the batch differ in the number of examples, or `when` is not a boolean scalar. Raised when
        the step is traced.

    Example:
      >>> grad_fn = value_and_grad_with_noise(lambda w, x: jnp.mean((w - x) ** 2) / 2, micro_batches=2)
      >>> loss, gradient, estimate = jax.jit(grad_fn)(jnp.float32(0.0), jnp.array([-1.0, -3.0, -1.0, -3.0]))
      >>> loss.item(), gradient.item(), estimate.gradient_norm2.item(), estimate.trace.item()
      (2.5, 2.0, 3.0, 4.0)

    Source: McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162, 2018, appendix A.
    """
    caller = "value_and_grad_with_noise"
    for name, parts in {"shards": shards, "micro_batches": micro_batches}.items():
        if isinstance(parts, bool) or not isinstance(parts, int) or parts < 1:
            raise ValueError(f"{caller}: {name} must be an integer, at least 1, not {parts!r}")
    if axis_name is not None:
        check_axis_name(axis_name, caller=caller)
    here = shards * micro_batches

    def of_batch(
        params: Any, batch: Any, *args: Any, weights: Any = None, when: Any = True
    ) -> tuple[Any, Any, NoiseEstimate]:
        check_when(when, caller)
        examples = _examples(batch, here, caller)
        parts = here * axis_size(axis_name, caller=caller, what="loss and gradient are those")
        if parts < 2:
            raise ValueError(
                f"{caller}: the noise follows from the difference between parts of the batch, and there is one part. "
                "Give axis_name, or shards=2 or more, or micro_batches=2 or more"
            )
        # Otherwise a checked `shard_map` would add up the gradients of all participants.
        here_alone = None if axis_name is None else lax.axis_index(axis_name)
        local = jax.tree.map(lambda a: vary_like(jnp.asarray(a), here_alone), params)

        def of_part(part: Any) -> tuple[_Sums, Any]:
            out, gradient = jax.value_and_grad(loss_fn, has_aux=has_aux)(local, part, *args)
            value, aux = out if has_aux else (out, None)
            return _Sums(value, gradient, _square_of(gradient, weights, when)), aux

        def of_shards(part: Any) -> tuple[_Sums, Any]:
            if shards == 1:
                return of_part(part)
            sums, aux = jax.vmap(of_part)(_in_shards(part, shards))
            return jax.tree.map(lambda a: jnp.sum(a, axis=0), sums), aux

        if micro_batches == 1:
            sums, aux = of_shards(batch)
        else:
            sums, aux = _in_turn(of_shards, _in_micro_batches(batch, micro_batches))
        gradient = jax.tree.map(lambda a: a / here, sums.gradient)
        # One operand for both, where a training step has one for its loss.
        scalars = jnp.stack([sums.value.astype(sums.square.dtype), sums.square]) / here
        if axis_name is not None:
            gradient, scalars = lax.pmean((gradient, scalars), axis_name)
        value = scalars[0].astype(sums.value.dtype)
        estimate = noise_from_norms(scalars[1], _square_of(gradient, weights, when), parts, examples // here)
        return (value, aux) if has_aux else value, gradient, estimate

    return of_batch


def _square_of(gradient: Any, weights: Any, when: Any) -> jax.Array:
    """Returns the squared norm, or nan where it is not to be computed."""
    if when is True:
        return squared_norm(gradient, weights)
    missing = partial(_full, jax.eval_shape(squared_norm, gradient, weights), jnp.nan)
    # What is known beforehand needs no branch, which costs something of its own.
    return missing() if when is False else lax.cond(when, squared_norm, lambda *_: missing(), gradient, weights)


def _in_turn(function: Callable[[Any], tuple[_Sums, Any]], batches: Any) -> tuple[_Sums, Any]:
    """Returns the sum of the first results over the batches, and the second ones stacked."""
    shapes, _ = jax.eval_shape(function, jax.tree.map(lambda a: a[0], batches))

    def add(sums: _Sums, batch: Any) -> tuple[_Sums, Any]:
        more, aux = function(batch)
        return jax.tree.map(jnp.add, sums, more), aux

    return lax.scan(add, jax.tree.map(lambda shape: _full(shape, 0), shapes), batches)


def _full(shape: jax.ShapeDtypeStruct, value: float) -> jax.Array:
    """Returns an array of one value that varies over the same manual axes, as loops in a checked `shard_map` ask."""
    full, axes = jnp.full(shape.shape, value, shape.dtype), tuple(varying_axes(shape))
    return lax.pcast(full, axes, to="varying") if axes else full


def _in_shards(batch: Any, shards: int) -> Any:
    """Returns the batch with its examples in so many contiguous parts, along a new first axis."""
    return jax.tree.map(lambda a: jnp.reshape(a, (shards, a.shape[0] // shards, *a.shape[1:])), batch)


def _in_micro_batches(batch: Any, micro_batches: int) -> Any:
    """Returns the batch with its examples dealt out to so many parts in turn, along a new first axis.

    Of a batch that is sharded over devices, each part then has examples on all of them, and none has to move.
    """
    return jax.tree.map(
        lambda a: jnp.moveaxis(jnp.reshape(a, (a.shape[0] // micro_batches, micro_batches, *a.shape[1:])), 1, 0), batch
    )


def _examples(batch: Any, parts: int, caller: str) -> int:
    """Returns the number of examples of a batch, which `parts` must divide."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch)]
    counts = {shape[0] if shape else None for shape in shapes}
    examples = counts.pop() if len(counts) == 1 else None
    if not examples or examples % parts:
        raise ValueError(
            f"{caller}: every leaf of the batch must have the same number of examples along its first axis, a multiple "
            f"of shards * micro_batches = {parts}; the shapes are {shapes}"
        )
    return examples
