"""One fused reduction over named axes, and which named axes a value varies over."""

from collections.abc import Hashable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

AxisName = Hashable | Sequence[Hashable]


def axis_size(axis_name: AxisName | None, *, caller: str) -> int:
    """The number of participants on `axis_name`: 1 for None, the product for several names."""
    if axis_name is None:
        return 1
    try:
        return lax.axis_size(axis_name)
    except NameError as error:
        raise ValueError(
            f"{caller}: axis_name={axis_name!r} is not bound here. Call it inside jax.pmap, jax.shard_map or jax.vmap "
            "with that axis name. Under jax.jit with sharded arrays pass axis_name=None: the statistics are "
            "those of the whole array already."
        ) from error


def fused_psum(parts: Sequence[jax.Array], axis_name: AxisName | None) -> list[jax.Array]:
    """Sums every array of `parts` over `axis_name`, with one collective for all of them.

    The arrays are sent as one vector: a psum of a tree is one all-reduce a leaf.
    """
    if axis_name is None:
        return list(parts)
    flat = lax.psum(jnp.concatenate([part.reshape(-1) for part in parts]), axis_name)
    sums, start = [], 0
    for part in parts:
        sums.append(flat[start : start + part.size].reshape(part.shape))
        start += part.size
    return sums


def vary_like(value: jax.Array, *references: jax.Array | None) -> jax.Array:
    """Marks `value` as varying over every manual axis that some of `references` varies over.

    JAX does this by itself where a replicated value meets a varying one, once for each use, and each of
    these becomes a psum in the backward pass. Doing it here, on a stacked value, leaves one psum.
    Outside of `shard_map(check_vma=True)` nothing varies and nothing happens.
    """
    missing = frozenset().union(*(_varying(r) for r in references if r is not None)) - _varying(value)
    return lax.pcast(value, tuple(missing), to="varying") if missing else value


def _varying(value: jax.Array) -> frozenset:
    return jax.typeof(value).manual_axis_type.varying
