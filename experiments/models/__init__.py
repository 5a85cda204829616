"""The models that the experiments train, each declared once, as a record of `MODELS`; the norm is an argument."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from flax import linen as nn

from .. import _users
from .._variants import Register
from . import users
from .alexnet import AlexNetBN
from .fcn import FCN
from .resnet import resnet18, resnet18_narrow, resnet50
from .resnet9 import ResNet9
from .simple_cnn import SimpleCNN


@dataclass(frozen=True)
class Model:
    """A model, and the properties that other code needs to know.

    Attributes:
      name: the value of `--model`.
      help: a phrase for the help of the flag.
      make: a function that makes the module from `num_classes`, `norm` and `dtype`.
      residual: whether the model has residual blocks, so that `make` also takes `zero_last_scale`.
      per_pixel: whether the model gives one class per pixel (segmentation) or one class per image.
      pools_before_norm: whether the norms follow a max-pool, after which convolutions add their bias, so that a norm
        with positive scale can be folded into the convolution before the pool.
    """

    name: str
    help: str
    make: Callable[..., nn.Module]
    residual: bool = False
    per_pixel: bool = False
    pools_before_norm: bool = False


MODELS = Register(
    "model",
    Model("alexnet_bn", "AlexNet with a norm, images of at least 63x63", AlexNetBN),
    Model("fcn", "segmentation: one class per pixel", FCN, per_pixel=True),
    Model("resnet18", "18 layers, with a small stem for small images", resnet18, residual=True),
    Model(
        "resnet18_narrow",
        "resnet18 with a quarter of its features and the stem of large images",
        resnet18_narrow,
        residual=True,
    ),
    Model("resnet50", "50 layers with bottlenecks", resnet50, residual=True),
    Model("resnet9", "9 layers, fast on small images of at least 8x8", ResNet9),
    Model("simple_cnn", "three convolutions for digits, images of at least 28x28", SimpleCNN, pools_before_norm=True),
)


def check_name(flag: str, name: str) -> None:
    """Checks, without an import, that a name is in `MODELS` or has the form `package.module:factory`.

    Args:
      flag: the name of the flag, for the message.
      name: the value of the flag.

    Raises:
      UsageError: the name is neither; the message names the flag and lists the models.
    """
    if name not in MODELS and not _users.is_users_own(name):
        raise MODELS.unknown(name, hint=f" Or name a factory of your own: --{flag}=package.module:factory.")


def is_residual(name: str) -> bool:
    """Returns whether a model has residual blocks that `zero_last_scale` applies to; False for a user's own model."""
    return name in MODELS and MODELS[name].residual


def create(name: str, *, zero_last_scale: bool = True, **arguments) -> nn.Module:
    """Makes the model with a name.

    Args:
      name: a name in `MODELS`; or a factory of the user's own, "package.module:factory", which receives the arguments
        that its signature takes.
      zero_last_scale: whether residual blocks start as the identity; models without residual blocks ignore it.
      **arguments: `num_classes`, `norm` (a `models.normalised.NormFactory`, or None) and `dtype`, the compute dtype.

    Returns:
      A module called as `module(images, train=..., mask=...)`, with images of shape (N, H, W, channels) and a mask of
      shape (N,). Its logits are float32, of shape (N, num_classes), or (N, H, W, num_classes) for segmentation.

    Raises:
      UsageError: the name is not known, and the message lists the models; or the user's factory does not make a model.
    """
    if _users.is_users_own(name):
        return users.model(name, **{"norm": None, "dtype": jnp.dtype("float32"), **arguments})
    check_name("model", name)
    if is_residual(name):
        arguments["zero_last_scale"] = zero_last_scale
    return MODELS[name].make(**arguments)
