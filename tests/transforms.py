"""The register of ways to run a function on several devices; generic tests of collectives run over all of them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

AXIS = "batch"
TWO_AXES = ("rows", "columns")


class Transform(NamedTuple):
    """A way to run `function(axis_name, sharded, replicated)` on every device's share, in one jitted program.

    Attributes:
      wrap: takes the function and the number of devices, and returns a function of (sharded, replicated) that can be
        lowered.
      whole: whether the function sees the whole batch and no axis name, in place of one device's share.
      local_gradients: whether the gradient of a replicated parameter is local to each device, so that the caller has
        to sum over the devices.
      has_groups: whether `axis_index_groups` have a meaning.
    """

    wrap: Callable
    whole: bool = False
    local_gradients: bool = False
    has_groups: bool = True

    def run(self, function, sharded, replicated):
        """Runs `function(axis_name, sharded, replicated) -> (sharded results, results for every feature)`.

        Args:
          function: takes the axis name, one device's share of `sharded`, and `replicated`.
          sharded: arrays of shape (devices, batch, ...).
          replicated: arrays that are the same for all devices.

        Returns:
          The results of the function, each with a leading axis over the devices.
        """
        devices = sharded[0].shape[0]
        if not self.whole:
            return self.wrap(function, devices)(sharded, replicated)
        whole = [s.reshape(-1, *s.shape[2:]) for s in sharded]
        of_shares, of_all = self.wrap(function, devices)(whole, replicated)
        split = jax.tree.map(lambda a: jnp.asarray(jax.device_get(a)).reshape(devices, -1, *a.shape[1:]), of_shares)
        return split, jax.tree.map(lambda a: jnp.broadcast_to(a[None], (devices, *a.shape)), jax.device_get(of_all))


def make_mesh(devices: int, axis_type: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    return jax.make_mesh((devices,), (AXIS,), axis_types=(axis_type,), devices=jax.devices()[:devices])


def _pmap(function, devices):
    return jax.pmap(
        lambda s, r: function(AXIS, s, r), axis_name=AXIS, in_axes=(0, None), devices=jax.devices()[:devices]
    )


def _vmap(function, devices):
    return jax.jit(jax.vmap(lambda s, r: function(AXIS, s, r), axis_name=AXIS, in_axes=(0, None)))


def _shard_map(check_vma, names=AXIS):
    def wrap(function, devices):
        def local(sharded, replicated):
            out = function(names, [s[0] for s in sharded], replicated)
            return jax.tree.map(lambda a: a[None], out)

        if names == AXIS:
            mesh = make_mesh(devices)
        else:
            sizes = (devices // 2, 2) if devices > 1 else (1, 1)
            auto = (AxisType.Auto, AxisType.Auto)
            mesh = jax.make_mesh(sizes, names, axis_types=auto, devices=jax.devices()[:devices])
        # Every output has one row per device, so that a test can see that replicated results agree.
        specs = PartitionSpec(names)
        mapped = jax.shard_map(
            local, mesh=mesh, in_specs=(specs, PartitionSpec()), out_specs=specs, check_vma=check_vma
        )
        return jax.jit(mapped)

    return wrap


def _jit(axis_type):
    def wrap(function, devices):
        mesh = make_mesh(devices, axis_type)
        split, same = NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())
        jitted = jax.jit(lambda s, r: function(None, s, r))

        def run(sharded, replicated):
            with jax.set_mesh(mesh):
                return jitted(jax.device_put(sharded, split), jax.device_put(replicated, same))

        def lower(sharded, replicated):
            with jax.set_mesh(mesh):
                return jitted.lower(jax.device_put(sharded, split), jax.device_put(replicated, same))

        run.lower = lower
        return run

    return wrap


def _one_device(function, devices):
    return jax.jit(lambda s, r: function(None, s, r))


TRANSFORMS = {
    "pmap": Transform(_pmap, local_gradients=True),
    "shard_map": Transform(_shard_map(check_vma=True)),
    "shard_map_unchecked": Transform(_shard_map(check_vma=False), local_gradients=True),
    "shard_map_two_axes": Transform(_shard_map(check_vma=True, names=TWO_AXES)),
    "vmap": Transform(_vmap, local_gradients=True),
    "jit": Transform(_jit(AxisType.Auto), whole=True, has_groups=False),
    "jit_explicit": Transform(_jit(AxisType.Explicit), whole=True, has_groups=False),
    "one_device": Transform(_one_device, whole=True, has_groups=False),
}


def _scanned(function):
    """Runs a function twice in a scan that adds half of each result, so that the value is that of one call."""

    def run(*arguments):
        def body(total, _):
            return total + function(*arguments) / 2, None

        return jax.lax.scan(body, jnp.zeros(()), jnp.arange(2))[0]

    return run


def _chosen(function):
    """Runs a function in the branch of a cond that is taken, which is not known when the function is traced."""

    def run(*arguments):
        return jax.lax.cond(jnp.sum(arguments[0]) < 1e9, function, lambda *a: 0.0 * jnp.sum(a[0]), *arguments)

    return run


# Ways to wrap a scalar function that binds an axis before it is differentiated.
OUTSIDE = {
    "plain": lambda function: function,
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "scan": _scanned,
    "cond": _chosen,
    "jit of checkpoint": lambda function: jax.jit(jax.checkpoint(function)),
}
