"""Data sets as users write them: valid ones, and ones with the mistakes that are refused."""

import importlib

import numpy as np

from experiments.data import Examples, Stream
from tests import rig

TINY = rig.tiny()
IMAGES, LABELS = TINY.train
TEST = TINY.test["test"]


class Own:
    """A split of the user's own class, whose `change` makes an error in what `read` returns."""

    size, image_shape = 64, (8, 8, 1)

    def __init__(self, change=lambda images, labels: (images, labels), **attributes):
        self._change = change
        vars(self).update(attributes)

    def read(self, indices, epoch=0):
        return Examples(*self._change(IMAGES[indices], LABELS[indices]))


class Source:
    """The source of a stream, whose last label is beyond the classes."""

    def __len__(self):
        return 20

    def __getitem__(self, i):
        return {"image": IMAGES[i], "label": 7 if i == 19 else LABELS[i]}


def one_beyond(split):
    """Returns a split whose last label is beyond the classes."""
    labels = split.labels.copy()
    labels[-1] = 3
    return split._replace(labels=labels)


def of_train(*arrays):
    return TINY._replace(train=Examples(*arrays))


def of_test(test):
    return TINY._replace(test=test)


def fail():
    return [][1]


def late(images, labels):
    if len(labels) > 3:
        raise OSError("the disk is gone")
    return images, labels


def by_other_name():
    """Returns a data set of the classes that the package has by its other name."""
    installed = importlib.import_module("batchnorm_jax_experiments.data")
    return installed.Dataset(*TINY._replace(train=installed.Examples(*TINY.train)))


def stream_by_other_name():
    installed = importlib.import_module("batchnorm_jax_experiments.data")
    return installed.Stream(Source(), None, random_crops=False)


GOOD = {
    "int64": lambda: of_train(IMAGES, LABELS.astype(np.int64)),
    "own": lambda: TINY._replace(train=Own()),
    "numpy_shape": lambda: TINY._replace(train=Own(image_shape=tuple(np.array([8, 8, 1])))),
    "stream": lambda: TINY._replace(train=Stream(Source(), None, random_crops=False), num_classes=8),
    "other_name": by_other_name,
    "other_names_stream": lambda: TINY._replace(train=stream_by_other_name(), num_classes=8),
}
# The function that makes the data set, and the pattern of the error.
WRONG = {
    "number": (lambda: 3, "must return an experiments.data.Dataset, and it returned <class 'int'>"),
    "fails": (fail, r"the function raised IndexError: list index out of range\n.*users_data.py.*in fail"),
    "more_labels": (lambda: of_train(IMAGES[:50], LABELS), "train: there must be a label for each image, .* 50 and 64"),
    "fewer_labels": (
        lambda: of_test({"test": Examples(IMAGES, LABELS[:9])}),
        "test: there must be a label .* 64 and 9",
    ),
    "beyond": (
        lambda: TINY._replace(train=one_beyond(TINY.train)),
        "train: the labels must be from 0 to 2, .* from 0 to 3",
    ),
    "beyond_in_test": (
        lambda: of_test({"a": TEST, "b": one_beyond(TEST)}),
        "b: the labels must be from 0 to 2, .* to 3",
    ),
    "negative": (lambda: of_train(IMAGES, LABELS - 1), "from -1 to 1"),
    "floats": (lambda: of_train(IMAGES / 255, LABELS), "the images must be uint8 .* float64 of"),
    "flat": (
        lambda: of_train(IMAGES[..., 0], LABELS),
        r"uint8 of shape \(n, height, width, channels\), .* \(64, 8, 8\)",
    ),
    "float_labels": (lambda: of_train(IMAGES, LABELS / 1), "the labels must be int32 .* float64"),
    "one_hot": (lambda: of_train(IMAGES, np.eye(3, dtype=int)[LABELS]), r"the labels must be int32 .* \(64, 3\)"),
    "pixels": (lambda: of_train(IMAGES, np.zeros((64, 4, 4), int)), r"\(64, 4, 4\) must be those of the pixels"),
    "lists": (lambda: of_train(IMAGES.tolist(), LABELS), "train: the images must be a NumPy array, .* list"),
    "empty": (lambda: of_train(IMAGES[:0], LABELS[:0]), "train is empty"),
    "no_channels": (lambda: of_train(IMAGES[..., :0], LABELS), r"images of \(8, 8, 0\) have no pixels"),
    "test_list": (lambda: of_test([TEST]), "its `test` must be a mapping .* not list"),
    "test_examples": (lambda: of_test(TEST), "its `test` must be a mapping .* not Examples"),
    "no_test": (lambda: of_test({}), "no split to evaluate on"),
    "train_test": (lambda: of_test({"train": TEST}), "there is one named 'train'"),
    "ramp_test": (lambda: of_test({"ramp": TEST}), "there is one named 'ramp'"),
    "slash": (lambda: of_test({"a/b": TEST}), "there is one named 'a/b'"),
    "dollar": (lambda: of_test({"$x$": TEST}), r"there is one named '\$x\$'"),
    "dots": (lambda: of_test({"..": TEST}), "there is one named '..'"),
    "long_name": (lambda: of_test({"x" * 101: TEST}), "at most 100 letters"),
    "number_name": (lambda: of_test({1: TEST}), "there is one named 1"),
    "classes": (lambda: TINY._replace(num_classes=3.0), "num_classes must be a whole number .* 3.0"),
    "one_class": (lambda: TINY._replace(num_classes=1), "num_classes must be a whole number of at least 2"),
    "note": (lambda: TINY._replace(note=["x"]), "note must be text, not list"),
    "tuple_train": (
        lambda: TINY._replace(train=(IMAGES, LABELS)),
        "train must be Examples.* not tuple, which lacks",
    ),
    "other_size": (
        lambda: of_test({"test": Examples(IMAGES[:, :6], LABELS)}),
        r"test is of \(6, 8, 1\) .* they must agree",
    ),
    "no_size": (lambda: TINY._replace(train=Own(size=0)), "the size of train must be a whole number above 0"),
    "shape": (lambda: TINY._replace(train=Own(image_shape=(8, 8))), r"image_shape of train must be \(height"),
    "half": (
        lambda: TINY._replace(train=Own(lambda x, y: (x[::2], y[::2]))),
        "must be the 3 examples that are asked for",
    ),
    "stream_beyond": (
        lambda: TINY._replace(train=Stream(Source(), None, random_crops=False)),
        "labels must be from 0 to 2, .* to 7",
    ),
}
for _name, _function in {**GOOD, **{name: made for name, (made, _) in WRONG.items()}}.items():
    globals()[_name] = _function


def late_half():
    """Returns a data set that reads the first few examples correctly, and half of the requested ones later."""
    return TINY._replace(train=Own(lambda x, y: (x, y) if len(y) < 4 else (x[::2], y[::2])))


def late_error():
    return TINY._replace(train=Own(late))
