"""The models that the experiments train. Each takes its norm as an argument."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn

from experiments import _users
from experiments._errors import unknown_name
from experiments.models import users
from experiments.models.alexnet import AlexNetBN
from experiments.models.fcn import FCN
from experiments.models.resnet import resnet18, resnet50
from experiments.models.simple_cnn import SimpleCNN

MODELS: dict[str, Callable[..., nn.Module]] = {
    "alexnet_bn": AlexNetBN,
    "fcn": FCN,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "simple_cnn": SimpleCNN,
}
RESIDUAL = ("resnet18", "resnet50")


def check_name(flag: str, name: str) -> None:
    """Refuses what is neither a key of `MODELS` nor of the form `package.module:factory`; imports nothing.

    Raises:
      UsageError: the message names the flag and lists the models.
    """
    if name not in MODELS and not _users.is_users_own(name):
        raise unknown_name(
            "model", name, MODELS, hint=f" Or name a factory of your own: --{flag}=package.module:factory."
        )


def create(name: str, *, zero_last_scale: bool = True, **arguments) -> nn.Module:
    """The model of that name.

    Args:
      name: a key of `MODELS`; or a factory of one's own, "package.module:factory", that takes those of the arguments
        that its signature has.
      zero_last_scale: start residual blocks as the identity, in the models that have them.
      **arguments: `num_classes`, `norm` (as `models.normalised.NormFactory`, or None) and `dtype`, of the computation.

    Returns:
      A module called as `module(images, train=..., mask=...)`, with images of shape (N, H, W, channels) and a mask of
      shape (N,). Its logits are float32, of shape (N, num_classes), or (N, H, W, num_classes) for segmentation.

    Raises:
      UsageError: there is no such model; the message lists those there are. Or the user's factory does not give one.
    """
    if _users.is_users_own(name):
        return users.model(name, **{"norm": None, "dtype": jnp.dtype("float32"), **arguments})
    check_name("model", name)
    if name in RESIDUAL:
        arguments["zero_last_scale"] = zero_last_scale
    return MODELS[name](**arguments)
