"""The data sets: what is on which side, the order of batches, the cache, and refusals."""

import io

import numpy as np
import pytest
from PIL import Image

from experiments import data
from experiments.data import arrays, digits, tfds


def test_digits_are_what_they_are_said_to_be():
    dataset = data.load("digits")
    shapes = {name: split.images.shape for name, split in {"train": dataset.train, **dataset.test}.items()}
    assert shapes == {"train": (60_000, 28, 28, 1), "test": (10_000, 28, 28, 1), "originals": (360, 28, 28, 1)}
    for split in (dataset.train, *dataset.test.values()):
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
        assert set(split.labels) == set(range(10))
        # A view is a picture of a digit: some ink, and not all over.
        ink = (split.images > 127).mean(axis=(1, 2, 3))
        assert (ink > 0.02).all() and (ink < 0.6).all()


def test_views_depend_on_the_seed_alone_and_use_every_image_equally():
    r = np.random.default_rng(0)
    images = r.random((5, 28, 28))
    labels = np.arange(5, dtype=np.int32)
    one, same, other = (digits.views(images, labels, 20, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one[0], same[0])
    assert (one[0] != other[0]).any()
    np.testing.assert_array_equal(np.bincount(one[1]), [4] * 5)


def test_no_image_is_on_both_sides():
    """An original's nearest training view is of another image, so it is never as near as its own views are."""
    dataset = data.load("digits")
    flat = {name: s.images.reshape(len(s.labels), -1).astype(np.float32) / 255 for name, s in dataset.test.items()}
    train = dataset.train.images[::10].reshape(6000, -1).astype(np.float32) / 255

    def nearest(points):
        squares = (flat["originals"] ** 2).sum(1)[:, None] + (points**2).sum(1)[None]
        return np.sqrt(np.maximum(squares - 2 * flat["originals"] @ points.T, 0)).min(axis=1)

    assert np.median(nearest(train)) > 1.3 * np.median(nearest(flat["test"]))


@pytest.mark.parametrize("drop_remainder", [True, False])
def test_an_epoch_holds_every_example_at_most_once(drop_remainder):
    indices, mask = data.epoch_order(103, 10, seed=0, epoch=3, drop_remainder=drop_remainder)
    counted = np.sort(indices[mask])
    assert indices.shape == mask.shape == ((10, 10) if drop_remainder else (11, 10))
    assert len(np.unique(counted)) == len(counted) == (100 if drop_remainder else 103)


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        return data.epoch_order(50, 5, seed=seed, epoch=epoch)[0]

    np.testing.assert_array_equal(order(1, 2), order(1, 2))
    assert (order(1, 2) != order(1, 3)).any() and (order(1, 2) != order(2, 2)).any()


def test_a_damaged_cache_is_named_and_made_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv(arrays.CACHE_VARIABLE, str(tmp_path))
    made = []

    def make():
        made.append(1)
        return {"a": np.arange(1000)}

    for _ in range(2):
        np.testing.assert_array_equal(arrays.cached("key", make)["a"], np.arange(1000))
    assert len(made) == 1
    path = tmp_path / "key.npz"
    path.write_bytes(path.read_bytes()[:-100])
    np.testing.assert_array_equal(arrays.cached("key", make)["a"], np.arange(1000))
    assert len(made) == 2 and "key.npz cannot be read" in caplog.text
    assert not list(tmp_path.glob("*.tmp"))


def test_a_data_set_that_is_not_prepared_says_where_and_how(tmp_path):
    with pytest.raises(ValueError, match="mnist") as info:
        data.load("mnist", str(tmp_path))
    message = str(info.value)
    assert str(tmp_path) in message and f"tfds build mnist --data_dir={tmp_path}" in message and "prepare" in message


def test_an_unknown_data_set_is_refused_with_the_closest_name(tmp_path):
    (tmp_path / "mnist").mkdir()
    with pytest.raises(ValueError, match=r"unknown dataset 'minst'; there are: digits, mnist\. Did you mean 'mnist'"):
        data.load("minst", str(tmp_path))


def test_tfds_reads_a_prepared_data_set(tmp_path, monkeypatch):
    """On a small data set made here, in TFDS's own format."""
    monkeypatch.setenv(arrays.CACHE_VARIABLE, str(tmp_path / "cache"))
    images, labels = make_tfds(tmp_path / "data", "tiny")
    dataset = data.load("tiny", str(tmp_path / "data"))
    np.testing.assert_array_equal(dataset.train.images, images[:6])
    np.testing.assert_array_equal(dataset.train.labels, labels[:6])
    np.testing.assert_array_equal(dataset.test["test"].labels, labels[6:])
    assert dataset.num_classes == 3 and tfds.prepared(str(tmp_path / "data")) == ["tiny"]


def make_tfds(directory, name):
    """Writes a data set of nine 4x4 images as TFDS does, without TensorFlow."""
    tfds_package = pytest.importorskip("tensorflow_datasets")
    from array_record.python.array_record_module import ArrayRecordWriter

    r = np.random.default_rng(0)
    images = r.integers(0, 256, (9, 4, 4, 1), dtype=np.uint8)
    labels = np.arange(9) % 3
    features = tfds_package.features.FeaturesDict(
        {
            "image": tfds_package.features.Image(shape=(4, 4, 1), encoding_format="png"),
            "label": tfds_package.features.ClassLabel(num_classes=3),
        }
    )
    path = directory / name / "1.0.0"
    path.mkdir(parents=True)
    splits = []
    for split, chosen in (("train", slice(0, 6)), ("test", slice(6, 9))):
        file = path / f"{name}-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(file), "group_size:1")
        for image, label in zip(images[chosen], labels[chosen], strict=True):
            png = io.BytesIO()
            Image.fromarray(image[..., 0]).save(png, format="PNG")
            png.seek(0)
            writer.write(features.serialize_example({"image": png, "label": int(label)}))
        writer.close()
        template = tfds_package.core.ShardedFileTemplate(
            data_dir=path, dataset_name=name, split=split, filetype_suffix="array_record"
        )
        count = chosen.stop - chosen.start
        splits.append(
            tfds_package.core.SplitInfo(
                name=split, shard_lengths=[count], num_bytes=file.stat().st_size, filename_template=template
            )
        )
    tfds_package.folder_dataset.write_metadata(
        data_dir=str(path), features=features, split_infos=splits, supervised_keys=("image", "label"), check_data=False
    )
    return images, labels
