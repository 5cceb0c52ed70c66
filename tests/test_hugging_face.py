"""Data sets that Hugging Face's `datasets` has saved."""

import sys
from pathlib import Path

import numpy as np
import pytest

from robgrad import data

datasets = pytest.importorskip("datasets")
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 9, 8, 3), np.uint8)
LABELS = [0, 1, 2] * 4
CLASSES = ["bee", "cat", "dog"]


def split(pixels=PIXELS, labels=LABELS, image="image", label="label", kind=None, names=CLASSES):
    features = datasets.Features({
        image: kind or datasets.Image(),
        label: datasets.ClassLabel(names=names) if names else datasets.Value("int64"),
        "id": datasets.Value("int64"),
    })  # fmt: skip
    columns = {image: [*pixels], label: labels, "id": range(len(labels))}
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize("held_out", ["test", "validation"])
def test_splits_of_images_and_class_labels(held_out, tmp_path):
    """PNG inside, so that pixels are exact; the test split is `test`, else `validation`."""
    parts = {"train": split(), held_out: split(PIXELS[::-1]), "unsupervised": split()}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "animals")
    found = data.load(f"{tmp_path}/animals")
    assert found.classes == tuple(CLASSES)
    np.testing.assert_array_equal(found.train.images, PIXELS)
    np.testing.assert_array_equal(found.test.images, PIXELS[::-1])
    np.testing.assert_array_equal(found.train.labels, LABELS)
    assert data.load(f"{tmp_path}/animals").name == found.name
    assert found.name.startswith("animals-")


def test_one_split_grey_arrays_and_plain_numbers(tmp_path):
    """A fifth of each class is held out; grey stays grey; classes without names are called by their numbers."""
    grey = split(PIXELS[..., 0], LABELS, "img", "labels", datasets.Array2D((9, 8), "uint8"), None)
    grey.save_to_disk(tmp_path / "grey")
    found = data.load(f"{tmp_path}/grey")
    assert found.classes == ("0", "1", "2")
    assert found.train.images.shape == (9, 9, 8, 1)
    assert sorted(found.test.labels) == [0, 1, 2]
    every = np.concatenate([found.train.images, found.test.images])[..., 0]
    assert {one.tobytes() for one in every} == {np.ascontiguousarray(one).tobytes() for one in PIXELS[..., 0]}
    assert data.load(f"{tmp_path}/grey", size=16).train.images.shape == (9, 16, 16, 1)


def refused(saved, path: Path) -> str:
    saved.save_to_disk(path)
    with pytest.raises(data.DataError) as error:
        data.load(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_no_set_of_labelled_images(tmp_path, monkeypatch):
    """Each ends in one line."""
    only = datasets.DatasetDict({"test": split()})
    assert "expected a split 'train', got test" in refused(only, tmp_path / "a")
    assert "expected a column of images, called image, got text, label" in refused(
        datasets.Dataset.from_dict({"text": ["a"] * 4, "label": [0, 1, 0, 1]}), tmp_path / "b"
    )
    assert "expected a column of classes, called label, got image, id" in refused(
        split().remove_columns("label"), tmp_path / "c"
    )
    several = split([*PIXELS[:11], PIXELS[11, :5]])
    assert "expected images of one size, 8x9" in refused(several, tmp_path / "d")
    words = datasets.Dataset.from_dict({"image": [*PIXELS], "label": ["x"] * 12}).cast_column("image", datasets.Image())
    assert "expected whole numbers in the column 'label'" in refused(words, tmp_path / "e")
    halves = datasets.Dataset.from_dict({"image": [*PIXELS], "label": [0.0, 0.5] * 6})
    assert "expected whole numbers in the column 'label'" in refused(
        halves.cast_column("image", datasets.Image()), tmp_path / "g"
    )
    gap = split(labels=[0, 2] * 6, names=None)
    assert "expected training images of each class 0..2, got none of class 1" in refused(gap, tmp_path / "h")
    empty = datasets.DatasetDict({"train": split(), "test": split().select([])})
    assert "cannot be read" in refused(empty, tmp_path / "i")
    unlabelled = split(labels=[-1] * 12, names=None)
    assert "expected labels" in refused(unlabelled, tmp_path / "f")
    (tmp_path / "a" / "dataset_dict.json").write_text("{")
    with pytest.raises(data.DataError, match=r"cannot be read by datasets\.load_from_disk"):
        data.load(f"{tmp_path}/a")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(data.DataError, match=r"from the extra 'huggingface': pip install '.\[huggingface\]'"):
        data.load(f"{tmp_path}/b")
