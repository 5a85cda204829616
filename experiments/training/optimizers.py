"""The optimizers, each with the norm's parameters and the biases left out of decay and of trust ratios."""

import jax
import optax

from experiments._errors import unknown_name

OPTIMIZERS = ("sgd", "nesterov", "lars")


def make(name: str, schedule: optax.Schedule, *, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """An optimizer.

    Args:
      name: 'sgd' (heavy-ball momentum), 'nesterov' or 'lars'.
      schedule: step -> learning rate.
      momentum: of any of them.
      weight_decay: an L2 penalty, added to the gradient, of kernels only.

    Returns:
      An Optax transformation. With 'lars', kernels take the rate times their trust ratio (eta = 0.001), and all
      other parameters the rate itself, as in MLPerf's recipe.

    Raises:
      UsageError: there is no such optimizer.

    Source: Goyal et al., arXiv 1706.02677, 2017 (no decay on norms); You et al., arXiv 1708.03888, 2017 (LARS).
    """
    if name not in OPTIMIZERS:
        raise unknown_name("optimizer", name, OPTIMIZERS)
    if name == "lars":
        return optax.lars(
            schedule,
            weight_decay=weight_decay,
            weight_decay_mask=kernels,
            trust_coefficient=0.001,
            trust_ratio_mask=kernels,
            momentum=momentum,
        )
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=kernels),
        optax.sgd(schedule, momentum=momentum, nesterov=name == "nesterov"),
    )


def kernels(params):
    """A tree of booleans: True for parameters named `kernel`, as Flax names those of convolutions and dense layers."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
