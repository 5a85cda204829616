"""Normalising by the statistics of a batch, corrected or not, on one seam: local sums, one collective, an affine step.

    sums        of a device's positions         `_reductions`, with a derivative rule
    collective  of the sums, or of moments      `_collectives`, plain JAX
    statistics  from the pooled sums            `_statistics`, with a derivative rule
    y           affine in x - reference         here, with a derivative rule

Everything between the rules is plain JAX on vectors of one number per feature, the collectives included.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from batchnorm_jax._activations import Activation, activated, is_relu, undo
from batchnorm_jax._collectives import Pool, fused_sum, pool_size, unstack, varies_beyond, vary_like
from batchnorm_jax._conditioning import warn_of_negative_scale
from batchnorm_jax._moments import expand, positions, statistics_dtype
from batchnorm_jax._reductions import Kept, Reader, apart, deviation, from_real_parts, real_parts, tangent_sums
from batchnorm_jax._statistics import BY_COLLECTIVE, Statistics, moved_by

# Added to |scale| where y is to be inverted, as InPlace-ABN does (arXiv 1712.02616, section 3).
SCALE_FLOOR = 1e-5
# Names, for checkpoint policies, of what a norm needs to be computed again: its input, and its statistics.
INPUT_NAME, STATISTICS_NAME = "batch_norm_input", "batch_norm_statistics"


def effective_scale(scale: jax.Array | None, save_for_backward: str) -> jax.Array | None:
    """Returns the scale that is applied: |scale| + 1e-5 where y is to be inverted. Warns of negatives."""
    if scale is None or save_for_backward != "output":
        return scale
    warn_of_negative_scale(scale)
    return jnp.abs(scale) + SCALE_FLOOR


class Correction(NamedTuple):
    """Known statistics towards which those of the batch are turned: x_hat becomes r x_hat + d.

    Attributes:
      mean: shape (*features), the known mean.
      var: shape (*features).
      r_max: the ratio of the deviations, s / s_known, is clipped to between 1 / r_max and r_max.
      d_max: the distance of the means, in s_known, is clipped to between -d_max and d_max.
    """

    mean: jax.Array
    var: jax.Array
    r_max: jax.Array
    d_max: jax.Array


class Spec(NamedTuple):
    """Static options of one call."""

    features: tuple[int, ...]
    epsilon: float
    pool: Pool
    collective: str
    activation: Activation | None
    save_for_backward: str
    dtype: jnp.dtype


# Jitted for calls outside of jit, which would compile the parts of the derivative at each call; and layers of one shape
# are traced once.
@partial(jax.jit, static_argnums=0)
def normalize_by_batch(
    spec: Spec, x, scale, bias, mask, shift, residual, correction: Correction | None
) -> tuple[jax.Array, Statistics]:
    """Returns y, in the dtype of the spec, and the statistics of the batch.

    Inputs are validated and cut into spans already; no gradient flows into shift and correction.
    """
    if spec.save_for_backward != "nothing":
        x = checkpoint_name(x, INPUT_NAME)
    # What a policy keeps goes into each checkpoint within once more, and comes out as a copy to be kept. A name that no
    # policy knows is computed again, in the place of these copies, and costs nothing.
    x = checkpoint_name(x, "batch_norm_input_again")
    count = None if mask is not None else pool_size(spec.pool) * positions(x.shape, spec.features)
    constant_x = lax.stop_gradient(x)
    found = BY_COLLECTIVE[spec.collective](constant_x, mask, shift, features=spec.features, count=count, pool=spec.pool)
    found = jax.tree.map(lambda a: checkpoint_name(a, STATISTICS_NAME), lax.stop_gradient(found))

    # The derivative is taken of x in the dtype of the statistics, so that its two parts, by way of the statistics and
    # not, are added before they are rounded; what is kept for it is x in its own dtype.
    wide = x.astype(statistics_dtype(x.dtype))
    kept = Kept(x, (found.reference,))
    undone = None
    if spec.save_for_backward == "output":
        undone = partial(undo, spec.activation)
        vectors = lax.stop_gradient(_gain_and_constant(spec, found, scale, bias, correction, wide))
        kept = _kept_output(spec, wide, kept, mask, *vectors)
    sums = fused_sum(tangent_sums(spec.features, undone, wide, kept, mask), spec.pool)
    statistics = moved_by(found, sums)

    gain, constant = _gain_and_constant(spec, statistics, scale, bias, correction, wide)
    alive = None if mask is None else jnp.broadcast_to(found.count > 0, found.var.shape)
    return _affine(spec, wide, kept, gain, constant, residual, mask, alive), statistics


def _kept_output(spec: Spec, wide, kept: Kept, mask, gain, constant) -> Kept:
    """Returns y, to be kept in the place of x.

    It is differentiated at a fixed gain and constant, so that the u that is made of it moves as x does.
    """
    input_spec = spec._replace(save_for_backward="input")
    return Kept(_affine(input_spec, wide, kept, gain, constant, None, mask, None), (gain, constant))


def _gain_and_constant(
    spec: Spec, statistics: Statistics, scale, bias, correction: Correction | None, x
) -> list[jax.Array]:
    """Returns the vectors of y = gain u + constant, with u = x - reference."""
    inv, offset = lax.rsqrt(statistics.var + spec.epsilon), statistics.offset
    if any(varies_beyond(parameter, inv) for parameter in (scale, bias) if parameter is not None):
        inv, offset = _vary_together(inv, offset, x)
    gain = inv if scale is None else inv * scale.astype(inv.dtype)
    constant = jnp.zeros_like(offset) if bias is None else bias.astype(offset.dtype)
    if correction is not None:
        r, d = _ratio_and_distance(spec, statistics, correction)
        constant = constant + (d if scale is None else d * scale.astype(d.dtype))
        gain = gain * r
    return apart(_vary_together(gain, constant - gain * offset, x))


def _vary_together(real: jax.Array, other: jax.Array, x) -> list[jax.Array]:
    """Casts two vectors to varying as `x` does, as one array: their transpose is one psum and not two."""
    if not varies_beyond(x, real) and not varies_beyond(x, other):
        return [real, other]
    real, *parts = unstack(vary_like(jnp.stack([real, *real_parts(other)]), x))
    return [real, from_real_parts(parts)]


def _ratio_and_distance(spec: Spec, statistics: Statistics, correction: Correction):
    """Returns batch renormalization's r and d, constants for derivatives."""
    found = lax.stop_gradient(statistics)
    known = jnp.sqrt(correction.var.astype(found.var.dtype) + spec.epsilon)
    r = jnp.clip(jnp.sqrt(found.var + spec.epsilon) / known, 1 / correction.r_max, correction.r_max)
    d = (found.reference - correction.mean.astype(known.dtype) + found.offset) / known
    d = jnp.clip(d, -correction.d_max, correction.d_max)
    # Statistics that are not finite are not known: one bad batch would make every later result a NaN.
    usable = jnp.isfinite(known) & jnp.isfinite(correction.mean)
    return jnp.where(usable, r, 1), jnp.where(usable, d, 0)


# The derivative. With u = x - reference, w the cotangent of y and v = activation'(...) w:
#
#     y      = activation(gain u + constant + residual)
#     d y    = activation'(...) (gain dx + u d gain + d constant + d residual)
#
# which is linear in the tangents, so JAX transposes it: d gain gets sum u v, d constant sum v, and dx gain v. Those two
# sums are local. They become the gradients of scale and bias, and by way of mean and var those of x. In all:
#
#     dx = gain (v - m (sum v + x_hat sum v x_hat) / n),   d bias = sum v,   d scale = sum v x_hat
#
# with one psum of the pair:
#
# - where psum transposes to psum (pmap, shard_map with check_vma=False), that of `tangent_sums`' pair is transposed,
#   and the parameters' gradients stay local, as the caller expects there;
# - where it transposes to a cast (check_vma=True), the psum comes from `_vary_together`, which casts gain and constant
#   at once; the parameters' gradients come out of that same psum.
@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _affine(spec: Spec, x, kept: Kept, gain, constant, residual, mask, alive) -> jax.Array:
    """Returns activation(gain u + constant + residual), in the dtype of the spec.

    Args:
      spec: the options.
      x: the input, in the dtype of the statistics.
      kept: what the backward pass keeps of it, and how that gives u = x - reference.
      gain: shape (*features).
      constant: shape (*features).
      residual: None, or of the shape of x.
      mask: None, or booleans of the rank of x.
      alive: None, or booleans of shape (*features): False where no position counts, and y has no derivative.
    """
    del alive
    if spec.save_for_backward == "output":
        return kept.array
    u = deviation(None, Kept(x, kept.vectors), None, spec.features)
    y = _pre_activation(spec, u, gain, constant, residual)
    y = (y if spec.activation is None else activated(spec.activation, y)).astype(spec.dtype)
    # Of nothing but y, and compiled to it: its tangent depends on the mask, and vmap must see that y does.
    return y if mask is None else jnp.where(mask, y, y)


def _pre_activation(spec: Spec, u, gain, constant, residual):
    wide = partial(expand, features=spec.features, ndim=u.ndim)
    y = wide(gain) * u + wide(constant)
    return y if residual is None else y + residual.astype(y.dtype)


class _Saved(NamedTuple):
    """Values kept for the backward pass: arrays of the size of x only where the mode needs them."""

    kept: Kept
    y: jax.Array | None
    residual: jax.Array | None
    gain: jax.Array
    constant: jax.Array | None
    mask: jax.Array | None
    alive: jax.Array | None


@_affine.defjvp
def _affine_jvp(spec: Spec, primals, tangents):
    _, kept, gain, constant, residual, mask, alive = primals
    dx, _, dgain, dconstant, dresidual, _, _ = tangents
    y = _affine(spec, *primals)
    # y says what the derivative of a ReLU is, and the next layer keeps it anyway.
    keeps_y = is_relu(spec.activation) and residual is not None
    saved = _Saved(
        kept=kept,
        y=y if keeps_y else None,
        residual=residual if spec.activation is not None and not keeps_y else None,
        gain=gain,
        constant=constant if spec.activation is not None and not keeps_y else None,
        mask=mask,
        alive=alive,
    )
    linear = jax.checkpoint(partial(_affine_tangent, spec), prevent_cse=False)
    return y, linear(saved, dx, dgain, dconstant, dresidual)


def _affine_tangent(spec: Spec, saved: _Saved, dx, dgain, dconstant, dresidual):
    undone = partial(undo, spec.activation) if spec.save_for_backward == "output" else None
    wide = partial(expand, features=spec.features, ndim=dx.ndim)
    gain = saved.gain
    if saved.alive is not None:
        gain, dgain, dconstant = (jnp.where(saved.alive, a, 0) for a in (gain, dgain, dconstant))
    u = deviation(undone, apart(saved.kept, Reader.AFFINE_TANGENT), saved.mask, spec.features)
    dy = wide(gain) * dx + u * wide(dgain) + wide(dconstant)
    if dresidual is not None:
        dy = dy + dresidual.astype(dy.dtype)
    if spec.activation is None:
        return dy.astype(spec.dtype)
    if saved.y is not None:
        # In the dtype of the result, in which the residual's cotangent is written.
        return jnp.where(saved.y > 0, dy.astype(spec.dtype), 0)
    u = deviation(undone, apart(saved.kept, Reader.ACTIVATION_TANGENT), saved.mask, spec.features)
    pre = _pre_activation(spec, u, saved.gain, saved.constant, saved.residual)
    if saved.mask is not None:
        pre = jnp.where(saved.mask | jnp.isfinite(pre), pre, 0)
    return jax.jvp(spec.activation, (pre,), (dy,))[1].astype(spec.dtype)
