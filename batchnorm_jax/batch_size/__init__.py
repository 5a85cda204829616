"""Batch-size science for any training loop in JAX: the gradient noise scale, fits of measured runs, scaling rules.

`value_and_grad_with_noise` measures the noise within a training step, `fit_steps_to_target` and `fit_step_time` turn
measured runs into a critical batch size and a knee, `train_branches` tries larger batches from a point of a run, and
`scale_learning_rate` and `scale_decay` carry an optimizer's numbers to another batch size. All are plain functions on
arrays and numbers; Flax is not needed.
"""

from batchnorm_jax._extras import need as _need

_need("optax", "scipy", extra="batch-size", caller=__name__)

from batchnorm_jax.batch_size._branch_fit import BranchFit, fit_branches
from batchnorm_jax.batch_size._branching import Branch, train_branches
from batchnorm_jax.batch_size._crossing import steps_to_target
from batchnorm_jax.batch_size._fits import (
    ScalingFit,
    StepTimeFit,
    best_batch_size,
    fit_step_time,
    fit_steps_to_target,
    interval_of,
    predict_steps,
    predict_steps_interval,
)
from batchnorm_jax.batch_size._noise import (
    NoiseEstimate,
    NoiseState,
    init_noise,
    measure_noise,
    noise_from_norms,
    noise_from_shards,
    noise_scale,
    noise_scale_interval,
    update_noise,
)
from batchnorm_jax.batch_size._rules import half_life, scale_decay, scale_learning_rate
from batchnorm_jax.batch_size._squares import adam_weights, squared_norm
from batchnorm_jax.batch_size._step import value_and_grad_with_noise

__all__ = [
    "Branch",
    "BranchFit",
    "NoiseEstimate",
    "NoiseState",
    "ScalingFit",
    "StepTimeFit",
    "adam_weights",
    "best_batch_size",
    "fit_branches",
    "fit_step_time",
    "fit_steps_to_target",
    "half_life",
    "init_noise",
    "interval_of",
    "measure_noise",
    "noise_from_norms",
    "noise_from_shards",
    "noise_scale",
    "noise_scale_interval",
    "predict_steps",
    "predict_steps_interval",
    "scale_decay",
    "scale_learning_rate",
    "squared_norm",
    "steps_to_target",
    "train_branches",
    "update_noise",
    "value_and_grad_with_noise",
]
