"""Normalises by the statistics of a batch, in four parts: local sums, one collective, the statistics, an affine step.

    local sums  of a device's positions         `_reductions`: one implementation per platform, and a derivative rule
    collective  of the sums, or of moments      `_collectives`: plain JAX
    statistics  from the pooled sums            `_statistics`: with a derivative rule
    y           affine in x - reference         this file: with a derivative rule

Everything between the rules, the collectives included, is plain JAX on vectors of one number per feature.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from batchnorm_jax._activations import activated, is_relu, undo
from batchnorm_jax._arrays import expand, from_real_parts, real_parts, statistics_dtype
from batchnorm_jax._collectives import fused_sum, unstack, varies_beyond, vary_like
from batchnorm_jax._operands import Correction, Operands
from batchnorm_jax._options import NormOptions
from batchnorm_jax._platforms import Reader, apart
from batchnorm_jax._reductions import Kept, affine_tangent, deviation, tangent_sums
from batchnorm_jax._statistics import POOLINGS, Statistics, moved_by

# The names, for checkpoint policies, of the values from which a norm can be computed again: its input and statistics.
INPUT_NAME, STATISTICS_NAME = "batch_norm_input", "batch_norm_statistics"


# Jitted because calls outside of jit would otherwise compile the parts of the derivative at each call, and so that
# layers of one shape are traced once.
@partial(jax.jit, static_argnums=0)
def normalize_by_batch(options: NormOptions, operands: Operands) -> tuple[jax.Array, Statistics]:
    """Returns y, in the dtype of the options, and the statistics of the batch.

    Args:
      options: resolved, and without a span.
      operands: checked, and cut into spans already. No gradient flows into shift and correction.
    """
    x, scale, bias, mask, shift, residual, correction = operands
    if options.saving.names_input:
        x = checkpoint_name(x, INPUT_NAME)
    # A value that a policy keeps goes into each inner checkpoint once more, and comes out as a copy to be kept. A name
    # that no policy knows is computed again in place of these copies, at no cost.
    x = checkpoint_name(x, "batch_norm_input_again")
    constant_x = lax.stop_gradient(x)
    found = POOLINGS[options.collective].statistics(constant_x, mask, shift, options)
    found = jax.tree.map(lambda a: checkpoint_name(a, STATISTICS_NAME), lax.stop_gradient(found))

    # The derivative is taken with respect to x in the dtype of the statistics, so that its two parts, through the
    # statistics and directly, are added before they are rounded. The backward pass keeps x in its own dtype.
    wide = x.astype(statistics_dtype(x.dtype))
    kept = Kept(x, (found.reference,))
    undone = None
    if options.saving.keeps_output:
        undone = partial(undo, options.activation)
        vectors = lax.stop_gradient(_gain_and_constant(options, found, scale, bias, correction, wide))
        kept = _kept_output(options, wide, kept, mask, *vectors)
    sums = fused_sum(tangent_sums(options.features, undone, wide, kept, mask), options.pool)
    statistics = moved_by(found, sums)

    gain, constant = _gain_and_constant(options, statistics, scale, bias, correction, wide)
    alive = None if mask is None else jnp.broadcast_to(found.count > 0, found.var.shape)
    return _affine(options, wide, kept, gain, constant, residual, mask, alive), statistics


def _kept_output(options: NormOptions, wide, kept: Kept, mask, gain, constant) -> Kept:
    """Returns y, to be kept in place of x.

    It is differentiated at a fixed gain and constant, so that the u that is computed from it moves as x does.
    """
    from_input = options.replace(save_for_backward="input")
    return Kept(_affine(from_input, wide, kept, gain, constant, None, mask, None), (gain, constant))


def _gain_and_constant(
    options: NormOptions, statistics: Statistics, scale, bias, correction: Correction | None, x
) -> list[jax.Array]:
    """Returns the vectors of y = gain u + constant, with u = x - reference."""
    inv, offset = lax.rsqrt(statistics.var + options.epsilon), statistics.offset
    if any(varies_beyond(parameter, inv) for parameter in (scale, bias) if parameter is not None):
        inv, offset = _vary_together(inv, offset, x)
    gain = inv if scale is None else inv * scale.astype(inv.dtype)
    constant = jnp.zeros_like(offset) if bias is None else bias.astype(offset.dtype)
    if correction is not None:
        r, d = _ratio_and_distance(options, statistics, correction)
        constant = constant + (d if scale is None else d * scale.astype(d.dtype))
        gain = gain * r
    return apart(_vary_together(gain, constant - gain * offset, x))


def _vary_together(real: jax.Array, other: jax.Array, x) -> list[jax.Array]:
    """Casts two vectors to vary as `x` does, as one array, so that their transpose is one psum and not two."""
    if not varies_beyond(x, real) and not varies_beyond(x, other):
        return [real, other]
    real, *parts = unstack(vary_like(jnp.stack([real, *real_parts(other)]), x))
    return [real, from_real_parts(parts)]


def _ratio_and_distance(options: NormOptions, statistics: Statistics, correction: Correction):
    """Returns batch renormalization's r and d, constants for derivatives."""
    found = lax.stop_gradient(statistics)
    known = jnp.sqrt(correction.var.astype(found.var.dtype) + options.epsilon)
    r = jnp.clip(jnp.sqrt(found.var + options.epsilon) / known, 1 / correction.r_max, correction.r_max)
    d = (found.reference - correction.mean.astype(known.dtype) + found.offset) / known
    d = jnp.clip(d, -correction.d_max, correction.d_max)
    # Statistics that are not finite count as unknown: else one bad batch would make every later result a NaN.
    usable = jnp.isfinite(known) & jnp.isfinite(correction.mean)
    return jnp.where(usable, r, 1), jnp.where(usable, d, 0)


# The derivative. With u = x - reference, w the cotangent of y and v = activation'(...) w:
#
#     y      = activation(gain u + constant + residual)
#     d y    = activation'(...) (gain dx + u d gain + d constant + d residual)
#
# which is linear in the tangents, so JAX transposes it (`affine_tangent`): d gain gets sum u v, d constant sum v, and
# dx gain v. Those two sums are local. They become the gradients of scale and bias and, through mean and var, those of
# x. Together:
#
#     dx = gain (v - m (sum v + x_hat sum v x_hat) / n),   d bias = sum v,   d scale = sum v x_hat
#
# with one psum of the pair:
#
# - where psum transposes to psum (pmap, shard_map with check_vma=False), the psum of the pair from `tangent_sums` is
#   transposed, and the parameters' gradients stay local, as the caller expects there;
# - where psum transposes to a cast (check_vma=True), the psum comes from `_vary_together`, which casts gain and
#   constant at once; the parameters' gradients come out of that same psum.
@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _affine(options: NormOptions, x, kept: Kept, gain, constant, residual, mask, alive) -> jax.Array:
    """Returns activation(gain u + constant + residual), in the dtype of the options.

    Args:
      options: resolved.
      x: the input, in the dtype of the statistics.
      kept: the array that the backward pass keeps, and the vectors that turn it into u = x - reference.
      gain: shape (*features).
      constant: shape (*features).
      residual: None, or of the shape of x.
      mask: None, or booleans of the rank of x.
      alive: None, or booleans of shape (*features), False where no position counts, so that y has no derivative.
    """
    del alive
    if options.saving.keeps_output:
        return kept.array
    u = deviation(None, Kept(x, kept.vectors), None, options.features)
    y = _pre_activation(options, u, gain, constant, residual)
    y = (y if options.activation is None else activated(options.activation, y)).astype(options.dtype)
    # It compiles to y alone, but its tangent depends on the mask, and vmap must see that y does.
    return y if mask is None else jnp.where(mask, y, y)


def _pre_activation(options: NormOptions, u, gain, constant, residual):
    wide = partial(expand, features=options.features, ndim=u.ndim)
    y = wide(gain) * u + wide(constant)
    return y if residual is None else y + residual.astype(y.dtype)


class _Saved(NamedTuple):
    """The values kept for the backward pass; those of the size of x are None where the mode does not need them."""

    kept: Kept
    y: jax.Array | None
    residual: jax.Array | None
    gain: jax.Array
    constant: jax.Array | None
    mask: jax.Array | None
    alive: jax.Array | None


@_affine.defjvp
def _affine_jvp(options: NormOptions, primals, tangents):
    _, kept, gain, constant, residual, mask, alive = primals
    dx, _, dgain, dconstant, dresidual, _, _ = tangents
    y = _affine(options, *primals)
    # The sign of y gives the derivative of a ReLU, and the next layer keeps y anyway.
    keeps_y = is_relu(options.activation) and residual is not None
    saved = _Saved(
        kept=kept,
        y=y if keeps_y else None,
        residual=residual if options.activation is not None and not keeps_y else None,
        gain=gain,
        constant=constant if options.activation is not None and not keeps_y else None,
        mask=mask,
        alive=alive,
    )
    linear = jax.checkpoint(partial(_affine_tangent, options), prevent_cse=False)
    return y, linear(saved, dx, dgain, dconstant, dresidual)


def _affine_tangent(options: NormOptions, saved: _Saved, dx, dgain, dconstant, dresidual):
    undone = partial(undo, options.activation) if options.saving.keeps_output else None
    gain = saved.gain
    if saved.alive is not None:
        gain, dgain, dconstant = (jnp.where(saved.alive, a, 0) for a in (gain, dgain, dconstant))
    u = deviation(undone, apart(saved.kept, Reader.AFFINE_TANGENT), saved.mask, options.features)
    dy = affine_tangent(u, gain, dx, dgain, dconstant, options.features)
    if dresidual is not None:
        dy = dy + dresidual.astype(dy.dtype)
    if options.activation is None:
        return dy.astype(options.dtype)
    if saved.y is not None:
        # In the dtype of the result, which the residual's cotangent is written in.
        return jnp.where(saved.y > 0, dy.astype(options.dtype), 0)
    u = deviation(undone, apart(saved.kept, Reader.ACTIVATION_TANGENT), saved.mask, options.features)
    pre = _pre_activation(options, u, saved.gain, saved.constant, saved.residual)
    if saved.mask is not None:
        pre = jnp.where(saved.mask | jnp.isfinite(pre), pre, 0)
    return jax.jvp(options.activation, (pre,), (dy,))[1].astype(options.dtype)
