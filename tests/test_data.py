"""Digits against scikit-learn, TFDS sets against their published sizes, the toy's moments, and what is refused."""

import os
import types

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from robgrad import data as data_sets
from robgrad.data import tfds


def test_digits_are_scikit_learns(digits):
    source = load_digits()
    both = np.concatenate([digits.train.images, digits.test.images])[..., 0]
    recovered = np.round(both / (255 / 16)).astype(int).reshape(len(both), -1)
    assert sorted(map(tuple, recovered)) == sorted(map(tuple, source.data.astype(int)))
    assert (len(digits.train.labels), len(digits.test.labels)) == (1437, 360)
    counts = np.bincount(digits.test.labels)
    assert counts.min() >= 35
    np.testing.assert_array_equal(data_sets.load("digits").test.labels, digits.test.labels)


def test_scale_is_the_papers_range():
    scaled = data_sets.scale(np.array([0, 51, 255], np.uint8))
    np.testing.assert_allclose(scaled, [-1.0, -0.6, 1.0], rtol=1e-6)
    floats = np.array([-0.3, 0.7], np.float32)
    assert data_sets.scale(floats) is floats


def test_toy_has_the_papers_moments():
    """Means, covariance and range, undone from the joint scaling."""
    points, labels = data_sets.two_gaussians(jax.random.key(0))
    assert points.shape == (6000, 2)
    assert (points.min(), points.max()) == (-1.0, 1.0)
    first, second = points[labels == 0], points[labels == 1]
    unit = 2.4 / (first.mean(0) - second.mean(0))[0]
    np.testing.assert_allclose((first.mean(0) - second.mean(0)) * unit, [2.4, 0.2], atol=0.02)
    for part in (first, second):
        np.testing.assert_allclose(np.cov(part.T) * unit**2, [[0.1, -0.01], [-0.01, 0.002]], atol=0.008)


GOOD = np.zeros((3, 4, 4, 1), np.uint8), np.array([0, 1, 2])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (GOOD[0][..., 0], GOOD[1], r"shape \[N, H, W, C\], got \[3, 4, 4\]"),
        (GOOD[0].astype(int), GOOD[1], "uint8 or floating"),
        (GOOD[0] + np.float32(7), GOOD[1], r"in \[-1.0, 1.0\], got values from 7 to 7"),
        (GOOD[0] + np.float32(np.nan), GOOD[1], "got values from nan"),
        (GOOD[0], GOOD[1][:2], "one integer label for each of 3"),
        (GOOD[0], GOOD[1] * 1.0, "integer label"),
        (GOOD[0], np.array([0, 1, 3]), r"labels in 0..2, got 0..3"),
        (GOOD[0], np.array([0, 1, -1]), r"labels in 0..2, got -1..1"),
    ],
)
def test_check_says_what_is_wrong(images, labels, message):
    data_sets.check(data_sets.Split(*GOOD), 3)
    with pytest.raises(data_sets.DataError, match=message):
        data_sets.check(data_sets.Split(images, labels), 3)


def test_unknown_and_missing_sets(tmp_path):
    with pytest.raises(data_sets.DataError, match="unknown data set 'no_such_set'"):
        data_sets.load("no_such_set", tmp_path)
    # What varies in size is refused before anything is downloaded.
    with pytest.raises(data_sets.DataError, match=r"food101: expected images of one shape, got \(None, None, 3\)"):
        data_sets.load("food101", tmp_path)
    try:
        import tensorflow  # noqa: F401
    except ImportError:
        with pytest.raises(data_sets.DataError, match="coco: its description needs TensorFlow: pip install"):
            data_sets.load("coco", tmp_path)
        with pytest.raises(data_sets.DataError, match=rf"expected {tmp_path}/mnist/3.0.1; name another directory"):
            data_sets.load("mnist", tmp_path)
        with pytest.raises(data_sets.DataError, match=rf"mnist: not found in {tmp_path}.*--data_dir.*prepare"):
            data_sets.load("mnist", tmp_path)


def test_files_of_arrays(tmp_path):
    file, images, labels = tmp_path / "mine.npz", np.zeros((6, 8, 8, 1), np.uint8), np.arange(6) % 3
    arrays = {"train_images": images, "train_labels": labels, "test_images": images[:2], "test_labels": labels[:2]}
    np.savez(file, **arrays)
    dataset = data_sets.load(str(file))
    assert dataset.name.startswith("mine-")
    assert dataset.classes == ("0", "1", "2")
    np.testing.assert_array_equal(dataset.train.labels, labels)
    np.savez(file, **arrays | {"test_labels": labels[1:3]}, classes=["a", "b", "c"])
    again = data_sets.load(str(file))
    assert again.classes == ("a", "b", "c")
    assert again.name != dataset.name
    np.savez(file, **arrays | {"train_labels": labels + 0.5})
    with pytest.raises(data_sets.DataError, match="expected integer labels, got float64"):
        data_sets.load(str(file))
    np.savez(file, **arrays | {"test_images": images[:2, :4]})
    with pytest.raises(data_sets.DataError, match="expected test images like the training images"):
        data_sets.load(str(file))
    file.write_bytes(b"")
    with pytest.raises(data_sets.DataError, match=r"expected an \.npz file"):
        data_sets.load(str(file))
    np.savez(file, train_images=images)
    with pytest.raises(data_sets.DataError, match=r"expected an \.npz file of the arrays train_images, train_labels"):
        data_sets.load(str(file))
    file.write_bytes(b"PK truncated")
    with pytest.raises(data_sets.DataError, match=r"expected an \.npz file"):
        data_sets.load(str(file))
    with pytest.raises(data_sets.DataError, match="No such file"):
        data_sets.load(str(tmp_path / "none.npz"))


def test_a_data_directory_must_be_one(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(data_sets.DataError, match="expected a readable TFDS data directory"):
        data_sets.load("mnist", file)


SIZES = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


@pytest.mark.parametrize("name", SIZES)
def test_tfds_sets(name, tmp_path, monkeypatch):
    data_dir = os.environ.get("TFDS_DATA_DIR")
    if not data_dir or not os.path.isdir(os.path.join(data_dir, name)):
        pytest.skip("set TFDS_DATA_DIR to a directory that holds the set")
    dataset = data_sets.load(name)
    assert dataset.train.images.shape[1:] == dataset.test.images.shape[1:] == SIZES[name]
    assert len(dataset.train.labels) == (50_000 if name == "cifar10" else 60_000)
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), np.full(10, 1000) if name != "mnist" else MNIST)


MNIST = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_decoded_sets_are_cached(tmp_path):
    """The cache is read in place of the source, written whole, and kept out of directories marked read-only.

    One of another set, of another version or without a word on what it is of is not believed, nor is a damaged one.
    """
    split = data_sets.Split(np.arange(32, dtype=np.uint8).reshape(2, 4, 4, 1), np.array([1, 0], np.int32))

    class Info:
        full_name, splits = "set/1.0.0", {"train": types.SimpleNamespace(num_examples=2)}

    class Builder:
        data_path, info = tmp_path / "set" / "1.0.0", Info

    assert tfds._write(Builder.data_path / "robgrad-train.npz", split, tfds._source(Builder, "train"))
    cached = tfds._decoded(Builder, "train", "image", "label")
    np.testing.assert_array_equal(cached.images, split.images)
    (tmp_path / "set" / "1.0.0").chmod(0o555)
    assert not tfds._write(tmp_path / "set" / "1.0.0" / "robgrad-test.npz", split, "")
    (tmp_path / "set" / "1.0.0").chmod(0o755)
    whole = (Builder.data_path / "robgrad-train.npz").read_bytes()
    flipped = bytearray(whole)
    flipped[120] ^= 1  # Within the images.
    np.savez(tmp_path / "silent.npz", images=split.images, labels=split.labels)
    silent = (tmp_path / "silent.npz").read_bytes()
    np.savez(tmp_path / "foreign.npz", images=split.images, labels=split.labels, source="other/1.0.0 train 2: ")
    foreign = (tmp_path / "foreign.npz").read_bytes()
    for damaged in (b"PK truncated", bytes(flipped), silent, foreign):
        (Builder.data_path / "robgrad-train.npz").write_bytes(damaged)
        with pytest.raises(data_sets.DataError, match="cannot read split 'train'"):
            tfds._decoded(Builder, "train", "image", "label")
