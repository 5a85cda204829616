"""Updates and data beyond the default: accumulation, k backwards, a ramp, L-BFGS, streams, augmentation, bfloat16."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data, models
from experiments._errors import UsageError
from experiments.training.config.options import TrainConfig
from experiments.training.evaluation import evaluator
from experiments.training.recipe import augmentation, norms
from experiments.training.step import feeding
from tests import rig

PLAIN = {"warmup_epochs": 0, "learning_rate": 0.1, "model": "tests.own:model", "schedule": "constant"}


def same(a, b, rtol):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("devices", [1, 4])
def test_accumulation_without_a_norm_equals_the_large_batch(devices, x64):
    """The mean gradient of four micro-batches equals that of the batch; steps and rates count updates."""
    config = {**PLAIN, "batch_size": 32, "norm": "none", "schedule": "cosine", "epochs": 3}
    whole, rows = rig.first_steps(TrainConfig(**config), rig.tiny(), 6, devices, jnp.float64)
    parts, others = rig.first_steps(TrainConfig(**config, accumulation_steps=4), rig.tiny(), 6, devices, jnp.float64)
    same(whole, parts, 1e-6)
    assert [r["learning_rate"] for r in rows] == [r["learning_rate"] for r in others]
    np.testing.assert_allclose([r["loss"] for r in rows], [r["loss"] for r in others], rtol=1e-6)


def test_accumulation_normalises_micro_batches_and_pools_their_moments(x64):
    """Compares an update with NumPy: own statistics per micro-batch, and a running average of the pooled moments."""
    dataset = rig.tiny()
    config = TrainConfig(**PLAIN, batch_size=32, accumulation_steps=4, norm_momentum=0.9)
    state, rows = rig.first_steps(config, dataset, 1, 2, jnp.float64)
    (segment,) = data.epoch_segments(64, 32, seed=0, epoch=0)
    images = dataset.train.images[segment.indices[0]]
    mean, std = evaluator.pixel_statistics(dataset.train)
    inputs = (images.astype(np.float32) / 255 - mean) / std
    hidden = np.asarray(inputs, np.float64).reshape(32, -1) @ own_kernel()
    np.testing.assert_allclose(state.batch_stats["BatchNorm_0"]["mean"], hidden.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.batch_stats["BatchNorm_0"]["var"], hidden.var(0), rtol=1e-5)
    spans = TrainConfig(**PLAIN, batch_size=32, span=8, norm_momentum=0.9)
    _, span_rows = rig.first_steps(spans, dataset, 1, 2, jnp.float64)
    assert rows[0]["loss"] == pytest.approx(span_rows[0]["loss"], rel=1e-6)


def own_kernel():
    model = models.create("tests.own:model", num_classes=3, norm=None, dtype=jnp.float32)
    return np.asarray(model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)["params"]["first"]["kernel"])


@pytest.mark.parametrize("devices", [1, 2])
def test_k_backwards_with_plain_sgd_equal_k_times_the_rate(devices, x64):
    """All gradients are taken at the parameters of the forward pass, so that k updates sum to k times their mean."""
    config = {**PLAIN, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "batch_size": 32}
    split = TrainConfig(**config | {"backwards_per_forward": 4, "learning_rate": 0.05})
    once = TrainConfig(**config | {"learning_rate": 0.2})
    many, rows = rig.first_steps(split, rig.tiny(), 3, devices, jnp.float64)
    one, others = rig.first_steps(once, rig.tiny(), 3, devices, jnp.float64)
    same(many.params, one.params, 1e-6)
    same(many.batch_stats, one.batch_stats, 1e-6)
    assert int(many.step) == 12 and int(one.step) == 3
    np.testing.assert_allclose([r["loss"] for r in rows], [r["loss"] for r in others], rtol=1e-6)


def test_k_backwards_with_momentum_differ_from_k_times_the_rate():
    config = {**PLAIN, "batch_size": 32}
    many, _ = rig.first_steps(TrainConfig(**config | {"backwards_per_forward": 4}), rig.tiny(), 3, 2)
    one, _ = rig.first_steps(TrainConfig(**config | {"learning_rate": 0.4}), rig.tiny(), 3, 2)
    assert np.abs(many.params["first"]["kernel"] - one.params["first"]["kernel"]).max() > 1e-3


def test_a_batch_ramp_reads_every_example_once_per_epoch(x64):
    """Ramps from 16 to 32 to 64 examples per update; the first phase equals the run without a ramp."""
    config = {**PLAIN, "schedule": "step", "step_epochs": "1,2", "step_factor": 2.0, "epochs": 3}
    _, rows = rig.first_steps(TrainConfig(**config, batch_size=16, batch_ramp=64), rig.tiny(), 99, 2, jnp.float64)
    assert len(rows) == 4 + 2 + 1
    np.testing.assert_allclose([r["learning_rate"] for r in rows], 0.1, rtol=1e-6)
    _, fixed = rig.first_steps(TrainConfig(**config, batch_size=16), rig.tiny(), 99, 2, jnp.float64)
    assert len(fixed) == 12 and rows[:4] == fixed[:4]


@pytest.mark.parametrize("micro", [1, 4])
def test_lbfgs_lowers_the_loss_of_the_whole_set_in_every_step(micro):
    config = TrainConfig(
        **PLAIN | {"optimizer": "lbfgs", "batch_size": 64, "weight_decay": 0.0}, epochs=12, accumulation_steps=micro
    )
    state, rows = rig.first_steps(config, rig.tiny(), 12, 2)
    losses = [float(r["loss"]) for r in rows]
    assert all(later < earlier for earlier, later in itertools.pairwise(losses)), losses
    assert losses[-1] < 0.5 * losses[0] and int(state.step) == 12


def test_lbfgs_sees_every_micro_batch_and_pools_their_moments(x64):
    """Without a norm, micro-batches change nothing; with a norm, their pooled moments are those of the whole set."""
    config = {**PLAIN, "optimizer": "lbfgs", "batch_size": 64}
    whole, _ = rig.first_steps(TrainConfig(**config, norm="none"), rig.tiny(), 3, 2, jnp.float64)
    parts, _ = rig.first_steps(TrainConfig(**config, norm="none", accumulation_steps=4), rig.tiny(), 3, 2, jnp.float64)
    same(whole.params, parts.params, 1e-5)
    one, _ = rig.first_steps(TrainConfig(**config), rig.tiny(), 1, 2, jnp.float64)
    four, _ = rig.first_steps(TrainConfig(**config, accumulation_steps=4), rig.tiny(), 1, 2, jnp.float64)
    same(one.batch_stats, four.batch_stats, 1e-5)
    streamed = rig.tiny()._replace(train=data.Stream(Source(), 8, random_crops=True))
    run = rig.run_of(TrainConfig(**PLAIN, batch_size=4), rig.tiny(), 2)
    with pytest.raises(UsageError, match=r"--optimizer=lbfgs keeps the whole set on the device"):
        feeding.is_resident(TrainConfig(**config), streamed, run.mesh, None)


def test_a_small_last_batch_moves_running_statistics_by_its_share():
    """With 65 examples in batches of 64, the last example alone must not determine the running statistics."""
    config = TrainConfig(**PLAIN | {"learning_rate": 0.0}, batch_size=64, drop_remainder=False, epochs=1)
    before, _ = rig.first_steps(config, rig.tiny(examples=65), 1, 1)
    after, _ = rig.first_steps(config, rig.tiny(examples=65), 2, 1)
    # The weight of the second update, after bias correction: 10 / 11 for a full batch, less for a 64th of it.
    share = 10 / 11 * (1 - 0.9 ** (1 / 256)) / (1 - 0.9 ** (64 / 256))
    moved = after.batch_stats["BatchNorm_0"]["var"] / before.batch_stats["BatchNorm_0"]["var"]
    # A single example has variance 0, so the running variance shrinks by the share.
    np.testing.assert_allclose(moved, 1 - share, rtol=1e-5)


@pytest.mark.parametrize("micro", [1, 2])
def test_a_stream_trains_bit_for_bit_as_the_same_data_in_memory(micro):
    config = {**PLAIN, "batch_size": 16, "accumulation_steps": micro, "drop_remainder": False}
    dataset = rig.tiny(examples=56)
    resident = rig.first_steps(TrainConfig(**config), dataset, 9, 2)
    streamed = rig.first_steps(TrainConfig(**config, input="streamed"), dataset, 9, 2)
    jax.tree.map(np.testing.assert_array_equal, resident, streamed)


class Source:
    """A source of images of several sizes with random access, like a TFDS data source."""

    def __len__(self):
        return 20

    def __getitem__(self, i):
        r = np.random.default_rng(i)
        return {"image": r.integers(0, 256, (12 + i, 20, 3), dtype=np.uint8), "label": i % 3}


def test_crops_of_streamed_images_depend_on_epoch_and_index():
    stream = data.Stream(Source(), 8, random_crops=True)
    numbers = np.array([3, 7, 3])
    first, again, later = stream.read(numbers), stream.read(numbers), stream.read(numbers, epoch=1)
    assert stream.size == 20 and stream.image_shape == (8, 8, 3) and first.images.shape == (3, 8, 8, 3)
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.images[0], first.images[2])
    assert (first.images != later.images).any() and list(first.labels) == [0, 1, 0]
    central = data.Stream(Source(), 8, random_crops=False)
    np.testing.assert_array_equal(central.read(numbers).images, central.read(numbers, epoch=1).images)


@pytest.mark.parametrize("name", ["crop", "flip", "crop_flip"])
def test_augmentation_depends_only_on_the_place_in_the_batch(name):
    images = jnp.asarray(np.random.default_rng(0).integers(1, 256, (8, 9, 9, 1)), jnp.uint8)
    key = jax.random.key(3)
    whole = augmentation.augment(name, images, key, 0, 8)
    halves = [augmentation.augment(name, images[i : i + 4], key, i, 8) for i in (0, 4)]
    np.testing.assert_array_equal(whole, np.concatenate(halves))
    assert whole.shape == images.shape and (whole != images).any()
    # Every result is an image that the definition of the augmentation allows.
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    for image, margins, result in zip(np.asarray(images), padded, np.asarray(whole), strict=True):
        crops = [margins[i : i + 9, j : j + 9] for i in range(9) for j in range(9)] if "crop" in name else [image]
        allowed = crops + ([c[:, ::-1] for c in crops] if "flip" in name else [])
        assert any((result == a).all() for a in allowed)


def test_bfloat16_keeps_parameters_and_statistics_in_float32():
    state, rows = rig.first_steps(TrainConfig(**PLAIN, batch_size=32, dtype="bfloat16"), rig.tiny(), 2, 2)
    assert {a.dtype for a in jax.tree.leaves((state.params, state.batch_stats))} == {np.dtype("float32")}
    _, single = rig.first_steps(TrainConfig(**PLAIN, batch_size=32), rig.tiny(), 2, 2)
    losses = [[float(r["loss"]) for r in rows_] for rows_ in (rows, single)]
    np.testing.assert_allclose(*losses, rtol=0.05)
    assert losses[0] != losses[1]


def test_segmentation_counts_pixels(x64):
    """Trains on one class per pixel, and compares accuracy and intersection over union with NumPy."""
    dataset = rig.tiny(pixels=True)
    config = TrainConfig(**PLAIN | {"model": "fcn", "batch_size": 16, "epochs": 20, "learning_rate": 0.05})
    state, rows = rig.first_steps(config, dataset, 40, 2)
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    run = rig.run_of(config, dataset, 2)
    test = dataset.test["test"].read(np.arange(13))
    result = evaluator.Evaluator(run.eval_step, {"test": test}, run.mesh)(state)["test"]
    model = models.create("fcn", num_classes=3, norm=norms.make("batch", 0.9), dtype=jnp.dtype("float32"))
    mean, std = evaluator.pixel_statistics(dataset.train)
    images = (test.images.astype(np.float32) / 255 - mean) / std
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    found = np.argmax(np.asarray(model.apply(variables, jnp.asarray(images), train=False)), axis=-1)
    over = [((found == c) & (test.labels == c)).sum() / ((found == c) | (test.labels == c)).sum() for c in range(3)]
    assert result.mean_iou == pytest.approx(np.mean(over), rel=1e-6)
    assert result.accuracy == pytest.approx((found == test.labels).mean(), rel=1e-6)


@pytest.mark.parametrize(("model", "pixels"), [("tests.own:model", True), ("fcn", False)])
def test_a_model_whose_logits_do_not_match_the_labels_is_refused(model, pixels):
    config = TrainConfig(model=model, batch_size=8)
    with pytest.raises(UsageError, match=rf"--model={model} gives logits of shape .* labels need"):
        rig.run_of(config, rig.tiny(pixels=pixels), 1)


def test_the_users_own_model_and_data_set_are_found(monkeypatch, tmp_path):
    dataset = data.load("tests.own:dataset")
    assert dataset.name == "tests.own:dataset" and dataset.train.size == 64
    with pytest.raises(UsageError, match=r"--dataset=tests.own:datset: .* has no function datset; it has .*dataset"):
        data.load("tests.own:datset")
    with pytest.raises(UsageError, match=r"--dataset=nowhere.at_all:dataset: No module named 'nowhere'"):
        data.load("nowhere.at_all:dataset")
    with pytest.raises(UsageError, match=r"must return an experiments.data.Dataset, and it returned <class 'int'>"):
        data.load("tests.own:number")
    with pytest.raises(UsageError, match=r"train: the labels must be from 0 to 1, .* and they are from 0 to 2"):
        data.load("tests.own:few_classes")
    with pytest.raises(UsageError, match=r"--image_size is for TFDS data sets"):
        data.load("digits", image_size=32)
    with pytest.raises(UsageError, match=r"train: the images must be uint8 .* and they are float32 of \(64, 8, 8, 1\)"):
        data.load("tests.own:floats")


def test_validation_examples_are_taken_from_training():
    dataset = rig.tiny()
    held = data.hold_out.validation(dataset, 10)
    assert list(held.test) == ["validation"] and held.train.size == 54 and held.test["validation"].size == 10
    together = np.concatenate([held.train.images, held.test["validation"].images]).reshape(64, -1)
    assert sorted(map(bytes, together)) == sorted(map(bytes, dataset.train.images.reshape(64, -1)))
    with pytest.raises(UsageError, match=r"--validation_examples=64 leaves none"):
        data.hold_out.validation(dataset, 64)
    with pytest.raises(UsageError, match=r"views of one image would be on both sides"):
        data.load("digits", validation_examples=10)


@pytest.mark.parametrize(
    ("model", "size", "channels"),
    [
        ("resnet18", 32, 3),
        # It compiles for 90 seconds.
        pytest.param("resnet50", 32, 3, marks=pytest.mark.slow),
        ("alexnet_bn", 63, 3),
        ("fcn", 16, 1),
    ],
)
def test_every_model_takes_three_steps(model, size, channels):
    """Trains each model with norms pooled over devices; test_training does so for `simple_cnn`."""
    dataset = rig.tiny(examples=24, size=size, channels=channels, pixels=model == "fcn")
    config = TrainConfig(model=model, batch_size=8, warmup_epochs=0, learning_rate=0.01, schedule="constant")
    state, rows = rig.first_steps(config, dataset, 3, 2)
    assert int(state.step) == 3 and all(np.isfinite(row["loss"]) for row in rows)
    assert len({float(row["loss"]) for row in rows}) == 3
