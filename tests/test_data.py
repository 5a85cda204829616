"""The data sets: what is on which side, the order of batches, the cache, and refusals."""

import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from experiments import data
from experiments._errors import UsageError
from experiments.data import arrays, contents, digits, tfds, warping


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


def test_views_are_those_of_scipy():
    """The affine and elastic map in float64, and its bilinear interpolation, one view at a time."""
    images, labels = digits.originals()
    number, size, seed = 500, 28, 3
    made, of = digits.views(images, labels, number, seed=seed)
    r = np.random.default_rng(seed)
    source = r.permutation(np.arange(number) % len(images))
    angle = r.uniform(-digits.MAX_ROTATION, digits.MAX_ROTATION, number)
    scaling = 1 + r.uniform(-digits.MAX_SCALING, digits.MAX_SCALING, (2, number))
    shift = r.uniform(-digits.MAX_SHIFT, digits.MAX_SHIFT, (2, number))
    elastic = r.normal(size=(number, 2, digits.ELASTIC_POINTS, digits.ELASTIC_POINTS)) * digits.ELASTIC_STD
    rows, columns = np.meshgrid(np.arange(size) - 13.5, np.arange(size) - 13.5, indexing="ij")
    for i in range(number):
        cos, sin = np.cos(angle[i]), np.sin(angle[i])
        fields = [ndimage.zoom(e, size / len(e), order=3, mode="nearest", grid_mode=True) for e in elastic[i]]
        at = (
            (cos * rows - sin * columns) * scaling[0, i] + shift[0, i] + fields[0] + 13.5,
            (sin * rows + cos * columns) * scaling[1, i] + shift[1, i] + fields[1] + 13.5,
        )
        expected = np.rint(255 * ndimage.map_coordinates(images[source[i]], at, order=1, mode="constant"))
        # One grey level, where rounding decides.
        assert np.abs(made[i, ..., 0].astype(int) - expected).max() <= 1
        assert of[i] == labels[source[i]]


def test_sampling_is_that_of_scipy_everywhere():
    """On images with ink up to their edges, read inside, on the edge and far outside."""
    r = np.random.default_rng(0)
    images = r.random((3, 9, 7))
    at = r.uniform(-4, 13, (5, 2, 6, 6))
    at[0, :, 0] = [[-1, 0, 8, 9, 4, 4.5], [0, 0, 6, 6, 7, -1]]
    which = np.array([2, 0, 1, 1, 2])
    got = warping.sample(warping.framed(images), which, at)
    want = [
        ndimage.map_coordinates(images[w], a, order=1, mode="grid-constant") for w, a in zip(which, at, strict=True)
    ]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_views_do_not_depend_on_blocks_or_threads(monkeypatch):
    images, labels = digits.originals()
    one = digits.views(images, labels, 600, seed=0)
    monkeypatch.setattr(warping, "MAX_THREADS", 1)
    monkeypatch.setattr(digits, "BLOCK", 7)
    np.testing.assert_array_equal(digits.views(images, labels, 600, seed=0)[0], one[0])


def test_a_block_that_fails_is_not_passed_over():
    def make(start, stop):
        if start == 20:
            raise MemoryError(f"{start} to {stop}")

    with pytest.raises(MemoryError, match="20 to 25"):
        warping.in_blocks(make, 25, 10)


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
    segments = data.epoch_segments(103, 10, seed=0, epoch=3, drop_remainder=drop_remainder, multiple_of=8)
    assert [s.indices.shape for s in segments] == ([(10, 10)] if drop_remainder else [(10, 10), (1, 8)])
    counted = np.concatenate([s.indices.ravel() if s.mask is None else s.indices[s.mask] for s in segments])
    assert len(np.unique(counted)) == len(counted) == (100 if drop_remainder else 103)


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        return data.epoch_segments(50, 5, seed=seed, epoch=epoch)[0].indices

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
    with pytest.raises(
        ValueError, match=r"unknown dataset 'minst'; there are: digits, mnist, shapes\. Did you mean 'mnist'"
    ):
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


def make_tfds(directory, name, *, seed=0, train=6):
    """Writes a data set of nine 4x4 images as TFDS does, without TensorFlow."""
    tfds_package = pytest.importorskip("tensorflow_datasets")
    from array_record.python.array_record_module import ArrayRecordWriter

    r = np.random.default_rng(seed)
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
    for split, chosen in (("train", slice(0, train)), ("test", slice(6, 9))):
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


def test_other_files_in_the_same_place_are_other_data(tmp_path, monkeypatch):
    """Two data sets of the same version: fewer examples, and other examples in shards of the same size."""
    monkeypatch.setenv(arrays.CACHE_VARIABLE, str(tmp_path / "cache"))
    place, before = tmp_path / "data", tmp_path / "before"
    images, _ = make_tfds(place, "tiny")
    assert data.load("tiny", str(place)).train.size == 6
    place.rename(before)
    others, _ = make_tfds(place, "tiny", seed=1)
    sizes = [[p.stat().st_size for p in sorted(d.rglob("*record*"))] for d in (before, place)]
    assert sizes[0] == sizes[1]
    np.testing.assert_array_equal(data.load("tiny", str(place)).train.images, others[:6])
    shutil.rmtree(place)
    make_tfds(place, "tiny", train=4)
    assert data.load("tiny", str(place)).train.size == 4
    # The first again, elsewhere: what was decoded then is used.
    monkeypatch.setattr(tfds, "_decode", None)
    np.testing.assert_array_equal(data.load("tiny", str(before)).train.images, images[:6])


def test_a_shard_that_holds_another_number_of_examples_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(arrays.CACHE_VARIABLE, str(tmp_path / "cache"))
    make_tfds(tmp_path / "data", "tiny")
    info = tmp_path / "data" / "tiny" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"6"', '"5"'))
    with pytest.raises(
        UsageError, match=r"tiny-train.* holds 6 examples, and dataset_info.json says 5.*tfds build tiny"
    ):
        data.load("tiny", str(tmp_path / "data"))


def test_files_too_large_to_be_read_whole_are_told_apart(tmp_path, monkeypatch):
    """By evenly spaced blocks, the first and the last among them, and by the time of the last change."""
    monkeypatch.setattr(contents, "READ_WHOLE_BYTES", 1000)
    monkeypatch.setattr(contents, "BLOCK_BYTES", 100)
    path = tmp_path / "shard"
    path.write_bytes(bytes(10_000))
    found = {contents.of_files([path])}
    for at in (0, 9_999):
        changed = bytearray(10_000)
        changed[at] = 1
        stat = path.stat()
        path.write_bytes(changed)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        found.add(contents.of_files([path]))
    os.utime(path, ns=(0, 0))
    found.add(contents.of_files([path]))
    assert len(found) == 4
