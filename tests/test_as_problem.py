"""A configuration of the trainer as a problem: it trains as the trainer does, and can be branched."""

import jax
import numpy as np
import pytest

from batchnorm_jax.batch_size import fit_branches, train_branches
from experiments._errors import UsageError
from experiments.training.as_problem import as_problem
from experiments.training.config.options import TrainConfig
from tests import rig

OWN = {"dataset": "tests.own:dataset", "model": "tests.own:model", "batch_size": 16, "learning_rate": 0.05}


@pytest.mark.parametrize("num_devices", [1, 2])
def test_its_updates_are_those_of_the_trainer(num_devices):
    """On the same batches, which the problem takes from a stream of its own."""
    config = TrainConfig(**OWN, num_devices=num_devices, schedule="constant", warmup_epochs=0)
    problem = as_problem(config)
    state, losses = problem.init(0), []
    run = rig.run_of(config, rig.tiny(), num_devices)
    theirs = run.state
    for number in range(3):
        batch = problem.batch(3, number, 16)
        before = jax.device_get(state)
        after, loss = problem.update(state, batch, 0.05)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), before)
        state = after
        losses.append(float(loss))
        theirs, metrics = run.compile(theirs, [batch], run.plan).call(theirs, [batch])
        assert float(metrics["loss"]) == pytest.approx(losses[-1], rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), *jax.device_get((state, theirs)))


def test_it_can_be_branched():
    problem = as_problem(TrainConfig(**OWN, num_devices=1))
    branches = list(
        train_branches(
            problem.init(0), problem.update, problem.batch, problem.loss, batch_size=8, learning_rate=0.05,
            examples=320, rule=problem.rule, multiples=(2, 4), evaluations=5,
        )
    )  # fmt: skip
    assert sorted(fit_branches(branches).efficiency) == [8, 16, 32]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"accumulation_steps": 2}, "makes each update of one batch at once"),
        ({"backwards_per_forward": 2}, "makes each update of one batch at once"),
        ({"optimizer": "lbfgs", "batch_size": 64}, "an optimizer other than lbfgs"),
    ],
)
def test_what_is_no_update_of_one_batch_is_refused(options, said):
    with pytest.raises(UsageError, match=said):
        as_problem(TrainConfig(**OWN | options))
    with pytest.raises(UsageError, match="is a problem already"):
        as_problem(TrainConfig(problem="mine:problem"))
