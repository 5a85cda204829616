"""The optimizers, each one declared record of `OPTIMIZERS`; norm parameters and biases neither decay nor get ratios."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import optax
import optax.contrib

from ..._variants import Register

LARS_TRUST_COEFFICIENT = 0.001
# Muon's steps are made as long as Adam's usually are, so that one rate suits both: Liu et al., arXiv 2502.16982, 2025.
ADAMS_RMS = 0.2
# Pairs of steps and gradients that L-BFGS keeps.
LBFGS_PAIRS = 10


class Settings(NamedTuple):
    """The values from which an optimizer is made.

    Attributes:
      schedule: step -> learning rate.
      momentum: the momentum of the gradient; Adam's b1; for optimizers that average, the share of the average in the
        weights at which the gradient is taken.
      b2: the decay of Adam's second moment.
      weight_decay: the decay of the parameters that decay.
      decays: parameters -> a tree of booleans, True for those that decay; None: all do.
    """

    schedule: optax.Schedule
    momentum: float
    b2: float
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
      second_moment: it keeps a running average of squared gradients, whose decay is `--b2`.
      full_batch: each step is over the whole training set, and a line search finds its length.
      averages: it averages its steps in place of a rate that falls: what is evaluated is the average, and it takes a
        constant rate and a momentum above 0.
    """

    name: str
    help: str
    make: Callable[[Settings], optax.GradientTransformation]
    base_rate: float
    scaling: Literal["linear", "sqrt", "none"]
    momentum_based: bool = False
    adaptive: bool = False
    trust_ratio: bool = False
    second_moment: bool = False
    full_batch: bool = False
    averages: bool = False


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
        optax.scale_by_adam(b1=settings.momentum, b2=settings.b2, eps=1e-6),
        optax.add_decayed_weights(settings.weight_decay, mask=settings.decays),
        optax.masked(optax.scale_by_trust_ratio(), kernels),
        optax.scale_by_learning_rate(settings.schedule),
    )


def _adamw(settings: Settings) -> optax.GradientTransformation:
    schedule, momentum, b2, weight_decay, decays = settings
    return optax.adamw(schedule, b1=momentum, b2=b2, weight_decay=weight_decay, mask=decays)


def _muon(settings: Settings) -> optax.GradientTransformation:
    return optax.contrib.muon(
        settings.schedule,
        beta=settings.momentum,
        adam_b1=settings.momentum,
        adam_b2=settings.b2,
        weight_decay=settings.weight_decay,
        # All that is left to Adam decays only where everything does.
        adam_weight_decay=settings.weight_decay if settings.decays is None else 0.0,
        muon_weight_dimension_numbers=_as_matrices,
        consistent_rms=ADAMS_RMS,
    )


def _as_matrices(params: Any) -> Any:
    """Returns how each kernel is a matrix, from all that an output sums over to the outputs; None for the others."""

    def matrix(is_kernel: bool, parameter: Any) -> Any:
        if not is_kernel or parameter.ndim < 2:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(parameter.ndim - 1)), parameter.ndim - 1)

    return jax.tree.map(matrix, kernels(params), params)


def _schedule_free(settings: Settings) -> optax.GradientTransformation:
    decay = optax.add_decayed_weights(settings.weight_decay, mask=settings.decays)
    steps = optax.chain(decay, optax.sgd(settings.schedule))
    return optax.contrib.schedule_free(steps, settings.schedule, b1=settings.momentum)


def _schedule_free_adamw(settings: Settings) -> optax.GradientTransformation:
    # Equal to optax.contrib.schedule_free_adamw, which has no mask for the decay.
    steps = optax.chain(
        optax.scale_by_rms(decay=settings.b2, eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(settings.weight_decay, mask=settings.decays),
        optax.scale_by_learning_rate(settings.schedule),
    )
    return optax.contrib.schedule_free(steps, settings.schedule, b1=settings.momentum)


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
        second_moment=True,
    ),
    # Loshchilov and Hutter, arXiv 1711.05101, 2017.
    Optimizer(
        "adamw",
        "Adam with decoupled decay",
        _adamw,
        base_rate=1e-3,
        scaling="sqrt",
        adaptive=True,
        second_moment=True,
    ),
    # Jordan et al., "Muon", kellerjordan.github.io/posts/muon, 2024; its length, Liu et al., arXiv 2502.16982, 2025.
    Optimizer(
        "muon",
        "momentum made orthogonal for each kernel as a matrix, and AdamW for all other parameters",
        _muon,
        base_rate=2e-2,
        scaling="sqrt",
        adaptive=True,
        second_moment=True,
    ),
    # Defazio et al., arXiv 2405.15682, 2024, who advise ten times the rate of SGD with momentum and more.
    Optimizer(
        "schedule_free",
        "SGD that averages its steps in place of a falling rate",
        _schedule_free,
        base_rate=0.5,
        scaling="linear",
        averages=True,
    ),
    Optimizer(
        "schedule_free_adamw",
        "AdamW that averages its steps in place of a falling rate",
        _schedule_free_adamw,
        base_rate=2.5e-3,
        scaling="sqrt",
        adaptive=True,
        second_moment=True,
        averages=True,
    ),
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
    name: str,
    schedule: optax.Schedule,
    *,
    momentum: float,
    weight_decay: float,
    b2: float = 0.999,
    decay_all: bool = False,
) -> optax.GradientTransformation:
    """Returns an optimizer as an Optax transformation.

    Args:
      name: a name in `OPTIMIZERS`.
      schedule: step -> learning rate.
      momentum: the momentum of the gradient; Adam's b1; for optimizers that average, the share of the average in the
        weights at which the gradient is taken.
      weight_decay: the decay of kernels only. With 'sgd', 'nesterov', 'lars' and 'schedule_free' an L2 penalty, added
        to the gradient; with those that have Adam's step or Muon's, added to that; with 'lbfgs' part of the objective,
        and not of this.
      b2: the decay of Adam's second moment, of those that have one.
      decay_all: have norm parameters and biases decay too.

    Returns:
      An Optax transformation. With 'lars' and 'lamb', kernels take the rate times their trust ratio (with LARS's eta
      = 0.001), and all other parameters the rate itself, as in MLPerf's recipe.

    Raises:
      UsageError: there is no such optimizer.

    Source: Goyal et al., arXiv 1706.02677, 2017 (no decay on norms); those of the optimizers are named beside them.
    """
    return OPTIMIZERS[name].make(Settings(schedule, momentum, b2, weight_decay, None if decay_all else kernels))


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
