"""The benchmark: turns that rotate, ratios round by round, and a peer that is the same model."""

import time

import jax
import numpy as np
import pytest

from experiments import data, models
from experiments.benchmarking import timing, torch_peer, train_suite


def test_variants_are_timed_in_turn_and_the_order_rotates():
    calls = []

    def variant(name):
        def steps(number):
            calls.append(name)
            time.sleep(0.001 * number)

        return steps

    measured = timing.in_turn({"a": variant("a"), "b": variant("b")}, rounds=3, seconds=0.01)
    assert calls[4:] == ["a", "b", "b", "a", "a", "b"]
    assert all(len(values) == 3 and min(values) >= 0.001 for values in measured.values())


def test_a_suite_reports_a_row_a_batch_size_and_says_what_is_not_measured(monkeypatch):
    monkeypatch.setattr(torch_peer, "available", lambda: False)
    (row,) = train_suite.run([512], dataset="digits", data_dir=None, rounds=2, seconds=0.01)
    assert row["batch_size"] == 512 and row["updates_per_epoch"] == 117
    assert row["ratio"] == {"torch": None} and "not measured" in train_suite.describe(row)
    assert row["seconds_per_epoch"]["batchnorm_jax"]["median"] > 0


def test_the_peer_is_the_same_model():
    """With our parameters, PyTorch's model gives our logits."""
    torch = pytest.importorskip("torch", reason="the peer is an extra: pip install -e '.[benchmark]'")
    images = data.load("digits").test["originals"].images[:8].astype(np.float32) / 255
    model = models.create("simple_cnn", num_classes=10, norm=None)
    variables = model.init(jax.random.key(0), images, train=False)
    peer = torch_peer.simple_cnn(10)
    assert sum(p.numel() for p in peer.parameters()) == sum(p.size for p in jax.tree.leaves(variables))
    params = variables["params"]
    with torch.no_grad():
        for index, name in ((0, "ConvMaxPool_0"), (3, "ConvMaxPool_1"), (6, "ConvMaxPool_2"), (10, "Dense_0")):
            kernel = np.array(params[name]["kernel"])
            order = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
            peer[index].weight.copy_(torch.from_numpy(kernel.transpose(order).copy()))
            peer[index].bias.copy_(torch.from_numpy(np.array(params[name]["bias"])))
        theirs = peer(torch.from_numpy(np.moveaxis(images, -1, 1).copy())).numpy()
    np.testing.assert_allclose(model.apply(variables, images, train=False), theirs, rtol=1e-4, atol=1e-5)
