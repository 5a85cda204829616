"""Models as users write them: models with other signatures, which train unchanged, and invalid models."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

import batchnorm_jax.linen


def flat(images):
    return images.reshape(len(images), -1)


class Flax(nn.Module):
    """A model with Flax's own norms, as in Flax's imagenet example: it accepts neither `norm` nor `mask`."""

    num_classes: int
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool = True):
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
        x = nn.relu(norm(name="bn_init")(nn.Dense(16)(flat(x))))
        return nn.Dense(self.num_classes)(x)


class Ours(nn.Module):
    """A model with norms of batchnorm_jax that have no `axis_name`."""

    num_classes: int
    kind: Any = batchnorm_jax.linen.BatchNorm

    @nn.compact
    def __call__(self, x, train: bool = True):
        x = nn.relu(self.kind(use_running_average=not train, momentum=0.9)(nn.Dense(16)(flat(x))))
        return nn.Dense(self.num_classes)(x)


class Bound(nn.Module):
    """A model that sets its own `axis_name` and uses other argument names, as in image-classification-jax."""

    n_classes: int

    @nn.compact
    def __call__(self, x, is_training: bool = True):
        x = nn.BatchNorm(use_running_average=not is_training, axis_name="batch")(nn.Dense(16)(flat(x)))
        return nn.Dense(self.n_classes)(nn.relu(x))


class ByMutability(nn.Module):
    """A model that trains whenever its statistics are mutable, as in jax-resnet."""

    n_classes: int

    @nn.compact
    def __call__(self, x):
        mutable = self.is_mutable_collection("batch_stats")
        x = nn.BatchNorm(use_running_average=not mutable)(nn.Dense(16)(flat(x)))
        return nn.Dense(self.n_classes)(nn.relu(x))


class Dropped(nn.Module):
    """A model with dropout whose call takes `deterministic`, the opposite of `train`."""

    num_classes: int

    @nn.compact
    def __call__(self, x, *, deterministic):
        x = nn.Dropout(0.5, deterministic=deterministic)(nn.relu(nn.Dense(16)(flat(x))))
        return nn.Dense(self.num_classes)(x)


class Listed(nn.Module):
    """A model with parameters in a list and in boxes."""

    num_classes: int

    @nn.compact
    def __call__(self, x, *, train, mask=None):
        x = flat(x)
        widths = [(x.shape[-1], 8), (8, 8)]
        a, b = self.param("ws", lambda key: [jax.random.normal(key, shape) / 8 for shape in widths])
        init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, None))
        return nn.Dense(self.num_classes, kernel_init=init)(nn.relu(x @ a) @ b)


class Spectral(nn.Module):
    """A model that keeps statistics of its parameters, not of the batch."""

    num_classes: int

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.relu(nn.SpectralNorm(nn.Dense(16))(flat(x), update_stats=train))
        return nn.Dense(self.num_classes)(x)


class Recurrent(nn.Module):
    """A model that scans over rows with a carry that starts at zero."""

    num_classes: int
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, x, *, train):
        states: Any = nn.RNN(nn.LSTMCell(8, param_dtype=self.dtype))(x[..., 0])
        return nn.Dense(self.num_classes)(states[:, -1])


def by_place(num_classes, /):
    return Flax(num_classes)


def wrapper(*args):
    return Flax(*args)


def sequential(num_classes):
    return nn.Sequential([flat, nn.Dense(8), nn.relu, nn.Dense(num_classes)])


WORK = {
    "flax": Flax,
    "bound": Bound,
    "ours": Ours,
    "renormed": partial(Ours, kind=batchnorm_jax.linen.BatchRenorm),
    "by_mutability": ByMutability,
    "dropped": Dropped,
    "listed": Listed,
    "sequential": sequential,
}
globals().update(WORK)


class Wrong(nn.Module):
    """A model with one error.

    Attributes:
      num_classes: the number of classes.
      what: the error.
    """

    num_classes: int
    what: str

    @nn.compact
    def __call__(self, x, *, train, mask=None):
        y = nn.Dense(self.num_classes)(flat(x))
        if self.what == "pair":
            return y, y
        if self.what == "one_answer":
            return y.mean(0, keepdims=True)
        if self.what == "whole_numbers":
            return jnp.argsort(y)
        if self.what == "constant":
            return np.zeros((len(x), self.num_classes), np.float32)
        if self.what == "too_large":
            return nn.Dense(self.num_classes)(nn.Dense(10**12)(y))
        if self.what == "exits":
            raise SystemExit(3)
        if self.what == "collection":
            self.variable("ema", "mean", jnp.zeros, ()).value += 1.0
        if self.what == "copied_norm":
            mean = self.variable("batch_stats", "mean", jnp.zeros, y.shape[-1:])
            if train:
                mean.value = 0.9 * mean.value + 0.1 * y.mean(0)
            return y - mean.value[None]
        if self.what == "always_training":
            return nn.BatchNorm(use_running_average=False)(y)
        if self.what == "fails_in_training" and train:
            return oops(y)
        return y


def oops(y):
    raise KeyError(f"no such thing as {y.shape}")


class Bare(nn.Module):
    """A model without parameters."""

    num_classes: int

    def __call__(self, x, *, train, mask=None):
        return flat(x)[:, : self.num_classes]


class Asks(nn.Module):
    """A model whose call needs one more argument."""

    num_classes: int

    @nn.compact
    def __call__(self, x, temperature, *, train):
        return nn.Dense(self.num_classes)(flat(x)) / temperature


def a_class(num_classes, norm, dtype):
    return Flax


def fails(num_classes, norm, dtype):
    return {}["missing"]


def wants_more(num_classes, depth):
    return Flax(num_classes)


def of_nnx(num_classes):
    return nnx.Linear(3, num_classes, rngs=nnx.Rngs(0))


def nothing(**arguments):
    return None


class Uncalled(nn.Module):
    """A model with the method of another library's models in place of `__call__`."""

    num_classes: int

    def forward(self, x):
        return nn.Dense(self.num_classes)(flat(x))


_WRONG = ("pair", "one_answer", "collection", "copied_norm", "always_training", "fails_in_training")
for _what in (*_WRONG, "constant", "whole_numbers", "too_large", "exits"):
    globals()[_what] = partial(Wrong, what=_what)

# Patterns of the errors, by the name of the model.
REFUSED = {
    "by_place": r"num_classes, norm and dtype by name, .* takes num_classes by position only",
    "wrapper": r"num_classes, norm and dtype by name, .* takes \*args by position only",
    "pair": r"returns logits in a tuple for 2 images",
    "one_answer": r"returns logits of shape \(1, 3\) for 2 images .* array of shape \(2, 3\)",
    "whole_numbers": r"returns logits of type int32, and the loss needs floating-point numbers",
    "constant": r"returns a NumPy array, which is the same for any images and parameters",
    "too_large": r"the parameters of --model=\S+ alone need 26,\d+.\d GiB, and the device has",
    "exits": r"its call in evaluation raised SystemExit: 3",
    "Uncalled": r"the Uncalled that it returned has no __call__",
    "collection": r"keeps variables in ema, .* only the collections params and batch_stats",
    "copied_norm": r"the statistics mean must be equal on all devices and are not, as with a norm that does not pool",
    "always_training": r"its call in evaluation raised ModifyScopeVariableError",
    "fails_in_training": r"its training step raised KeyError: .*no such thing as \(8, 3\).*\n.*users.py.*oops\(y\)",
    "Bare": r"has no parameters to train",
    "Asks": r"its call asks for temperature too",
    "a_class": r"returned the class Flax; call it",
    "fails": r"the factory raised KeyError: 'missing'\n.*users.py.*in fails",
    "wants_more": r"asks for depth too",
    "of_nnx": r"a module of flax.nnx, which is not trained here",
    "nothing": r"it returned a NoneType",
}
