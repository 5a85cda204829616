"""The optimizers, each with the norm's parameters and the biases left out of decay and of trust ratios."""

from collections.abc import Callable

import jax
import optax

from experiments._errors import unknown_name

LARS_TRUST_COEFFICIENT = 0.001


def _sgd(schedule, momentum, weight_decay, decays, nesterov=False):
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decays),
        optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
    )


def _nesterov(schedule, momentum, weight_decay, decays):
    return _sgd(schedule, momentum, weight_decay, decays, nesterov=True)


def _lars(schedule, momentum, weight_decay, decays):
    return optax.lars(
        schedule,
        weight_decay=weight_decay,
        weight_decay_mask=decays,
        trust_coefficient=LARS_TRUST_COEFFICIENT,
        trust_ratio_mask=kernels,
        momentum=momentum,
    )


def _lamb(schedule, momentum, weight_decay, decays):
    # As optax.lamb, which has no mask for the trust ratio.
    return optax.chain(
        optax.scale_by_adam(b1=momentum, b2=0.999, eps=1e-6),
        optax.add_decayed_weights(weight_decay, mask=decays),
        optax.masked(optax.scale_by_trust_ratio(), kernels),
        optax.scale_by_learning_rate(schedule),
    )


def _adamw(schedule, momentum, weight_decay, decays):
    return optax.adamw(schedule, b1=momentum, b2=0.999, weight_decay=weight_decay, mask=decays)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": _sgd,
    "nesterov": _nesterov,
    "lars": _lars,
    "lamb": _lamb,
    "adamw": _adamw,
}
# The whole training set a step, each step's length found by a line search: see `full_batch`.
FULL_BATCH = "lbfgs"
NAMES = (*OPTIMIZERS, FULL_BATCH)
# Of these the rate has no counterpart in SGD's: the rule of scaling it linearly was made for the latter.
ADAPTIVE = ("lamb", "adamw")


def make(
    name: str, schedule: optax.Schedule, *, momentum: float, weight_decay: float, decay_all: bool = False
) -> optax.GradientTransformation:
    """An optimizer.

    Args:
      name: a key of `OPTIMIZERS`: 'sgd' (heavy-ball momentum), 'nesterov', 'lars', 'lamb' or 'adamw'.
      schedule: step -> learning rate.
      momentum: of the gradient; Adam's b1 in 'lamb' and 'adamw' (their b2 is 0.999).
      weight_decay: of kernels only. With 'sgd', 'nesterov' and 'lars' an L2 penalty, added to the gradient;
        with 'lamb' and 'adamw' added to Adam's step.
      decay_all: have norm parameters and biases decay too.

    Returns:
      An Optax transformation. With 'lars' and 'lamb', kernels take the rate times their trust ratio (with LARS's eta
      = 0.001), and all other parameters the rate itself, as in MLPerf's recipe.

    Raises:
      UsageError: there is no such optimizer.

    Source: Goyal et al., arXiv 1706.02677, 2017 (no decay on norms); You et al., arXiv 1708.03888, 2017 (LARS); You
    et al., arXiv 1904.00962, 2019 (LAMB); Loshchilov and Hutter, arXiv 1711.05101, 2017 (AdamW).
    """
    if name not in OPTIMIZERS:
        raise unknown_name("optimizer", name, NAMES)
    return OPTIMIZERS[name](schedule, momentum, weight_decay, None if decay_all else kernels)


def kernels(params):
    """A tree of booleans: True for parameters named `kernel`, as Flax names those of convolutions and dense layers.

    Example:
      >>> kernels({"dense": {"kernel": 1.0, "bias": 2.0}, "weights": [3.0, 4.0]})
      {'dense': {'bias': False, 'kernel': True}, 'weights': [False, False]}
    """

    def is_kernel(path, _):
        # The last name: below it there may be places in a list, or the box of `nn.with_partitioning`.
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return bool(names) and names[-1] == "kernel"

    return jax.tree_util.tree_map_with_path(is_kernel, params)
