"""Data sets of the user's own are checked completely when they are made, and again as they are read."""

import json

import numpy as np
import pytest

from experiments import data
from experiments._errors import UsageError
from experiments.data.users import RESERVED
from experiments.records.runs import METRICS_ROWS
from experiments.training.evaluation import evaluator
from tests import rig, users_data


@pytest.mark.parametrize("name", users_data.WRONG)
def test_invalid_data_are_refused_in_one_sentence(name):
    with pytest.raises(
        UsageError, match=rf"(?s)--dataset=tests.users_data:{name}.*{users_data.WRONG[name][1]}"
    ) as raised:
        data.load(f"tests.users_data:{name}")
    said = str(raised.value).split("\n")
    assert len(said[0]) < 400 and (len(said) == 1 or name == "fails")


@pytest.mark.parametrize("name", users_data.GOOD)
def test_valid_data_are_accepted(name):
    dataset = data.load(f"tests.users_data:{name}")
    read = dataset.train.read(np.array([3, 0, 5]))
    np.testing.assert_array_equal(read.images, users_data.IMAGES[[3, 0, 5]])
    assert read.labels.dtype == np.int32 and data.is_streamed(dataset.train) == name.endswith("stream")
    assert json.loads(json.dumps(dataset.train.image_shape)) == [8, 8, 1]


@pytest.mark.parametrize(("name", "said"), [("late_half", "must be the 8 examples"), ("late_error", "raised OSError")])
def test_every_read_of_a_split_is_checked(name, said):
    dataset = data.load(f"tests.users_data:{name}")
    with pytest.raises(UsageError, match=said):
        dataset.train.read(np.arange(8))


def test_splits_cannot_have_the_names_of_other_kinds_of_rows():
    assert set(RESERVED) == set(METRICS_ROWS)


def test_a_constant_channel_is_centred_and_not_scaled():
    images = np.concatenate([rig.tiny().train.images, np.full((64, 8, 8, 1), 255, np.uint8)], axis=-1)
    mean, std = evaluator.pixel_statistics(data.Examples(images, rig.tiny().train.labels))
    assert std[1] == 1 and mean[1] == pytest.approx(1) and 0 < std[0] < 1
