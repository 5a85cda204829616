"""The optimizers, each one declared record of `OPTIMIZERS`; norm parameters and biases neither decay nor get ratios."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import optax

from ..._variants import Register

LARS_TRUST_COEFFICIENT = 0.001
# Pairs of steps and gradients that L-BFGS keeps.
LBFGS_PAIRS = 10


class Settings(NamedTuple):
    """The values from which an optimizer is made.

    Attributes:
      schedule: step -> learning rate.
      momentum: the momentum of the gradient; Adam's b1.
      weight_decay: the decay of the parameters that decay.
      decays: parameters -> a tree of booleans, True for those that decay; None: all do.
    """

    schedule: optax.Schedule
    momentum: float
    weight_decay: float
    decays: Callable[[Any], Any] | None


@dataclass(frozen=True)
class Optimizer:
    """An optimizer, and what other code must know of it.

    Attributes:
      name: the value of `--optimizer`.
      help: a phrase for the help of the flag.
      make: makes the Optax transformation.
      base_rate: the default peak rate at the reference batch size, for `simple_cnn`.
      scaling: the default of `--lr_scaling`.
      momentum_based: SGD with momentum, for which the linear rule and the usual rates were made.
      adaptive: the rate has no counterpart in SGD's, so that the linear rule does not apply.
      trust_ratio: kernels take the rate times their trust ratio, and all other parameters the rate itself.
      full_batch: each step is over the whole training set, and a line search finds its length.
    """

    name: str
    help: str
    make: Callable[[Settings], optax.GradientTransformation]
    base_rate: float
    scaling: Literal["linear", "sqrt", "none"]
    momentum_based: bool = False
    adaptive: bool = False
    trust_ratio: bool = False
    full_batch: bool = False


def _sgd(settings: Settings, nesterov: bool) -> optax.GradientTransformation:
    return optax.chain(
        optax.add_decayed_weights(settings.weight_decay, mask=settings.decays),
        optax.sgd(settings.schedule, momentum=settings.momentum, nesterov=nesterov),
    )


def _lars(settings: Settings) -> optax.GradientTransformation:
    return optax.lars(
        settings.schedule,
        weight_decay=settings.weight_decay,
        weight_decay_mask=settings.decays,
        trust_coefficient=LARS_TRUST_COEFFICIENT,
        trust_ratio_mask=kernels,
        momentum=settings.momentum,
    )


def _lamb(settings: Settings) -> optax.GradientTransformation:
    # Equal to optax.lamb, which has no mask for the trust ratio.
    return optax.chain(
        optax.scale_by_adam(b1=settings.momentum, b2=0.999, eps=1e-6),
        optax.add_decayed_weights(settings.weight_decay, mask=settings.decays),
        optax.masked(optax.scale_by_trust_ratio(), kernels),
        optax.scale_by_learning_rate(settings.schedule),
    )


def _adamw(settings: Settings) -> optax.GradientTransformation:
    schedule, momentum, weight_decay, decays = settings
    return optax.adamw(schedule, b1=momentum, b2=0.999, weight_decay=weight_decay, mask=decays)


def _lbfgs(settings: Settings) -> optax.GradientTransformation:
    # Its line search finds the rate, and the objective holds the penalty: see `step.full_batch`.
    del settings
    return optax.lbfgs(memory_size=LBFGS_PAIRS)


OPTIMIZERS = Register(
    "optimizer",
    Optimizer(
        "sgd",
        "SGD with heavy-ball momentum",
        partial(_sgd, nesterov=False),
        base_rate=0.05,
        scaling="linear",
        momentum_based=True,
    ),
    Optimizer(
        "nesterov",
        "SGD with Nesterov's momentum",
        partial(_sgd, nesterov=True),
        base_rate=0.05,
        scaling="linear",
        momentum_based=True,
    ),
    # You et al., arXiv 1708.03888, 2017.
    Optimizer("lars", "SGD with a trust ratio per kernel", _lars, base_rate=1.0, scaling="linear", trust_ratio=True),
    # You et al., arXiv 1904.00962, 2019.
    Optimizer(
        "lamb",
        "Adam with a trust ratio per kernel",
        _lamb,
        base_rate=2e-3,
        scaling="sqrt",
        adaptive=True,
        trust_ratio=True,
    ),
    # Loshchilov and Hutter, arXiv 1711.05101, 2017.
    Optimizer("adamw", "Adam with decoupled decay", _adamw, base_rate=1e-3, scaling="sqrt", adaptive=True),
    # Nocedal and Wright, "Numerical Optimization", 2nd edition, 2006, algorithms 7.5 and 3.5 (the zoom line search).
    Optimizer(
        "lbfgs",
        "L-BFGS with a line search, on the whole training set at once",
        _lbfgs,
        base_rate=1.0,
        scaling="linear",
        full_batch=True,
    ),
)


def make(
    name: str, schedule: optax.Schedule, *, momentum: float, weight_decay: float, decay_all: bool = False
) -> optax.GradientTransformation:
    """Returns an optimizer as an Optax transformation.

    Args:
      name: a name in `OPTIMIZERS`.
      schedule: step -> learning rate.
      momentum: the momentum of the gradient; Adam's b1 in 'lamb' and 'adamw' (their b2 is 0.999).
      weight_decay: the decay of kernels only. With 'sgd', 'nesterov' and 'lars' an L2 penalty, added to the gradient;
        with 'lamb' and 'adamw' added to Adam's step; with 'lbfgs' part of the objective, and not of this.
      decay_all: have norm parameters and biases decay too.

    Returns:
      An Optax transformation. With 'lars' and 'lamb', kernels take the rate times their trust ratio (with LARS's eta
      = 0.001), and all other parameters the rate itself, as in MLPerf's recipe.

    Raises:
      UsageError: there is no such optimizer.

    Source: Goyal et al., arXiv 1706.02677, 2017 (no decay on norms); those of the optimizers are named beside them.
    """
    return OPTIMIZERS[name].make(Settings(schedule, momentum, weight_decay, None if decay_all else kernels))


def kernels(params: Any) -> Any:
    """Returns a tree of booleans: True for parameters named `kernel`, Flax's name in convolutions and dense layers.

    Example:
      >>> kernels({"dense": {"kernel": 1.0, "bias": 2.0}, "weights": [3.0, 4.0]})
      {'dense': {'bias': False, 'kernel': True}, 'weights': [False, False]}
    """

    def is_kernel(path, _):
        # The last name: below it there may be places in a list, or the box of `nn.with_partitioning`.
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return bool(names) and names[-1] == "kernel"

    return jax.tree_util.tree_map_with_path(is_kernel, params)
