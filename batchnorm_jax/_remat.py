"""A checkpoint policy that keeps the input of each norm and computes the normalised values again."""

from typing import Any

import jax
from jax.extend import core

from batchnorm_jax._core import INPUT_NAME, STATISTICS_NAME

_POLICY = jax.checkpoint_policies.save_only_these_names(INPUT_NAME, STATISTICS_NAME)


def save_norm_inputs(primitive: core.Primitive, *arguments: Any, **parameters: Any) -> bool:
    """Keeps the input and the statistics of every norm for the backward pass, and nothing else.

    It is a policy for `jax.checkpoint`, `flax.linen.remat` and `flax.nnx.remat`. A convolution's output goes into its
    norm, and the norm's output, normalised and activated, goes into the next convolution, which needs it for the
    gradient of its kernel. JAX keeps both: two arrays per convolution. With this policy it keeps only the first, and
    computes the second from it again in the backward pass, elementwise, with no collective and no convolution.

    Apply it to parts of a network, such as stages, not to the whole: all values that a part computes again are in
    memory at the same time. A part's input is kept, so the last norm of the part before need not keep its own input:
    give that norm `save_for_backward="nothing"`. docs/guide/memory.md shows where to cut.

    How much memory it saves depends on the compiler, which may compute the second array again by itself. A ResNet-50
    train step in bfloat16, batch 128 per device, compiled for four devices, against Flax's norm without the policy
    (`experiments.benchmark --suite=norm --topology=... --parts=resnet50`): for a TPU v5e, in five parts, 0.59 of its
    temporary memory at 1.08 of its estimated cycles; around the whole model 0.79 at 1.06. For an H100 it takes more,
    1.11 times the memory in parts. Compile your own step and look at `memory_analysis()` before you rely on it.

    A part without a norm is computed again as a whole, so leave costly parts that have no norm, such as attention, out
    of the checkpointed function.

    Args:
      primitive: the operation that JAX asks about.
      *arguments: the operation's arguments.
      **parameters: the operation's parameters.

    Returns:
      Whether the operation's result is kept.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from batchnorm_jax import save_norm_inputs
      >>> from batchnorm_jax.linen import BatchNorm
      >>> class Block(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         x = nn.Dense(4)(x)
      ...         return nn.relu(BatchNorm(use_running_average=False)(x))
      >>> block = nn.remat(Block, policy=save_norm_inputs)()
      >>> variables = block.init(jax.random.key(0), jnp.ones((8, 3)))

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174, 2016, section 4.
    """
    return _POLICY(primitive, *arguments, **parameters)
