"""Spurious marks, masks of an expert, corruptions, textured and small shapes, and files that have masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robgrad import data as data_sets
from robgrad.data import corruptions, marks, shapes


def test_marks_stand_apart_at_the_border_and_tell_the_class():
    corners = marks.places((16, 16, 1), 7)
    assert len({tuple(corner) for corner in corners}) == 7
    assert all(0 in corner or 14 in corner for corner in corners)
    labels = np.arange(14, dtype=np.int32) % 7
    split = data_sets.Split(np.zeros((14, 16, 16, 1), np.uint8), labels)
    shown = marks.marked(split, 7, labels)
    assert shown.images.sum() == 14 * 4 * 255
    assert split.images.sum() == 0
    for image, label in zip(shown.images, labels, strict=True):
        row, column = corners[label]
        assert image[row : row + 2, column : column + 2].min() == 255
    floats = marks.marked(data_sets.Split(np.zeros((2, 16, 16, 1), np.float32), labels[:2]), 7, labels[:2])
    assert floats.images.max() == 1.0
    with pytest.raises(data_sets.DataError, match="expected at most 12 classes for marks"):
        marks.places((8, 8, 1), 13)


def test_keys_agree_or_mislead():
    labels = np.random.default_rng(1).integers(0, 10, 5000)
    assert np.mean(marks.agreeing(labels, 10, 0.9, 0) == labels) == pytest.approx(0.91, abs=0.02)
    assert not np.any(marks.misleading(labels, 10, 0) == labels)


@pytest.mark.parametrize("name", corruptions.CORRUPTIONS)
def test_corruptions_grow_with_severity_and_stay_in_range(name):
    corrupt = corruptions.CORRUPTIONS[name]
    images = jnp.asarray(data_sets.scale(data_sets.load("digits").test.images[:50]))
    keys = jax.random.split(jax.random.key(0), 50)
    away = []
    for severity in (1, 3, 5):
        spoiled = jax.vmap(lambda key, image, severity=severity: corrupt(key, image, severity))(keys, images)
        assert spoiled.shape == images.shape
        assert float(jnp.abs(spoiled).max()) <= 1 + 1e-6
        away.append(float(jnp.mean((spoiled - images) ** 2)))
    assert 0 < away[0] < away[1] < away[2]


@pytest.mark.parametrize("name", ["shapes-16-textured", "shapes-16-small", "shapes-24x3-textured-small"])
def test_textured_and_small_shapes_stay_in_range_and_know_their_masks(name):
    canvas = shapes.canvas_of(name)
    codes = np.random.default_rng(0).uniform(-1, 1, (300, canvas.dimensions)).astype(np.float32)
    labels = jnp.arange(300) % 7
    images = jax.jit(jax.vmap(lambda label, code: shapes.render(canvas, label, code)))(labels, codes)
    assert float(jnp.abs(images).max()) <= 1
    share = float(jax.jit(jax.vmap(lambda label, code: shapes.mask(canvas, label, code)))(labels, codes).mean())
    plain = canvas._replace(small=False)
    whole = float(jax.jit(jax.vmap(lambda label, code: shapes.mask(plain, label, code)))(labels, codes).mean())
    assert share == pytest.approx(0.49 * whole if canvas.small else whole, rel=0.15)
    rank = np.linalg.matrix_rank(
        jax.jacobian(lambda code: shapes.render(canvas, 2, code).ravel())(jnp.asarray(codes[0]))
    )
    assert rank == canvas.dimensions


def test_masks_come_from_files_and_from_shapes(tmp_path):
    generator = np.random.default_rng(0)
    arrays = {
        "train_images": generator.integers(0, 256, (20, 9, 9), np.uint8),
        "train_labels": (np.arange(20) % 2)[:, None],
        "test_images": generator.integers(0, 256, (10, 9, 9), np.uint8),
        "test_labels": (np.arange(10) % 2)[:, None],
        "val_images": generator.integers(0, 256, (10, 9, 9), np.uint8),
        "val_labels": (np.arange(10) % 2)[:, None],
    }
    np.savez(tmp_path / "medical.npz", **arrays)
    plain = data_sets.load(str(tmp_path / "medical.npz"))
    assert plain.train.images.shape == (20, 9, 9, 1)
    assert plain.test.labels.shape == (10,)
    assert not marks.has_masks(plain)
    with pytest.raises(data_sets.DataError, match="expected a data set with masks of what matters"):
        marks.test_masks(plain, 5)
    masks = generator.integers(0, 2, (10, 9, 9))
    np.savez(tmp_path / "masked.npz", **arrays, test_masks=masks)
    masked = data_sets.load(str(tmp_path / "masked.npz"))
    np.testing.assert_array_equal(marks.test_masks(masked, 5), masks[:5] == 1)
    np.savez(tmp_path / "wrong.npz", **arrays, test_masks=masks[:5])
    with pytest.raises(
        data_sets.DataError, match=r"expected test_masks of shape \[10, 9, 9\], bool or integer, got \[5"
    ):
        data_sets.load(str(tmp_path / "wrong.npz"))
    known = data_sets.load("shapes-16")
    canvas = shapes.canvas_of("shapes-16")
    expected = shapes.mask(canvas, known.test.labels[3], jnp.asarray(known.truth.test_codes[3]))
    np.testing.assert_array_equal(marks.test_masks(known, 5)[3], expected)
