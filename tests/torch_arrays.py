"""Draws arrays and compares states, for the tests of torch_interop."""

import numpy as np

from tests.reference import normwise_error


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(0.5, 1, shape).astype(np.float32)


def assert_close(got, want):
    assert set(got) == set(want)
    for name, array in want.items():
        if name.endswith("num_batches_tracked"):
            assert int(got[name]) == int(array), name
        else:
            assert normwise_error(got[name], array) < 1e-5, name


def check_same(got, want):
    assert set(got) == set(want)
    for name, tensor in want.items():
        assert got[name].equal(tensor) and got[name].dtype == tensor.dtype, name
