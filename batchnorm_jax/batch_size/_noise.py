"""The gradient noise scale: the batch size at which the noise of a gradient is as large as the gradient itself."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy

from batchnorm_jax.batch_size._squares import squared_norm, widened

# Enough for the 2.5% and 97.5% quantiles: 50 resamples lie beyond each.
BOOTSTRAP_RESAMPLES = 2_000
# With fewer blocks there are too few distinct resamples for a distribution.
MIN_BLOCKS = 8


class NoiseEstimate(NamedTuple):
    """An estimate of |G|^2 and tr Sigma, where G is the gradient and Sigma the covariance of one example's gradient.

    It is made from one batch, or is an average over batches.

    Attributes:
      gradient_norm2: the estimate of |G|^2, in squared units of the gradient. Unbiased, so it can be negative.
      trace: the estimate of tr Sigma, in the same units.
    """

    gradient_norm2: Any
    trace: Any


class NoiseState(NamedTuple):
    """Running averages of noise estimates.

    Attributes:
      ema: the state of `optax.ema`, averages that start from 0.
      average: the averages with that start corrected for; nan before the first estimate.
    """

    ema: optax.EmaState
    average: NoiseEstimate


_SQUARED_NORM = jax.jit(squared_norm)


def noise_from_shards(shard_gradients: Any, shard_size: int) -> NoiseEstimate:
    """Estimates the squared gradient |G|^2 and its noise tr Sigma from the gradients of K shards of b examples each.

    With g_i the gradient of the mean loss of shard i, g the mean of the g_i, and q = mean |g_i|^2:

        |G|^2 = (K |g|^2 - q) / (K - 1),   tr Sigma = b K / (K - 1) (q - |g|^2)

    where q - |g|^2 is computed as mean |g_i - g|^2, which loses no digits where the noise is small. Both estimates are
    unbiased if the g_i are independent. The g_i are dependent where a norm synchronises its statistics over the shards:
    with C the covariance of the gradients of two shards, the estimates have the means |G|^2 + tr C and
    tr Sigma - b tr C. So measure with spans inside a shard (`span` divides b), or with frozen statistics. Examples
    drawn without replacement from N, as in an epoch, leave tr Sigma unchanged and lower |G|^2 by tr Sigma / N.

    Args:
      shard_gradients: a tree of arrays of shape (K, ...), K at least 2.
      shard_size: b, the number of examples per shard.

    Returns:
      Scalars in at least float32.

    Raises:
      ValueError: there are fewer than two shards, leaves differ in the number of shards, or b is less than 1.

    Example:
      >>> estimate = noise_from_shards({"w": jnp.array([[1.0], [3.0]])}, shard_size=8)
      >>> estimate.gradient_norm2.item(), estimate.trace.item()  # |g|^2 = 4, q = 5
      (3.0, 16.0)

    Source: McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162, 2018, appendix A.
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(shard_gradients)]
    shards = _first_axis(shapes)
    if shards is None:
        raise ValueError(
            "noise_from_shards: every leaf must have the shards along its first axis, the same number in each; the "
            f"shapes are {shapes}. Stack the gradients of shards: jax.tree.map(lambda *g: jnp.stack(g), *gradients)"
        )
    _check_shards(shards, shard_size, caller="noise_from_shards")
    gradients = jax.tree.map(widened, shard_gradients)
    mean = jax.tree.map(lambda g: jnp.mean(g, axis=0), gradients)
    spread = squared_norm(jax.tree.map(lambda g, m: g - m[None], gradients, mean)) / shards
    return _estimate(squared_norm(mean), spread, shards, shard_size)


def noise_from_norms(mean_square_of_shards: Any, square_of_mean: Any, shards: int, shard_size: int) -> NoiseEstimate:
    """Estimates the squared gradient |G|^2 and its noise tr Sigma from norms alone, for use inside `shard_map`.

    The formulas are those of `noise_from_shards`. A training step that averages the gradients of its devices only has
    to average one more scalar, in the same collective. The trace loses digits where |g|^2 / (q - |g|^2), which is about
    b over the noise scale, is large.

    Args:
      mean_square_of_shards: q, the mean over the shards of |g_i|^2.
      square_of_mean: |g|^2, the squared norm of the mean gradient.
      shards: K, the number of shards, at least 2.
      shard_size: b, the number of examples per shard.

    Returns:
      Scalars.

    Raises:
      ValueError: there are fewer than two shards, or b is less than 1.

    Example:
      >>> def on_device(gradient):
      ...     mean, q = jax.lax.pmean((gradient, squared_norm(gradient)), "devices")
      ...     return noise_from_norms(q, squared_norm(mean), shards=2, shard_size=8)
      >>> estimate = jax.vmap(on_device, axis_name="devices", out_axes=None)({"w": jnp.array([[1.0], [3.0]])})
      >>> estimate.gradient_norm2.item(), estimate.trace.item()
      (3.0, 16.0)
    """
    _check_shards(shards, shard_size, caller="noise_from_norms")
    return _estimate(square_of_mean, mean_square_of_shards - square_of_mean, shards, shard_size)


def measure_noise(
    gradient_fn: Callable[[Any, Any], Any], params: Any, batches: Iterable[Any], shards: int
) -> NoiseEstimate:
    """Estimates the squared gradient |G|^2 and its noise tr Sigma at fixed parameters, once per batch.

    Each batch is split into shards, whose gradients are computed one after the other.

    Args:
      gradient_fn: (params, shard) -> the gradient of the shard's mean loss, such as `jax.jit(jax.grad(loss_fn))`. Norm
        statistics must be computed within the shard, or be frozen: see `noise_from_shards`.
      params: the parameters of the model.
      batches: trees of arrays with the examples along the first axis.
      shards: K, the number of shards per batch, at least 2; it divides the batch size.

    Returns:
      One estimate per batch, in NumPy arrays of shape (batches,).

    Raises:
      ValueError: there are no batches or fewer than two shards, or `shards` does not divide a batch.

    Example:
      >>> gradient_fn = jax.jit(jax.grad(lambda w, x: jnp.mean((w - x) ** 2) / 2))  # for one example: w - x
      >>> estimates = measure_noise(gradient_fn, 0.0, [np.array([1.0, 1.0, 3.0, 3.0], np.float32)], shards=2)
      >>> estimates.gradient_norm2.tolist(), estimates.trace.tolist()
      ([3.0], [4.0])
    """
    estimates = []
    for batch in batches:
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
        examples = _first_axis(shapes)
        if not examples or shards < 2 or examples % shards:
            raise ValueError(
                f"measure_noise: shards={shards} must be at least 2 and divide the first axis, which counts examples "
                f"and must have the same size in every leaf; the shapes are {shapes}. Give a divisor of the batch size"
            )
        size = examples // shards
        total, squares = None, 0.0
        # A Python loop over shards keeps at most two gradients in memory, whatever the number of shards. A loop
        # inside XLA would do so too, but it runs convolutions slowly on a CPU.
        for start in range(0, examples, size):
            shard = jax.tree.map(lambda leaf, i=start, n=size: leaf[i : i + n], batch)
            gradient = jax.tree.map(widened, gradient_fn(params, shard))
            total = gradient if total is None else jax.tree.map(jnp.add, total, gradient)
            squares += float(_SQUARED_NORM(gradient))
        square_of_mean = float(_SQUARED_NORM(total)) / shards**2
        estimates.append(noise_from_norms(squares / shards, square_of_mean, shards, size))
    if not estimates:
        raise ValueError("measure_noise: there are no batches; give at least one")
    return NoiseEstimate(*(np.array(values) for values in zip(*estimates, strict=True)))


def init_noise() -> NoiseState:
    """Returns the running averages before the first estimate."""
    ema: Any = optax.ema(0.0).init(NoiseEstimate(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)))
    return NoiseState(ema, NoiseEstimate(jnp.float32(jnp.nan), jnp.float32(jnp.nan)))


def update_noise(state: NoiseState, estimate: NoiseEstimate, decay: float = 0.99, *, when: Any = True) -> NoiseState:
    """Returns the running averages after one more estimate.

    ema = decay ema + (1 - decay) estimate, and the average is ema / (1 - decay^n) after n estimates.

    Args:
      state: the running averages so far.
      estimate: the new estimate. One that is not finite makes the averages non-finite for good.
      decay: the share of the average that is kept, at least 0 and less than 1; the averages reach back about
        1 / (1 - decay) estimates.
      when: a bool, or a boolean scalar that may be traced: whether there is an estimate. Where there is none, the
        averages stay as they are, whatever `estimate` holds.

    Raises:
      ValueError: `decay` is out of range, or `when` is not a boolean scalar.

    Example:
      >>> state = update_noise(init_noise(), NoiseEstimate(1.0, 10.0), decay=0.5)
      >>> state = update_noise(state, NoiseEstimate(4.0, 40.0), decay=0.5)
      >>> [number.item() for number in state.average]  # weights 1/3 and 2/3
      [3.0, 30.0]
    """
    if not 0 <= decay < 1:
        raise ValueError(f"update_noise: decay={decay} must be at least 0 and less than 1, such as 0.99")
    check_when(when, "update_noise")
    given = NoiseEstimate(*(jnp.asarray(number, jnp.float32) for number in estimate))
    average, ema = optax.ema(decay).update(given, state.ema)
    updated = NoiseState(ema, average)  # pyright: ignore[reportArgumentType]  (optax types both as any tree)
    return updated if when is True else jax.tree.map(lambda new, old: jnp.where(when, new, old), updated, state)


def noise_scale(state: NoiseState) -> jax.Array:
    """Returns the gradient noise scale in examples: B_simple = average of tr Sigma / average of |G|^2.

    Both are averaged before dividing, since the ratio of two estimates from one batch is biased and can have either
    sign. The result is inf where the average of |G|^2 is not positive, so that the gradient cannot be told from noise.
    It is nan before the first estimate, and where there is neither gradient nor noise.

    Example:
      >>> noise_scale(update_noise(init_noise(), NoiseEstimate(2.0, 10.0), decay=0.5)).item()
      5.0

    Source: McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162, 2018, appendix A.
    """
    norm2, trace = state.average
    unresolved = jnp.where((norm2 <= 0) & (trace > 0), jnp.inf, jnp.nan)
    return jnp.where(norm2 > 0, trace / norm2, unresolved)


def noise_scale_interval(
    estimates: NoiseEstimate | Sequence[NoiseEstimate],
    confidence: float = 0.95,
    seed: int = 0,
    *,
    block: int | None = None,
) -> tuple[float, float]:
    """Returns a confidence interval for the noise scale, as a ratio of means, by a block bootstrap over steps.

    Successive steps are correlated, so whole blocks of steps are resampled (SciPy's bias-corrected bootstrap of the
    block means). The bootstrap is of |G|^2 / tr Sigma, whose denominator is not near 0; the ends are then inverted.

    Args:
      estimates: one estimate per step, in order; or a single one that holds arrays of shape (steps,).
      confidence: the share of such intervals that contain the true value.
      seed: seed of the resampling.
      block: steps per block; None: the cube root of the number of steps. Steps at the start that do not fill a block
        are left out.

    Returns:
      The lower and the upper end, in examples. An end is inf where the steps do not bound the noise scale.

    Raises:
      ValueError: there are fewer than 8 blocks, an estimate is not finite, or tr Sigma is not positive at any step.

    Example:
      >>> draws = np.random.default_rng(0).normal(size=(2, 200))
      >>> low, high = noise_scale_interval(NoiseEstimate(2 + draws[0], 100 + draws[1]))
      >>> 45 < low < 50 < high < 55
      True

    Source: Carlstein, "The use of subseries values for estimating the variance of a general statistic from a stationary
    sequence", 1986 (the blocks); Efron, "Better bootstrap confidence intervals", 1987 (the correction).
    """
    columns = estimates if isinstance(estimates, NoiseEstimate) else zip(*estimates, strict=True)
    values = np.array([np.asarray(column, np.float64) for column in columns])
    steps = values.shape[1] if values.ndim == 2 else 0
    length = max(1, round(steps ** (1 / 3))) if block is None else block
    if not 0 < confidence < 1 or length < 1 or steps < MIN_BLOCKS * length:
        raise ValueError(
            f"noise_scale_interval: confidence must be between 0 and 1, and there must be at least {MIN_BLOCKS} "
            f"blocks; there are confidence={confidence} and {steps} steps in blocks of {length}. Measure more steps or "
            "give a smaller block"
        )
    if not np.isfinite(values).all() or values[1].max() <= 0:
        raise ValueError(
            "noise_scale_interval: all estimates must be finite, and tr Sigma positive in at least one; "
            f"{np.sum(~np.isfinite(values))} numbers are not finite, and the greatest tr Sigma is {values[1].max()}. "
            "Leave out the steps that are not finite, and measure more steps"
        )
    blocks = steps // length
    means = values[:, steps - blocks * length :].reshape(2, blocks, length).mean(axis=2)

    def inverse_scale(norm2, trace, axis=-1):
        return norm2.mean(axis=axis) / trace.mean(axis=axis)

    if np.all(np.ptp(means, axis=1) == 0):
        # SciPy's bias correction is undefined where all blocks are equal.
        low = high = inverse_scale(*means)
    else:
        low, high = scipy.stats.bootstrap(
            tuple(means),
            inverse_scale,
            paired=True,
            n_resamples=BOOTSTRAP_RESAMPLES,
            confidence_level=confidence,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    least, most = (np.inf if end <= 0 else float(1 / end) for end in (high, low))
    return least, most


def check_when(when: Any, caller: str) -> None:
    """Refuses what does not say whether there is an estimate.

    Raises:
      ValueError: `when` is not a boolean scalar.
    """
    if isinstance(when, bool):
        return
    shape, dtype = getattr(when, "shape", None), getattr(when, "dtype", None)
    if shape != () or dtype != jnp.dtype(bool):
        what = repr(when) if shape is None else f"of {dtype} and shape {shape}"
        raise ValueError(f"{caller}: when must be a bool or a boolean scalar, such as step % 10 == 0, and it is {what}")


def _first_axis(shapes: list[tuple[int, ...]]) -> int | None:
    """Returns the size of the first axis if all shapes have one of the same size, else None."""
    sizes = {shape[:1] for shape in shapes}
    return sizes.pop()[0] if len(sizes) == 1 and () not in sizes else None


def _estimate(square_of_mean: Any, spread: Any, shards: int, shard_size: int) -> NoiseEstimate:
    """Returns the estimate that follows from |g|^2 and from the spread q - |g|^2."""
    return NoiseEstimate(square_of_mean - spread / (shards - 1), shard_size * shards / (shards - 1) * spread)


def _check_shards(shards: int, shard_size: int, *, caller: str) -> None:
    if shards < 2 or shard_size < 1:
        raise ValueError(
            f"{caller}: there must be at least 2 shards of at least 1 example, and there are {shards} of "
            f"{shard_size}. On one device, split the batch into parts and compute the gradient of each"
        )
