"""A convolution followed by a max-pool, with a fast implementation for each kind of device."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from .layout import CHWN, NHWC, Layout

POOL_SIZE = 2


class ConvMaxPool(nn.Module):
    """A convolution without padding, then a max-pool over blocks of 2 x 2, then a bias.

    The bias is added after the pooling, which gives the same result as before it, with a quarter of the additions.

    Attributes:
      features: the number of output features.
      kernel_size: the height and the width of the kernel.
      layout: the order of the axes of the input and the output.
      use_bias: whether to add a bias, which has no effect before a norm.
      dtype: the compute dtype.
    """

    features: int
    kernel_size: tuple[int, int]
    layout: Layout
    use_bias: bool = True
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, C), in the order of `layout`, to (N, (H - kh + 1) // 2, (W - kw + 1) // 2, features)."""
        shape = (*self.kernel_size, x.shape[self.layout.feature_axis], self.features)
        kernel = self.param("kernel", nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"), shape)
        y = conv_max_pool(x.astype(self.dtype), kernel.astype(self.dtype), self.layout)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + jnp.expand_dims(bias.astype(self.dtype), [i for i in range(4) if i != self.layout.feature_axis])
        return y


def conv_max_pool(x: jax.Array, kernel: jax.Array, layout: Layout) -> jax.Array:
    """Computes a convolution without padding, then the maximum over blocks of 2 x 2.

    Args:
      x: the activations, whose axes are in the order of `layout`.
      kernel: the kernel, shape (height, width, input features, output features).
      layout: the layout, which chooses the implementation. NHWC runs the two operations of `lax`, which suits a GPU or
        a TPU. CHWN runs one matrix product, which is several times faster on a CPU, where XLA's convolutions are slow
        (jax issue 12868).

    Returns:
      The activations in the same layout; an odd last row or column of the convolution is dropped.

    Raises:
      ValueError: the layout is neither NHWC nor CHWN.

    Example:
      >>> import jax.numpy as jnp
      >>> conv_max_pool(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), NHWC).ravel()
      Array([9.], dtype=float32)
    """
    if layout == NHWC:
        y = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return nn.max_pool(y, (POOL_SIZE, POOL_SIZE), (POOL_SIZE, POOL_SIZE))
    if layout == CHWN:
        return _conv_max_pool_chwn(x, kernel)
    raise ValueError(f"conv_max_pool: no implementation for the layout {layout.name}; there are NHWC and CHWN")


def _conv_max_pool_chwn(x, kernel):
    """Computes the 2 x 2 outputs of each pool from the patch of input that they share, all in one matrix product.

    The shared patch of k + 1 rows and columns holds (k + 1)^2 numbers, while the four patches of a plain im2col hold
    4 k^2. So less is copied, at the price of (k + 1)^2 / k^2 times the arithmetic. The pool becomes the maximum of four
    slices.
    """
    channels, height, width, examples = x.shape
    kh, kw, _, features = kernel.shape
    rows, columns = (height - kh + 1) // POOL_SIZE, (width - kw + 1) // POOL_SIZE
    ph, pw = kh + POOL_SIZE - 1, kw + POOL_SIZE - 1

    def every_patch(i, j):
        limit = (channels, i + (rows - 1) * POOL_SIZE + 1, j + (columns - 1) * POOL_SIZE + 1, examples)
        return lax.slice(x, (0, i, j, 0), limit, (1, POOL_SIZE, POOL_SIZE, 1))

    patches = jnp.stack([jnp.stack([every_patch(i, j) for j in range(pw)], axis=1) for i in range(ph)], axis=1)
    patches = patches.reshape(channels * ph * pw, rows * columns * examples)
    # The kernel, padded with zeros, at each of its four places in a patch.
    places = jnp.stack(
        [
            jnp.pad(kernel, ((i, POOL_SIZE - 1 - i), (j, POOL_SIZE - 1 - j), (0, 0), (0, 0)))
            for i in range(POOL_SIZE)
            for j in range(POOL_SIZE)
        ]
    )
    weights = places.transpose(0, 4, 3, 1, 2).reshape(POOL_SIZE * POOL_SIZE * features, channels * ph * pw)
    y = (weights @ patches).reshape(POOL_SIZE * POOL_SIZE, features, rows, columns, examples)
    # Maxima are nested because the gradient of jnp.max over an axis is slow on a CPU (comparisons and a count).
    return jnp.maximum(jnp.maximum(y[0], y[1]), jnp.maximum(y[2], y[3]))
