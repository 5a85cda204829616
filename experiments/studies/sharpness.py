"""Measures of how sharp a minimum is: the largest eigenvalue of the Hessian, and the rise of the loss in a box."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax.flatten_util import ravel_pytree

from .._errors import UsageError


class Eigenvalues(NamedTuple):
    """The ends of the spectrum of a Hessian H, in units of the loss per squared unit of the parameters.

    Attributes:
      largest: the largest Ritz value, which is at most the largest eigenvalue.
      smallest: the smallest Ritz value, at least the smallest eigenvalue; it need not have converged.
      residual: |H v - largest v| for the unit vector v found. H has an eigenvalue within this distance of `largest`.
      iterations: the steps of Lanczos taken, each one Hessian-vector product; the residual takes one more.
    """

    largest: float
    smallest: float
    residual: float
    iterations: int


class Sharpness(NamedTuple):
    """The greatest loss found in a box about some parameters.

    Attributes:
      sharpness: 100 (maximum - start) / (1 + start).
      maximum: the greatest loss found.
      start: the loss at the middle of the box.
      iterations: the total iterations of L-BFGS-B over all starts.
      at: the parameters of the maximum.
    """

    sharpness: float
    maximum: float
    start: float
    iterations: int
    at: Any


def largest_eigenvalue(
    loss_fn: Callable[..., Any],
    params: Any,
    batches: Iterable[Any] | None = None,
    *,
    key: jax.Array,
    iterations: int = 50,
    tolerance: float = 1e-4,
) -> Eigenvalues:
    """Finds the largest eigenvalue of the Hessian of a loss, by Lanczos on Hessian-vector products.

    H v is the derivative of the gradient along v, the mean over the batches. Every new vector is orthogonalised against
    all before it, in float64. How a norm takes its statistics is up to `loss_fn`, and is another function for each way:
    with those of the batch H holds derivatives through the statistics, with running ones it does not. Say which.

    Args:
      loss_fn: (params) -> the loss; with `batches`, (params, batch) -> the mean loss of a batch. It is compiled once,
        and kept: let it take data as batches of equal size rather than hold it.
      params: a tree of float32 or float64.
      batches: the data, read several times; the loss is the mean over them.
      key: the random key of the start.
      iterations: at most so many products. So many vectors are kept, of 8 bytes per parameter.
      tolerance: stop once the residual is less than this share of the eigenvalue. The error of the eigenvalue is
        smaller still: at most residual^2 / gap, the gap being the distance to the next one.

    Returns:
      The ends of the spectrum. Not converged where `residual` is large beside `largest`.

    Raises:
      UsageError: `params` holds no number or another dtype, `batches` is empty, `iterations` is less than 1, a product
        is not finite.

    Example:
      >>> found = largest_eigenvalue(lambda x: 2 * x[0] ** 2 - x[1] ** 2, jnp.ones(2), key=jax.random.key(0))
      >>> round(found.largest, 4), round(found.smallest, 4), found.iterations
      (4.0, -2.0, 2)

    Source: Golub and Van Loan, "Matrix Computations", 4th edition, 2013, chapter 10.
    """
    # Not `scipy.sparse.linalg.eigsh`. Of a small trained network it takes 100 to 500 products for both ends, or raises
    # with neither, where 20 of these steps give the largest eigenvalue to 7 digits; it has no bound in products, and
    # fails for a Hessian of zeros and for one parameter. For the largest eigenvalue alone the two agree, in a test.
    if iterations < 1:
        raise UsageError(f"largest_eigenvalue: iterations={iterations} must be at least 1, such as 50")
    flat, unravel = _flatten(params, "largest_eigenvalue")
    args = _arguments(batches, "largest_eigenvalue")

    def product(v: np.ndarray) -> np.ndarray:
        tangent = unravel(jnp.asarray(v, flat.dtype))
        total = np.zeros(flat.shape)
        for one in args:
            total += _host(_hessian_vector_product(loss_fn, params, tangent, *one)) / len(args)
        if not np.isfinite(total).all():
            raise UsageError(
                "largest_eigenvalue: a Hessian-vector product is not finite; the loss must have second derivatives at "
                "these parameters. Look whether the loss itself is finite there"
            )
        return total

    basis = np.empty((min(iterations, flat.size), flat.size))
    diagonal, off = [], []
    v = np.asarray(jax.random.normal(key, flat.shape), np.float64)
    v, ritz, weights = v / np.linalg.norm(v), np.zeros(1), np.ones((1, 1))
    for j in range(len(basis)):
        basis[j] = v
        w = product(v)
        diagonal.append(v @ w)
        # Twice, since what is left after once may be little, and then is not orthogonal to rounding.
        for _ in range(2):
            w -= basis[: j + 1].T @ (basis[: j + 1] @ w)
        ritz, weights = scipy.linalg.eigh_tridiagonal(diagonal, off)
        beta = float(np.linalg.norm(w))
        # Below the second figure there is nothing but the rounding of the product.
        rounding = float(jnp.finfo(flat.dtype).eps) * np.max(np.abs(ritz))
        if beta * abs(weights[-1, -1]) <= max(tolerance * abs(ritz[-1]), rounding):
            break
        off.append(beta)
        v = w / beta
    vector = basis[: len(diagonal)].T @ weights[:, -1]
    residual = np.linalg.norm(product(vector) - ritz[-1] * vector)
    return Eigenvalues(float(ritz[-1]), float(ritz[0]), float(residual), len(diagonal))


def epsilon_sharpness(
    loss_fn: Callable[..., Any],
    params: Any,
    batches: Iterable[Any] | None = None,
    *,
    epsilon: float = 1e-3,
    iterations: int = 10,
    starts: int = 2,
    seed: int = 0,
) -> Sharpness:
    """Measures how much a loss f rises in a small box about the parameters x.

        100 (max f(x + y) - f(x)) / (1 + f(x)),   over |y_i| <= epsilon (|x_i| + 1)

    Every parameter is part of the box, the scales and biases of norms too. How a norm takes its statistics is up to
    `loss_fn`, and is another function for each way: say which. The maximum is that of a few steps of L-BFGS-B, so it
    is a lower bound. The first start is x; every other is a random point of the box, without which an exact minimum,
    where the gradient is 0, would count as flat.

    Args:
      loss_fn: (params) -> the loss; with `batches`, (params, batch) -> the mean loss of a batch. It is compiled once,
        and kept: let it take data as batches of equal size rather than hold it.
      params: a tree of float32 or float64.
      batches: the data, read several times; the loss is the mean over them.
      epsilon: half the width of the box, relative to |x_i| + 1; the paper has 1e-3 and 5e-4.
      iterations: the most iterations of L-BFGS-B per start.
      starts: how often to start.
      seed: the seed of the random starts.

    Returns:
      The sharpness, and where it was found.

    Raises:
      UsageError: `epsilon`, `iterations` or `starts` is not positive, `params` holds no number or another dtype,
        `batches` is empty, the loss is not greater than -1, or not finite somewhere in the box.

    Example:
      >>> found = epsilon_sharpness(lambda x: x @ jnp.array([3.0, -4.0]), jnp.array([1.0, 0.0]), epsilon=0.01)
      >>> round(found.sharpness, 3)  # 100 (3 * 0.02 + 4 * 0.01) / (1 + 3)
      2.5

    Source: Keskar et al., "On Large-Batch Training for Deep Learning: Generalization Gap and Sharp Minima", arXiv
    1609.04836, 2016, metric 2.1 in the full space.
    """
    if not epsilon > 0 or iterations < 1 or starts < 1:
        raise UsageError(
            f"epsilon_sharpness: epsilon={epsilon}, iterations={iterations} and starts={starts} must be positive, such "
            "as 1e-3, 10 and 2"
        )
    flat, unravel = _flatten(params, "epsilon_sharpness")
    args = _arguments(batches, "epsilon_sharpness")
    middle = _host(flat)
    box = epsilon * (np.abs(middle) + 1)

    def loss_and_slope(u: np.ndarray) -> tuple[float, np.ndarray]:
        """Returns the loss at x + box u, and its gradient by u."""
        point = unravel(jnp.asarray(middle + box * u, flat.dtype))
        value, slope = 0.0, np.zeros_like(box)
        for one in args:
            loss, gradient = _value_and_gradient(loss_fn, point, *one)
            value += float(loss) / len(args)
            slope += box * _host(gradient) / len(args)
        if not np.isfinite(value) or not np.isfinite(slope).all():
            where = "at the parameters" if not u.any() else f"in the box of epsilon={epsilon}"
            raise UsageError(
                f"epsilon_sharpness: the loss and its gradient must be finite, and the loss is {value} {where}. "
                "Look at the run, or give a smaller epsilon"
            )
        return value, slope

    start, _ = loss_and_slope(np.zeros_like(middle))
    if start <= -1:
        raise UsageError(f"epsilon_sharpness: the loss must be greater than -1, and is {start}; add a constant to it")
    best, at, steps = start, np.zeros_like(middle), 0
    random = np.random.default_rng(seed)
    for number in range(starts):
        u = np.zeros_like(middle) if number == 0 else random.uniform(-1, 1, middle.shape)
        found, reached, taken = _ascend(loss_and_slope, u, iterations)
        steps += taken
        if found > best:
            best, at = found, reached
    maximum = unravel(jnp.asarray(middle + box * at, flat.dtype))
    return Sharpness(100 * (best - start) / (1 + start), best, start, steps, maximum)


def _ascend(loss_and_slope: Callable, u: np.ndarray, iterations: int) -> tuple[float, np.ndarray, int]:
    """Climbs by L-BFGS-B from `u` in the box of -1 to 1; returns the greatest loss, its place, and the iterations."""
    first, slope = loss_and_slope(u)
    # Its first step is the gradient, cut at the box, and its tolerances are absolute where the loss is less than 1: in
    # the units of the loss it would stop where a network that is trained well starts. In these the step reaches the
    # box in every parameter.
    unit = 1e-3 * float(np.mean(np.abs(slope)))
    if unit == 0:
        return first, u, 0

    def descent(u: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = loss_and_slope(u)
        return (first - value) / unit, -slope / unit

    bounds = [(-1, 1)] * u.size
    found = scipy.optimize.minimize(
        descent, u, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": iterations}
    )
    return first - unit * float(found.fun), found.x, int(found.nit)


@functools.partial(jax.jit, static_argnums=0)
def _hessian_vector_product(loss_fn, params, tangent, *batch):
    return ravel_pytree(jax.jvp(lambda p: jax.grad(loss_fn)(p, *batch), (params,), (tangent,))[1])[0]


@functools.partial(jax.jit, static_argnums=0)
def _value_and_gradient(loss_fn, params, *batch):
    value, gradient = jax.value_and_grad(loss_fn)(params, *batch)
    return value, ravel_pytree(gradient)[0]


def _host(a: jax.Array) -> np.ndarray:
    """Returns an array in float64, waited for: collectives of fake devices dispatched ahead can block each other."""
    return np.asarray(a, np.float64)


def _flatten(params: Any, caller: str) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    dtypes = {str(jnp.result_type(leaf)) for leaf in jax.tree.leaves(params)}
    flat, unravel = ravel_pytree(params)
    if not flat.size or len(dtypes) > 1 or not dtypes <= {"float32", "float64"}:
        raise UsageError(
            f"{caller}: the parameters must be float32 or float64, all the same, and at least one; they are "
            f"{flat.size} of {', '.join(sorted(dtypes)) or 'no dtype'}. Cast them: jax.tree.map(jnp.float32, params)"
        )
    return flat, unravel


def _arguments(batches: Iterable[Any] | None, caller: str) -> list[tuple]:
    """Returns the arguments of the loss after the parameters, for every batch."""
    args = [()] if batches is None else [(batch,) for batch in batches]
    if not args:
        raise UsageError(f"{caller}: there are no batches; give at least one, or None for a loss that takes none")
    return args
