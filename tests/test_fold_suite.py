"""The benchmark of folding: the two that are timed give the same logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _files
from experiments.benchmarking import fold_suite, result
from experiments.benchmarking.suite import Chosen
from tests.reference import normwise_error


@pytest.mark.parametrize(("name", "shape"), [("resnet18", (4, 16, 16, 3)), ("simple_cnn", (4, 28, 28, 1))])
def test_before_and_after_are_the_same_model(name, shape):
    images = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    programs = fold_suite.folded_model(name, images)
    before, after = (programs[kind](images) for kind in (fold_suite.BEFORE, fold_suite.AFTER))
    assert normwise_error(after, before) < 1e-5
    # Nothing is normalised any more.
    texts = [str(jax.make_jaxpr(programs[kind])(images)) for kind in (fold_suite.BEFORE, fold_suite.AFTER)]
    assert ["rsqrt" in text for text in texts] == [True, False]


def test_a_row_per_case(monkeypatch, tmp_path):
    monkeypatch.setattr(fold_suite, "CASES", (fold_suite.Case("simple_cnn", (2, 28, 28, 1)),))
    assert fold_suite.run(Chosen(("resnet18",))) == []
    (row,) = fold_suite.run(Chosen(fold_suite.PARTS, rounds=2, seconds=0.01))
    assert row.model == "simple_cnn" and row.difference < 1e-5
    assert row.ratio.low > 0 and row.milliseconds.keys() == {"before", "after"}
    assert "simple_cnn" in fold_suite.describe(row) and "ratio" in fold_suite.describe(row)
    path = result.write([row], tmp_path / "fold.json", [])
    assert _files.read_json(path, fold_suite.SUITE.file).rows == [row]
