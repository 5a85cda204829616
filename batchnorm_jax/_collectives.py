"""One fused reduction over named axes and groups, and which named axes a value varies over."""

import operator
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from batchnorm_jax._compat import bound_axis_names, gather_invariant, varying_axes
from batchnorm_jax.typing import AxisName, Groups


class Pool(NamedTuple):
    """The devices that are pooled: this one alone (no axis name), all on the axes, or those of one group on the axes.

    Attributes:
      axis_name: the name or names of the axes.
      groups: disjoint groups of equal size of the participants' indices on the axes, row-major for several names.
    """

    axis_name: AxisName | None = None
    groups: Groups | None = None


def check_axis_name(axis_name: Any, *, caller: str, hint: str = "") -> None:
    """Raises a ValueError for a value that cannot name an axis: an array, a function, or a value without a hash.

    Args:
      axis_name: one name, or several.
      caller: the public call, for the message.
      hint: the end of the message.
    """
    for name in axis_name if isinstance(axis_name, tuple | list) else (axis_name,):
        if callable(name) or hasattr(name, "shape") or not isinstance(name, Hashable):
            raise ValueError(
                f"{caller}: axis_name is a {type(name).__name__}; give the name of a mapped axis, such as 'batch'{hint}"
            )


def axis_size(axis_name: AxisName | None, *, caller: str, what: str = "the statistics are those") -> int:
    """Returns the number of participants on `axis_name`: 1 for None, the product for several names.

    Args:
      axis_name: the name or names, or None.
      caller: the public call, for the message.
      what: the part of the message that says what concerns the whole array where no axis is named.
    """
    if axis_name is None:
        return 1
    try:
        return lax.axis_size(axis_name)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{caller}: axis_name={axis_name!r} must be the name of a mapped axis, or several") from error
    except NameError as error:
        raise ValueError(
            f"{caller}: axis_name={axis_name!r} is not bound here{_bound_names()}. Call it inside jax.pmap, "
            "jax.shard_map or jax.vmap with that axis name. Under jax.jit with sharded arrays pass axis_name=None: "
            f"{what} of the whole array already."
        ) from error


def _bound_names() -> str:
    """Returns the bound names, for a message."""
    known = bound_axis_names()
    return f" (bound here: {', '.join(map(repr, known))})" if known else ""


def is_bound(axis_name: AxisName | None) -> bool:
    """Returns whether the name, or every one of the names, belongs to an axis that the code is mapped over here."""
    if axis_name is None:
        return False
    try:
        lax.axis_size(axis_name)
    except NameError:
        return False
    return True


def as_groups(groups: Any, *, caller: str) -> tuple[tuple[int, ...], ...] | None:
    """Returns groups of whole numbers as tuples; `check_groups` checks them against an axis, where it is bound.

    Raises:
      ValueError: the argument is not a list of lists of whole numbers.
    """
    if groups is None:
        return None
    try:
        return tuple(tuple(operator.index(i) for i in group) for group in groups)
    except TypeError:
        raise ValueError(f"{caller}: axis_index_groups must be a list of lists of integers, not {groups!r}") from None


def check_groups(groups: Groups | None, participants: int, *, caller: str) -> tuple[tuple[int, ...], ...] | None:
    """Returns the groups as tuples.

    Raises:
      ValueError: there is no axis to group, or the groups do not split its participants evenly.
    """
    given = as_groups(groups, caller=caller)
    if given is None:
        return None
    members = sorted(i for group in given for i in group)
    if len({len(group) for group in given}) != 1 or members != list(range(participants)):
        raise ValueError(
            f"{caller}: axis_index_groups={[list(g) for g in given]} must hold each of the {participants} "
            "participants of axis_name once, in groups of equal size"
            + ("; give axis_name too" if participants == 1 else "")
        )
    return given


def pool_size(pool: Pool) -> int:
    """Returns the number of participants that are pooled with this one, itself included."""
    if pool.axis_name is None:
        return 1
    return len(pool.groups[0]) if pool.groups else lax.axis_size(pool.axis_name)


def fused_sum(parts: Sequence[jax.Array], pool: Pool) -> list[jax.Array]:
    """Sums every real array of `parts` over the pool, with one collective for all of them.

    The arrays are sent as one, because a psum of a tree is one all-reduce per leaf.
    """
    if pool.axis_name is None:
        return list(parts)
    if len({part.shape for part in parts}) == 1:
        return unstack(_sum_over(jnp.stack(list(parts)), pool))
    flat = _sum_over(jnp.concatenate([part.reshape(-1) for part in parts]), pool)
    return [piece.reshape(part.shape) for piece, part in zip(_cut(flat, parts), parts, strict=True)]


def fused_gather(parts: Sequence[jax.Array], pool: Pool) -> list[jax.Array]:
    """Gathers every participant's `parts`, each with a new leading axis over the pool, with one collective for all."""
    if pool.axis_name is None:
        return [part[None] for part in parts]
    if len({part.shape for part in parts}) == 1:
        rows = _gather_over(jnp.stack(list(parts)), pool)
        return [rows[:, i] for i in range(len(parts))]
    rows = _gather_over(jnp.concatenate([part.reshape(-1) for part in parts]), pool)
    return [piece.reshape(-1, *part.shape) for piece, part in zip(_cut(rows, parts), parts, strict=True)]


def vary_like(value: jax.Array, *references: jax.Array | None) -> jax.Array:
    """Marks `value` as varying over every manual axis that some of `references` varies over.

    JAX does this by itself where a replicated value meets a varying one, once per use, and each mark becomes a psum in
    the backward pass. Marking a stacked value here leaves one psum. Outside of `shard_map(check_vma=True)` nothing
    varies and nothing happens.
    """
    missing = frozenset().union(*(varying_axes(r) for r in references if r is not None)) - varying_axes(value)
    return lax.pcast(value, tuple(missing), to="varying") if missing else value


def varies_beyond(value: jax.Array, reference: jax.Array) -> bool:
    """Returns whether `value` varies over a manual axis that `reference` does not vary over."""
    return not varying_axes(value) <= varying_axes(reference)


def unstack(stacked: jax.Array) -> list[jax.Array]:
    """Returns the rows of an array; its transpose is one concatenation, that of indexing one padded array per row."""
    return [jnp.squeeze(row, 0) for row in lax.split(stacked, [1] * stacked.shape[0], axis=0)]


def _cut(flat: jax.Array, parts: Sequence[jax.Array]) -> Sequence[jax.Array]:
    # A split, because its transpose is one concatenation.
    return lax.split(flat, [part.size for part in parts], axis=flat.ndim - 1)


def _sum_over(values: jax.Array, pool: Pool) -> jax.Array:
    if pool.groups is None:
        return lax.psum(values, pool.axis_name)
    if _grouped_collectives(pool):
        return lax.psum(values, pool.axis_name, axis_index_groups=pool.groups)
    # One row per group, of which a participant fills its own: an ordinary psum, of as many times the length.
    group = _group(pool)
    row = jnp.expand_dims(jnp.arange(len(pool.groups)) == group, tuple(range(1, values.ndim + 1)))
    total = lax.psum(jnp.where(row, values[None], 0), pool.axis_name)
    return lax.dynamic_index_in_dim(vary_like(total, group), group, keepdims=False)


def _gather_over(values: jax.Array, pool: Pool) -> jax.Array:
    if pool.groups is None:
        # The gathered array is the same on every participant, and the caller's out_specs may say so.
        gather = gather_invariant if _checked(pool.axis_name) else lax.all_gather
        return gather(values, pool.axis_name)
    if _grouped_collectives(pool):
        return lax.all_gather(values, pool.axis_name, axis_index_groups=pool.groups)
    return jnp.take(lax.all_gather(values, pool.axis_name), _own(jnp.asarray(pool.groups), pool), axis=0)


def _grouped_collectives(pool: Pool) -> bool:
    """Returns whether JAX has grouped collectives here: over one mesh axis, not in vmap or under check_vma=True."""
    names = pool.axis_name if isinstance(pool.axis_name, tuple | list) else (pool.axis_name,)
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return len(names) == 1 and names[0] in manual and not _checked(pool.axis_name)


def _checked(axis_name: AxisName | None) -> bool:
    """Returns whether JAX tracks here which values vary over the axis: an index along the axis does."""
    return bool(varying_axes(lax.axis_index(axis_name)))


def _group(pool: Pool) -> jax.Array:
    """Returns the number of this participant's group."""
    group_of = {member: number for number, group in enumerate(pool.groups or ()) for member in group}
    return _own(jnp.asarray([group_of[i] for i in range(len(group_of))]), Pool(pool.axis_name))


def _own(table: jax.Array, pool: Pool) -> jax.Array:
    """Returns this participant's row of a table, or its group's row where the pool has groups."""
    index = _group(pool) if pool.groups else lax.axis_index(pool.axis_name)
    return lax.dynamic_index_in_dim(vary_like(table, index), index, keepdims=False)
