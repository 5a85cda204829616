"""Running statistics that average over batches only: their initial values have no weight."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from batchnorm_jax import Moments, update_running
from batchnorm_jax.linen import BatchNorm

# Early in training, when parameters move fast, statistics average over the last tenth of the updates, until that is
# longer than the average of the momentum.
WINDOW_DIVISOR = 10


class Momentum(NamedTuple):
    """The momentum of running statistics once training is under way.

    Attributes:
      full: the momentum for a full batch of the run.
      own: the momentum for this batch, which may be an epoch's last, smaller batch or a batch of a ramp.
    """

    full: float
    own: float

    def after(self, updates: jax.Array) -> jax.Array:
        """Returns the momentum of the next update: running = momentum running + (1 - momentum) batch.

        With m the full momentum, a full batch has the weight max(1 - m, 10 / (10 + updates)) in the new average. The
        first batch has the whole weight, so nothing of the initial values 0 and 1 is left. Then the average is over the
        last tenth of the updates, until m averages over fewer. A smaller batch has proportionally less weight.

        Args:
          updates: the number of updates of the statistics so far.

        Example:
          >>> import jax.numpy as jnp
          >>> momentum = Momentum(full=0.9, own=0.9)
          >>> [round(float(momentum.after(jnp.int32(n))), 2) for n in (0, 10, 90, 1000)]
          [0.0, 0.5, 0.9, 0.9]

        Source: the window of TensorFlow's `ExponentialMovingAverage`, (1 + updates) / (10 + updates), whose first
        update, however, keeps a tenth of the initial value.
        """
        early = (1 - self.own) / (1 - self.full) * WINDOW_DIVISOR / (WINDOW_DIVISOR + updates)
        share = jnp.minimum(jnp.maximum(1 - self.own, early), 1.0)
        return 1 - jnp.where(updates == 0, 1.0, share)


def average(
    running: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], momentum: jax.Array
) -> dict[str, jax.Array]:
    """Returns a norm's running mean and variance after a batch.

    A feature whose mean and variance the batch left unchanged keeps both to the bit.

    Args:
      running: the "mean" and "var" before the batch.
      batch: the "mean" and "var" of the batch.
      momentum: the share of the running statistics that is kept.
    """
    # A feature for which the batch had no position reports its running statistics as those of the batch.
    counted = (batch["mean"] != running["mean"]) | (batch["var"] != running["var"])
    moments = Moments(batch["mean"], batch["var"], counted.astype(jnp.int32))
    mean, var = update_running(running["mean"], running["var"], moments, momentum=momentum)
    return {"mean": mean, "var": var}


@contextlib.contextmanager
def averaged(momentum: jax.Array | None) -> Iterator[None]:
    """Makes `batchnorm_jax` norms that are called inside this context average by this momentum in place of their own.

    Args:
      momentum: the momentum, which may be traced; None: the statistics of the batch replace the running ones.
    """
    # The norms that are running: a subclass calls the method that it overrides, which must not be intercepted again.
    running: list[nn.Module] = []

    def interceptor(next_function, args, kwargs, context: nn.module.InterceptorContext):
        norm: Any = context.module
        called = isinstance(norm, BatchNorm) and context.method_name == "__call__"
        if not called or norm.is_initializing() or any(norm is other for other in running):
            return next_function(*args, **kwargs)
        if norm.momentum != 0:
            return norm.clone(momentum=0.0, parent=norm.scope)(*args, **kwargs)
        scope: Any = norm.scope
        before = {name: scope.get_variable("batch_stats", name) for name in ("mean", "var")}
        running.append(norm)
        try:
            y = next_function(*args, **kwargs)
        finally:
            running.pop()
        batch = {name: scope.get_variable("batch_stats", name) for name in before}
        if momentum is not None and any(batch[name] is not before[name] for name in before):
            for name, value in average(before, batch, momentum).items():
                scope.put_variable("batch_stats", name, value)
        return y

    with nn.intercept_methods(interceptor):
        yield
