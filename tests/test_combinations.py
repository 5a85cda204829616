"""Every combination of flags trains two steps, or the preflight refuses it with a message that names a flag."""

import re

import jax
import numpy as np
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from experiments._errors import UsageError
from experiments.training.config.options import DTYPES, INPUTS, TrainConfig
from experiments.training.recipe import augmentation, norms, optimizers, schedules
from tests import rig

FLAGS = {
    "batch_size": st.sampled_from([1, 6, 8, 16, 24, 64, 65]),
    "accumulation_steps": st.sampled_from([1, 1, 2, 3]),
    "backwards_per_forward": st.sampled_from([1, 1, 2, 5]),
    "batch_ramp": st.sampled_from([None, None, 32, 64, 1000, "auto"]),
    "span": st.sampled_from([None, None, 1, 4, 8, 48]),
    "norm": st.sampled_from(norms.NORMS.names),
    "optimizer": st.sampled_from(optimizers.OPTIMIZERS.names),
    "schedule": st.sampled_from([*schedules.SCHEDULES.names, "linear"]),
    "step_epochs": st.sampled_from([None, None, "1", "3,2", "two"]),
    "warmup_epochs": st.sampled_from([0.0, 0.0, 0.5, 99.0]),
    "drop_remainder": st.booleans(),
    "augmentation": st.sampled_from(augmentation.AUGMENTATIONS.names),
    "dtype": st.sampled_from([*DTYPES, "float16"]),
    "input": st.sampled_from(INPUTS),
    "epochs": st.sampled_from([1, 3]),
    "steps": st.sampled_from([None, None, 2, 5]),
    "label_smoothing": st.sampled_from([0.0, 0.1]),
    "decay_all": st.booleans(),
    "momentum": st.sampled_from([0.0, 0.9, 1.0]),
    "learning_rate": st.sampled_from([None, 0.01, -1.0]),
}
DEFAULT = {"model": "tests.own:model"}
NAMES = set(TrainConfig.__dataclass_fields__)


@settings(max_examples=24, deadline=None)
@given(flags=st.fixed_dictionaries({}, optional=FLAGS), devices=st.sampled_from([1, 2, 4]))
# Pairs of options that one piece of code handles together are always tried.
@example(flags={"batch_size": 16, "accumulation_steps": 2, "span": 4}, devices=2)
@example(flags={"batch_size": 24, "accumulation_steps": 2, "drop_remainder": False, "norm": "local"}, devices=2)
@example(flags={"batch_size": 16, "backwards_per_forward": 2, "span": 8, "optimizer": "lamb"}, devices=4)
@example(flags={"batch_size": 8, "batch_ramp": 32, "schedule": "step", "accumulation_steps": 2}, devices=2)
@example(flags={"batch_size": 64, "optimizer": "lbfgs", "accumulation_steps": 2, "norm": "local"}, devices=2)
@example(flags={"batch_size": 16, "input": "streamed", "accumulation_steps": 2, "dtype": "bfloat16"}, devices=2)
def test_a_combination_of_flags_works_or_is_refused(flags, devices):
    run, refusal = None, ""
    try:
        config = TrainConfig(**DEFAULT, **flags)
        run = rig.run_of(config, rig.tiny(), devices)
    except UsageError as error:
        refusal = str(error)
    event("works" if run is not None else "refused")
    if run is None:
        named = set(re.findall(r"--(\w+)", refusal))
        assert named and named <= NAMES, f"{flags} is refused without a flag to blame: {refusal}"
        return
    number = min(2, run.plan.total_steps // config.backwards_per_forward)
    state, rows = rig.first_steps(config, rig.tiny(), number, devices)
    assert int(state.step) == number * config.backwards_per_forward and len(rows) == number
    for leaf in jax.tree.leaves((state.params, state.batch_stats, rows)):
        assert np.isfinite(np.asarray(leaf, np.float32)).all(), flags
