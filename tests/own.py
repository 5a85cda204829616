"""A model and data sets such as a user would write, which the tests give by name, as in `tests.own:model`."""

import os

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.nn.initializers import ones, zeros

from experiments.models.simple_cnn import SimpleCNN
from tests import rig


class Model(nn.Module):
    """Two dense layers with a norm between them."""

    num_classes: int
    norm: object
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, images, *, train, mask=None):
        x = images.reshape(images.shape[0], -1).astype(self.dtype)
        x = nn.Dense(16, use_bias=self.norm is None, dtype=self.dtype, name="first")(x)
        if self.norm is not None:
            x = self.norm(axis=-1)(x, use_running_average=not train, mask=None if mask is None else mask[:, None])
        return nn.Dense(self.num_classes, dtype=self.dtype)(nn.relu(x)).astype(jnp.float32)


def plain_norm(axis):
    """Returns the textbook norm in training mode, without running statistics."""
    del axis

    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x, *, use_running_average, mask=None):
            scale, bias = (self.param(n, i, x.shape[-1:]) for n, i in (("scale", ones), ("bias", zeros)))
            mean, var = jnp.mean(x, 0, keepdims=True), jnp.var(x, 0, keepdims=True)
            return (x - mean) / jnp.sqrt(var + 1e-5) * scale[None] + bias[None]

    return Norm(name="BatchNorm_0")


def own_norm(num_classes, norm, dtype):
    """Returns a model whose norm is of a class that nobody knows."""
    del norm

    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x, *, use_running_average, mask=None):
            mean = self.variable("batch_stats", "centre", jnp.zeros, x.shape[-1:])
            if not use_running_average and not self.is_initializing():
                mean.value = 0.9 * mean.value + 0.1 * jnp.mean(x, 0)
            return x - mean.value[None]

    return Model(num_classes, lambda axis: Norm(), dtype)


def model(num_classes, norm, dtype):
    return Model(num_classes, norm, dtype)


def double_precision_cnn(num_classes, norm, dtype):
    del dtype
    return SimpleCNN(num_classes, norm, dtype=jnp.dtype("float64"))


def dataset():
    return rig.tiny()


def larger():
    return rig.tiny(examples=256)


def many():
    """Returns a training set of realistic size, 48 batches of 512 per epoch, with little to evaluate."""
    made = rig.tiny(examples=24_576, size=28, classes=10)
    return made._replace(test={"test": made.train.read(np.arange(512))})


def number():
    return 3


def floats():
    made = rig.tiny()
    return made._replace(train=made.train._replace(images=made.train.images.astype("float32")))


def few_classes():
    return rig.tiny()._replace(num_classes=2)


def fatal():
    """Ends the process in a way that cannot be caught, as XLA sometimes does."""
    os._exit(7)


def size_of_summary(workdir):
    return (workdir / "summary.json").stat().st_size


def fails(workdir):
    raise ValueError("not today")
