"""The gradient noise scale: the batch size at which the noise of a gradient is as large as the gradient."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from experiments._errors import UsageError

# Of the bootstrap, and the fewest blocks that it makes sense of.
RESAMPLES, LEAST_BLOCKS = 2_000, 8


class NoiseEstimate(NamedTuple):
    """What one batch, or an average over batches, says of the gradient G and the covariance Sigma of one example's.

    Attributes:
      gradient_norm2: of |G|^2, in the squared units of the gradient. Unbiased, so it can be negative.
      trace: of tr Sigma, in the same units.
    """

    gradient_norm2: Any
    trace: Any


class NoiseState(NamedTuple):
    """Running averages of estimates.

    Attributes:
      ema: what optax keeps.
      average: the same with the bias of the first steps corrected; nan before the first.
    """

    ema: optax.EmaState
    average: NoiseEstimate


def squared_norm(tree: Any) -> jax.Array:
    """The sum of the squares of all numbers of a tree, in at least float32."""
    return optax.tree.norm(jax.tree.map(_widened, tree), squared=True)


_SQUARED_NORM = jax.jit(squared_norm)


def noise_from_shards(shard_gradients: Any, shard_size: int) -> NoiseEstimate:
    """Estimates |G|^2 and tr Sigma from the gradients of the K shards of a batch, of b examples each.

    With g_i the gradient of the mean loss of shard i, g their mean, q = mean |g_i|^2:

        |G|^2 = (K |g|^2 - q) / (K - 1),   tr Sigma = b K / (K - 1) (q - |g|^2)

    where q - |g|^2 is computed as mean |g_i - g|^2, which loses no digits where the noise is small. Both are unbiased
    if the g_i are independent. They are not where a norm's statistics are synchronised over the shards: with C the
    covariance of two shards' gradients the estimates come out as |G|^2 + tr C and tr Sigma - b tr C. So measure with
    spans inside a shard (`span` divides b), or with frozen statistics. (Examples drawn without replacement from N, as
    in an epoch, leave tr Sigma as it is and take tr Sigma / N from |G|^2.)

    Args:
      shard_gradients: a tree of arrays of shape (K, ...), K at least 2.
      shard_size: b, the examples of a shard, the same for all.

    Returns:
      Scalars in at least float32.

    Raises:
      UsageError: there are fewer than two shards, leaves have different numbers of them, or b is less than 1.

    Example:
      >>> estimate = noise_from_shards({"w": jnp.array([[1.0], [3.0]])}, shard_size=8)
      >>> estimate.gradient_norm2.item(), estimate.trace.item()  # |g|^2 = 4, q = 5
      (3.0, 16.0)

    Source: McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162, 2018, appendix A.
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(shard_gradients)]
    shards = _first_axis(shapes)
    if shards is None:
        raise UsageError(
            "noise_from_shards: every leaf must have the shards along its first axis, as many as the others; the "
            f"shapes are {shapes}. Stack the gradients of shards: jax.tree.map(lambda *g: jnp.stack(g), *gradients)"
        )
    _check_shards(shards, shard_size, caller="noise_from_shards")
    gradients = jax.tree.map(_widened, shard_gradients)
    mean = jax.tree.map(lambda g: jnp.mean(g, axis=0), gradients)
    spread = squared_norm(jax.tree.map(lambda g, m: g - m[None], gradients, mean)) / shards
    return _estimate(squared_norm(mean), spread, shards, shard_size)


def noise_from_norms(mean_square_of_shards: Any, square_of_mean: Any, shards: int, shard_size: int) -> NoiseEstimate:
    """Estimates |G|^2 and tr Sigma where only norms are known, as inside `shard_map`.

    The formulas of `noise_from_shards`. A training step that takes the mean of its devices' gradients needs the mean
    of one more scalar, in the same collective. The trace loses digits where |g|^2 / (q - |g|^2), about b over the
    noise scale, is large.

    Args:
      mean_square_of_shards: q, the mean of the shards' |g_i|^2.
      square_of_mean: |g|^2, of the mean of the shards' gradients.
      shards: K, at least 2.
      shard_size: b, the examples of a shard, the same for all.

    Raises:
      UsageError: there are fewer than two shards, or b is less than 1.

    Example:
      >>> def of_device(gradient):
      ...     mean, q = jax.lax.pmean((gradient, squared_norm(gradient)), "devices")
      ...     return noise_from_norms(q, squared_norm(mean), shards=2, shard_size=8)
      >>> estimate = jax.vmap(of_device, axis_name="devices", out_axes=None)({"w": jnp.array([[1.0], [3.0]])})
      >>> estimate.gradient_norm2.item(), estimate.trace.item()
      (3.0, 16.0)
    """
    _check_shards(shards, shard_size, caller="noise_from_norms")
    return _estimate(square_of_mean, mean_square_of_shards - square_of_mean, shards, shard_size)


def measure_noise(
    gradient_fn: Callable[[Any, Any], Any], params: Any, batches: Iterable[Any], shards: int
) -> NoiseEstimate:
    """Estimates |G|^2 and tr Sigma at fixed parameters, from each of several batches cut into shards.

    Args:
      gradient_fn: (params, shard) -> the gradient of the shard's mean loss, such as `jax.jit(jax.grad(loss_fn))`. The
        shard's statistics must be its own or frozen: see `noise_from_shards`.
      params: of the model.
      batches: trees of arrays with the examples along the first axis.
      shards: K, of every batch, at least 2; it divides the batch.

    Returns:
      The estimates of each batch, NumPy arrays of shape (batches,).

    Raises:
      UsageError: there are no batches, fewer than two shards, or one that `shards` does not divide.

    Example:
      >>> gradient_fn = jax.jit(jax.grad(lambda w, x: jnp.mean((w - x) ** 2) / 2))  # of an example: w - x
      >>> estimates = measure_noise(gradient_fn, 0.0, [np.array([1.0, 1.0, 3.0, 3.0], np.float32)], shards=2)
      >>> estimates.gradient_norm2.tolist(), estimates.trace.tolist()
      ([3.0], [4.0])
    """
    estimates = []
    for batch in batches:
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
        examples = _first_axis(shapes)
        if not examples or shards < 2 or examples % shards:
            raise UsageError(
                f"measure_noise: shards={shards} must be at least 2 and divide the first axis, that of the examples, "
                f"which must be the same in every leaf; the shapes are {shapes}. Give a divisor of the batch size"
            )
        size = examples // shards
        total, squares = None, 0.0
        # Shard by shard, so that two gradients are in memory however many shards there are, and no convolution is
        # inside a loop of XLA's, which is slow on a CPU.
        for start in range(0, examples, size):
            shard = jax.tree.map(lambda leaf, i=start, n=size: leaf[i : i + n], batch)
            gradient = jax.tree.map(_widened, gradient_fn(params, shard))
            total = gradient if total is None else jax.tree.map(jnp.add, total, gradient)
            squares += float(_SQUARED_NORM(gradient))
        square_of_mean = float(_SQUARED_NORM(total)) / shards**2
        estimates.append(noise_from_norms(squares / shards, square_of_mean, shards, size))
    if not estimates:
        raise UsageError("measure_noise: there are no batches; give at least one")
    return NoiseEstimate(*(np.array(values) for values in zip(*estimates, strict=True)))


def init_noise() -> NoiseState:
    """The running averages before the first step."""
    ema: Any = optax.ema(0.0).init(NoiseEstimate(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)))
    return NoiseState(ema, NoiseEstimate(jnp.float32(jnp.nan), jnp.float32(jnp.nan)))


def update_noise(state: NoiseState, estimate: NoiseEstimate, decay: float = 0.99) -> NoiseState:
    """The running averages after one more step: ema = decay ema + (1 - decay) estimate, over 1 - decay^steps.

    Args:
      state: of the steps before.
      estimate: of this step. One that is not finite stays in the averages.
      decay: the share that is kept, at least 0 and less than 1; the averages are over some 1 / (1 - decay) steps.

    Raises:
      UsageError: `decay` is out of range.

    Example:
      >>> state = update_noise(init_noise(), NoiseEstimate(1.0, 10.0), decay=0.5)
      >>> state = update_noise(state, NoiseEstimate(4.0, 40.0), decay=0.5)
      >>> [number.item() for number in state.average]  # weights 1/3 and 2/3
      [3.0, 30.0]
    """
    if not 0 <= decay < 1:
        raise UsageError(f"update_noise: decay={decay} must be at least 0 and less than 1, such as 0.99")
    given = NoiseEstimate(*(jnp.asarray(number, jnp.float32) for number in estimate))
    average, ema = optax.ema(decay).update(given, state.ema)
    return NoiseState(ema, average)  # pyright: ignore[reportArgumentType]  (optax types both as any tree)


def noise_scale(state: NoiseState) -> jax.Array:
    """The gradient noise scale, in examples: B_simple = average of tr Sigma / average of |G|^2.

    Averaged before dividing, since the ratio of one step's estimates is biased and can have either sign.

    Where the average of |G|^2 is not positive the steps do not tell the gradient from noise, and it is inf; before the
    first step, and where there is neither gradient nor noise, nan.

    Example:
      >>> noise_scale(update_noise(init_noise(), NoiseEstimate(2.0, 10.0), decay=0.5)).item()
      5.0

    Source: McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162, 2018, appendix A.
    """
    norm2, trace = state.average
    unresolved = jnp.where((norm2 <= 0) & (trace > 0), jnp.inf, jnp.nan)
    return jnp.where(norm2 > 0, trace / norm2, unresolved)


def larger_batch(scale: float, batch_size: int) -> str:
    """What twice the batch would do, by the noise scale: S ~ 1 + B_simple / B updates, B S examples.

    Args:
      scale: the noise scale, in examples.
      batch_size: in examples.

    Returns:
      A clause for a person.

    Example:
      >>> larger_batch(100.0, 100)
      'about the batch of 100: twice the batch would take 25% fewer updates and 50% more examples'

    Source: McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162, 2018, section 2.3.
    """
    if not 0 < scale < np.inf:
        return "not told from the noise yet: a batch far larger would still take fewer updates"
    saved = 1 - (1 + scale / (2 * batch_size)) / (1 + scale / batch_size)
    where = "above" if scale > 3 * batch_size else "below" if scale < batch_size / 3 else "about"
    place = f"{where} the batch of {batch_size}" if where == "about" else f"far {where} the batch of {batch_size}"
    return f"{place}: twice the batch would take {saved:.0%} fewer updates and {1 - 2 * saved:.0%} more examples"


def noise_scale_interval(
    estimates: NoiseEstimate | Sequence[NoiseEstimate],
    confidence: float = 0.95,
    seed: int = 0,
    *,
    block: int | None = None,
) -> tuple[float, float]:
    """An interval for the noise scale, the ratio of means, by a block bootstrap over steps.

    Steps that follow each other are alike, so whole blocks of them are drawn (by SciPy's bias-corrected bootstrap, of
    the blocks' means). It is an interval of |G|^2 / tr Sigma, whose denominator is not near 0, and its ends inverted.

    Args:
      estimates: one for each step, in order; or one of arrays of shape (steps,).
      confidence: the share of such intervals that hold the truth.
      seed: of the resampling.
      block: steps of a block; None: the cube root of their number. The first steps that fill no block are left out.

    Returns:
      The ends in examples. One is inf where the steps do not bound the noise scale on that side.

    Raises:
      UsageError: there are fewer than 8 blocks, an estimate is not finite, or tr Sigma is nowhere positive.

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
    if not 0 < confidence < 1 or length < 1 or steps < LEAST_BLOCKS * length:
        raise UsageError(
            f"noise_scale_interval: confidence must be between 0 and 1 and there must be at least {LEAST_BLOCKS} "
            f"blocks; confidence={confidence}, {steps} steps, {length} of them a block. Measure more steps or give "
            "a smaller block"
        )
    if not np.isfinite(values).all() or values[1].max() <= 0:
        raise UsageError(
            "noise_scale_interval: the estimates must be finite and tr Sigma positive in some; there are "
            f"{np.sum(~np.isfinite(values))} that are not finite, and the greatest tr Sigma is {values[1].max()}. "
            "Leave those steps out"
        )
    blocks = steps // length
    means = values[:, steps - blocks * length :].reshape(2, blocks, length).mean(axis=2)

    def inverse_scale(norm2, trace, axis=-1):
        return norm2.mean(axis=axis) / trace.mean(axis=axis)

    if np.all(np.ptp(means, axis=1) == 0):
        # The correction is undefined where nothing varies.
        low = high = inverse_scale(*means)
    else:
        low, high = stats.bootstrap(
            tuple(means),
            inverse_scale,
            paired=True,
            n_resamples=RESAMPLES,
            confidence_level=confidence,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    least, most = (np.inf if end <= 0 else float(1 / end) for end in (high, low))
    return least, most


def _first_axis(shapes: list[tuple[int, ...]]) -> int | None:
    """The size of the first axis, if there is one and all have the same."""
    sizes = {shape[:1] for shape in shapes}
    return sizes.pop()[0] if len(sizes) == 1 and () not in sizes else None


def _widened(a: Any) -> jax.Array:
    return jnp.asarray(a, jnp.promote_types(jnp.result_type(a), jnp.float32))


def _estimate(square_of_mean: Any, spread: Any, shards: int, shard_size: int) -> NoiseEstimate:
    """From |g|^2 and q - |g|^2."""
    return NoiseEstimate(square_of_mean - spread / (shards - 1), shard_size * shards / (shards - 1) * spread)


def _check_shards(shards: int, shard_size: int, *, caller: str) -> None:
    if shards < 2 or shard_size < 1:
        raise UsageError(
            f"{caller}: there must be at least 2 shards of at least 1 example, and there are {shards} of "
            f"{shard_size}. On one device cut the batch into parts and take the gradient of each"
        )
