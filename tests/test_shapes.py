"""The segmentation set: what is on a canvas, what a label says, which digits are on which side."""

import itertools

import numpy as np
import pytest

from experiments.data import digits, shapes


@pytest.fixture(scope="module")
def dataset():
    return shapes.load()


def test_shapes_are_what_they_are_said_to_be(dataset):
    assert (dataset.name, dataset.num_classes, list(dataset.test)) == ("shapes", 11, ["test"])
    for split, number in ((dataset.train, 6_000), (dataset.test["test"], 1_000)):
        assert split.images.shape == (number, 48, 48, 1) and split.images.dtype == np.uint8
        assert split.labels.shape == (number, 48, 48) and split.labels.dtype == np.int32
        counts = np.bincount(split.labels.ravel(), minlength=11) / split.labels.size
        assert len(counts) == 11 and 0.8 < counts[0] < 0.92
        # The ten digits are equally common, to the width of their pens.
        assert counts[1:].min() > 0.7 * counts[1:].max()
        assert (split.labels > 0).any(axis=(1, 2)).all()


def test_a_label_lies_on_ink(dataset):
    """A labelled pixel is brighter than the canvas about it; and most of what is as bright is not labelled so."""
    images, labels = dataset.train.images[:500, ..., 0].astype(float), dataset.train.labels[:500]
    for image, label in zip(images, labels, strict=True):
        assert image[label > 0].mean() > np.median(image[label == 0]) + 40


def test_brightness_alone_does_not_find_the_digits(dataset):
    """The clutter is drawn with the same pen: the best threshold shares little more than half of what it finds."""
    images, digit = dataset.train.images[:1000, ..., 0], dataset.train.labels[:1000] > 0
    shared = [np.sum((images > t) & digit) / np.sum((images > t) | digit) for t in range(60, 240, 10)]
    assert 0.4 < max(shared) < 0.65


def test_digits_are_whole_and_hardly_overlap():
    where = shapes.places(np.random.default_rng(0), 3_000)
    number = where.present.sum(axis=1)
    assert set(number) == {2, 3, 4} and np.bincount(number)[2:].min() > 150
    assert where.sizes.min() >= 14 and where.sizes.max() <= 24 and np.ptp(where.sizes) > 9
    low, high = where.centres - where.sizes[..., None] / 2, where.centres + where.sizes[..., None] / 2
    assert low[where.present].min() >= 0 and high[where.present].max() <= 48
    largest = 0.0
    for a, b in itertools.combinations(range(4), 2):
        sides = np.minimum(high[:, a], high[:, b]) - np.maximum(low[:, a], low[:, b])
        share = sides.clip(0).prod(axis=-1) / np.minimum(where.sizes[:, a], where.sizes[:, b]) ** 2
        largest = max(largest, share[where.present[:, a] & where.present[:, b]].max())
    assert 0.1 < largest <= shapes.MAX_OVERLAP
    # They are all over the canvas, not in a few places.
    assert np.ptp(where.centres[where.present], axis=0).min() >= 30


def test_canvases_depend_on_the_seed_alone_and_not_on_threads(monkeypatch):
    images, labels = digits.originals()
    one = shapes.canvases(images, labels, 300, seed=1)
    monkeypatch.setattr("experiments.data.warping.MAX_THREADS", 1)
    same, other = (shapes.canvases(images, labels, 300, seed=s) for s in (1, 2))
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (one[0] != other[0]).any()
    # Different blocks of canvases have random numbers of their own.
    assert (one[0][:44] != one[0][256:]).any()


def test_canvases_show_the_given_digits_alone():
    """Labels of images that are all one digit name that digit; black images have no labels."""
    images, labels = digits.originals()
    _, classes = shapes.canvases(images[labels == 7], labels[labels == 7], 20, seed=0)
    assert set(np.unique(classes)) == {0, 8}
    made, classes = shapes.canvases(np.zeros((3, 28, 28)), np.arange(3), 20, seed=0)
    assert not classes.any() and made.max() < 255 * 0.9


def test_no_digit_is_on_both_sides(monkeypatch):
    calls = []
    monkeypatch.setattr(
        shapes, "canvases", lambda images, labels, number, seed: calls.append((images, labels, number, seed)) or (0, 0)
    )
    shapes._make()
    images, labels = digits.originals()
    (train, train_labels, _, seed), (test, test_labels, _, other) = calls
    assert len(test) == 360 and len(train) + len(test) == len(images) and seed != other
    np.testing.assert_array_equal(np.concatenate([train, test]), images)
    np.testing.assert_array_equal(np.concatenate([train_labels, test_labels]), labels)
