"""Training programs of five functions: every shipped one learns, repeats itself, and can be branched."""

import jax
import numpy as np
import pytest

from batchnorm_jax.batch_size import fit_branches, train_branches
from experiments.problems import classifier, mlp, stream, transformer

PROBLEMS = {
    "transformer": lambda: transformer.problem(transformer.Size(width=16, layers=1, heads=2, length=16)),
    "mlp": lambda: mlp.problem(width=8),
    "classifier": lambda: classifier.problem(width=4),
}


@pytest.fixture(scope="module", params=PROBLEMS)
def problem(request):
    return PROBLEMS[request.param]()


def trained(problem, updates, seed=0):
    state = problem.init(seed)
    for step in range(updates):
        state, _ = problem.update(state, problem.batch(seed, step, problem.batch_size), problem.learning_rate)
    return state


def test_a_problem_learns(problem):
    before, after = (float(problem.evaluate(state)) for state in (problem.init(0), trained(problem, 60)))
    assert after > before + 0.1 if problem.goal == "accuracy" else after < before - 0.1


def test_a_problem_repeats_itself_and_another_seed_is_another_run(problem):
    once, again, other = (trained(problem, 2, seed) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, once, again)
    pairs = zip(jax.tree.leaves(once), jax.tree.leaves(other), strict=True)
    assert any(not np.array_equal(a, b) for a, b in pairs)


def test_batches_of_all_sizes_are_cut_from_one_stream(problem):
    small = [problem.batch(3, step, 4) for step in range(4)]
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *small)
    jax.tree.map(np.testing.assert_array_equal, joined, problem.batch(3, 0, 16))


def test_a_problem_can_be_branched(problem):
    sign = -1 if problem.goal == "accuracy" else 1
    branches = list(
        train_branches(
            trained(problem, 4), problem.update, problem.batch, lambda state: sign * problem.evaluate(state),
            batch_size=problem.batch_size, learning_rate=problem.learning_rate, examples=40 * problem.batch_size,
            rule=problem.rule, multiples=(2, 4), evaluations=8, start=4 * problem.batch_size,
        )
    )  # fmt: skip
    fit = fit_branches(branches)
    assert fit.critical_batch_size >= 0 and sorted(fit.efficiency) == [problem.batch_size * k for k in (1, 2, 4)]


@pytest.mark.parametrize(("start", "count"), [(0, 0), (0, 7), (5, 20), (13, 7), (20, 1)])
def test_the_stream_has_every_example_once_in_each_epoch(start, count):
    whole = stream(1, 0, 70, 7)
    assert all(sorted(epoch) == list(range(7)) for epoch in whole.reshape(10, 7))
    np.testing.assert_array_equal(stream(1, start, count, 7), whole[start : start + count])
    assert not np.array_equal(whole[:7], whole[7:14]) and not np.array_equal(whole, stream(2, 0, 70, 7))
