"""The models that the experiments train. Each takes its norm as an argument."""

from collections.abc import Callable

from flax import linen as nn

from experiments._errors import unknown_name
from experiments.models.simple_cnn import SimpleCNN

MODELS: dict[str, Callable[..., nn.Module]] = {"simple_cnn": SimpleCNN}


def create(name: str, **arguments) -> nn.Module:
    """The model of that name.

    Args:
      name: a key of `MODELS`.
      **arguments: `num_classes`, `norm` and `dtype`.

    Returns:
      A module called as `module(images, train=..., mask=...)`.

    Raises:
      UsageError: there is no such model; the message lists those there are.
    """
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    return MODELS[name](**arguments)
