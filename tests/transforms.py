"""The ways to run one function of a device's share on several devices: each test of a collective runs over all."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

AXIS = "batch"


def make_mesh(devices: int) -> jax.sharding.Mesh:
    return jax.make_mesh((devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def _per_device(wrap):
    """A transform whose function sees one device's share and the axis name, and returns one result a device."""

    def run(function, sharded, replicated):
        devices = sharded[0].shape[0]
        return wrap(lambda s, r: function(AXIS, s, r), devices)(sharded, replicated)

    return run


def _shard_map(check_vma):
    def wrap(function, devices):
        def local(sharded, replicated):
            out = function([s[0] for s in sharded], replicated)
            return jax.tree.map(lambda a: a[None], out)

        # One row a device for every output: what is the same everywhere must be seen to be so.
        specs = (PartitionSpec(AXIS), PartitionSpec())
        mapped = jax.shard_map(
            local, mesh=make_mesh(devices), in_specs=specs, out_specs=PartitionSpec(AXIS), check_vma=check_vma
        )
        return jax.jit(mapped)

    return _per_device(wrap)


def _jit(function, sharded, replicated):
    """The whole batch as one sharded array, no axis name. Results come back as if from every device."""
    devices = sharded[0].shape[0]
    sharding = NamedSharding(make_mesh(devices), PartitionSpec(AXIS))
    whole = [jax.device_put(s.reshape(-1, *s.shape[2:]), sharding) for s in sharded]
    dx_and_y, features = jax.jit(lambda s, r: function(None, s, r))(whole, replicated)
    split = jax.tree.map(lambda a: a.reshape(devices, -1, *a.shape[1:]), dx_and_y)
    return split, jax.tree.map(lambda a: jnp.broadcast_to(a[None], (devices, *a.shape)), features)


TRANSFORMS = {
    "pmap": _per_device(
        lambda f, devices: jax.pmap(f, axis_name=AXIS, in_axes=(0, None), devices=jax.devices()[:devices])
    ),
    "shard_map": _shard_map(check_vma=True),
    "shard_map_unchecked": _shard_map(check_vma=False),
    "vmap": _per_device(lambda f, devices: jax.jit(jax.vmap(f, axis_name=AXIS, in_axes=(0, None)))),
    "jit": _jit,
}

# Where the gradient of a replicated parameter is each device's own, and the caller adds them up.
LOCAL_GRADIENTS = {"pmap", "shard_map_unchecked", "vmap"}
