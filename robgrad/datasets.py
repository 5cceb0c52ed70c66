"""Labelled images as plain arrays: scikit-learn's digits, TFDS sets read without TensorFlow, files, a 2-D toy.

A data set here is two pairs of arrays that fit on the device: unsigned bytes `[N, H, W, C]` and
integer labels `[N]`. Everything downstream works in the pixel range [-1, 1] of the paper, and
`scale` is the only place that knows it.
"""

import os
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

PIXEL_RANGE = (-1.0, 1.0)


class DataError(ValueError):
    """A data set that is missing, unreadable or not of labelled images; its message is for the user."""


class Split(NamedTuple):
    """Images `[N, H, W, C]` (uint8; float32 in [-1, 1] for the toy) and labels `[N]` (int32)."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """A named data set with its class names and its two splits."""

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split


def scale(images: Array) -> Array:
    """Maps bytes 0..255 to float32 in [-1, 1]; images that are floating point already pass unchanged."""
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images
    return images.astype(jnp.float32) / 127.5 - 1.0


def load(name: str, data_dir: str | os.PathLike | None = None) -> Dataset:
    """Loads a data set by name and checks it.

    Args:
      name: `"digits"` for scikit-learn's 8x8 digits, embedded, with a fixed stratified fifth held
        out; or a path that ends in `.npz`, a file of the arrays `train_images`, `train_labels`,
        `test_images`, `test_labels` and, where wanted, `classes` (names); or the TFDS name of any image
        classification set with splits `train` and `test`. Its images are decoded once and cached as a
        plain `.npz` beside the data, or in the user's cache directory where the data are read-only.
      data_dir: TFDS data directory; default `$TFDS_DATA_DIR`, then `~/tensorflow_datasets`.

    Raises:
      DataError: if the set is unknown, missing or unreadable, or is not of labelled images of one shape.
    """
    if name == "digits":
        dataset = _digits()
    else:
        dataset = _from_file(Path(name).expanduser()) if is_file(name) else _from_tfds(name, _data_dir(data_dir))
    for split in (dataset.train, dataset.test):
        check(split, len(dataset.classes), dataset.name)
    return dataset


def is_file(name: str) -> bool:
    """Whether a data set's name is the path of a file of arrays."""
    return name.endswith(".npz")


def check(split: Split, classes: int, name: str = "the data set") -> None:
    """Raises `DataError` unless images and labels have the shapes, types and ranges that all else assumes."""
    images, labels = split
    if images.ndim != 4:
        raise DataError(
            f"{name}: expected images of shape [N, H, W, C], got {list(images.shape)}; add the missing axes"
        )
    if images.dtype == np.uint8:
        pass
    elif not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{name}: expected uint8 or floating-point images, got {images.dtype}; convert them")
    elif images.size and not (np.min(images) >= PIXEL_RANGE[0] and np.max(images) <= PIXEL_RANGE[1]):
        raise DataError(
            f"{name}: expected floating-point images in {list(PIXEL_RANGE)}, got values from {np.min(images):g} to "
            f"{np.max(images):g}; rescale them"
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{name}: expected one integer label for each of {len(images)} images, got {labels.dtype} labels of shape "
            f"{list(labels.shape)}"
        )
    if labels.size and not (labels.min() >= 0 and labels.max() < classes):
        raise DataError(
            f"{name}: expected labels in 0..{classes - 1}, got {labels.min()}..{labels.max()}; renumber them or give "
            "the right number of classes"
        )


def two_gaussians(key: Array, points: int = 3000) -> Split:
    """The toy of the paper's section 2.2: two elongated Gaussians in the plane, one a class.

    Draws `points` from N((1.2, 0.1), S) (class 0) and as many from N((-1.2, -0.1), S) (class 1), with
    S = [[0.1, -0.01], [-0.01, 0.002]], then maps all jointly to [-1, 1] by their global minimum and
    maximum. Returns float32 points `[2 * points, 2]`.
    """
    means = jnp.array([[1.2, 0.1], [-1.2, -0.1]])
    covariance = jnp.array([[0.1, -0.01], [-0.01, 0.002]])
    draws = jax.random.multivariate_normal(key, means[:, None], covariance, (2, points)).reshape(-1, 2)
    low, high = draws.min(), draws.max()
    scaled = 2.0 * (draws - low) / (high - low) - 1.0
    return Split(np.asarray(scaled), np.repeat(np.arange(2, dtype=np.int32), points))


def _digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    classes = tuple(str(c) for c in digits.target_names)
    return Dataset("digits", classes, Split(images[train], labels[train]), Split(images[test], labels[test]))


def _from_file(path: Path) -> Dataset:
    """Reads a file of arrays; its name carries a digest, so that runs on files of one name are told apart."""
    parts = [f"{split}_{kind}" for split in ("train", "test") for kind in ("images", "labels")]
    try:
        digest = zlib.crc32(path.read_bytes())
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        images, labels, test_images, test_labels = (arrays[part] for part in parts)
    except (OSError, EOFError, TypeError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: expected an .npz file of the arrays {', '.join(parts)} ({reason})") from error
    if images.shape[1:] != test_images.shape[1:] or images.dtype != test_images.dtype:
        raise DataError(
            f"{path}: expected test images like the training images, of shape {list(images.shape[1:])} and "
            f"{images.dtype}, got {list(test_images.shape[1:])} and {test_images.dtype}"
        )
    for one in (labels, test_labels):
        if not np.issubdtype(one.dtype, np.integer):
            raise DataError(f"{path}: expected integer labels, got {one.dtype}; number the classes from 0")
    top = max(int(one.max(initial=0)) for one in (labels, test_labels))
    classes = tuple(map(str, arrays["classes"] if "classes" in arrays else range(top + 1)))
    train, test = Split(images, labels.astype(np.int32)), Split(test_images, test_labels.astype(np.int32))
    return Dataset(f"{path.stem}-{digest:08x}", classes, train, test)


def _data_dir(data_dir: str | os.PathLike | None) -> Path:
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets"
    return Path(chosen).expanduser()


def _from_tfds(name: str, data_dir: Path) -> Dataset:
    import tensorflow_datasets as tfds

    ways = (
        "name another directory by --data_dir or TFDS_DATA_DIR, or install the extra that downloads it, "
        "`pip install 'robgrad[prepare]'`, and run again"
    )
    if data_dir.exists() and not (data_dir.is_dir() and os.access(data_dir, os.R_OK | os.X_OK)):
        raise DataError(f"{data_dir}: expected a readable TFDS data directory; {ways}")
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise DataError(f"unknown data set '{name}': expected 'digits' or the TFDS name of an image set") from error
    if not builder.is_prepared():
        _download(builder, f"{name}: not found in {data_dir}: expected {builder.data_path}; {ways}")
    keys = builder.info.supervised_keys
    features = dict(builder.info.features.items())
    if keys is None or not isinstance(features.get(keys[0]), tfds.features.Image) or "test" not in builder.info.splits:
        raise DataError(f"{name}: expected an image classification set with splits 'train' and 'test'")
    train, test = (_decoded(builder, split, *keys) for split in ("train", "test"))
    return Dataset(name, tuple(features[keys[1]].names), train, test)


def _download(builder, missing: str) -> None:
    try:
        import tensorflow  # noqa: F401
    except ImportError:
        raise DataError(missing) from None
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:
        raise DataError(f"{missing} (downloading it failed: {error})") from error


def _decoded(builder, split: str, image_key: str, label_key: str) -> Split:
    """Reads a split from its cache of decoded arrays, or decodes it and writes the cache."""
    file = f"robgrad-{split}.npz"
    beside = Path(builder.data_path)
    fallback = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "robgrad", *beside.parts[-2:])
    for directory in (beside, fallback):
        try:
            with np.load(directory / file, allow_pickle=False) as cached:
                return Split(cached["images"], cached["labels"])
        except (OSError, ValueError, KeyError):
            continue
    try:
        source = builder.as_data_source(split)
        examples = [(example[image_key], example[label_key]) for example in source]
        images = np.stack([image for image, _ in examples])
    except Exception as error:
        raise DataError(
            f"{builder.data_path}: cannot read split '{split}' as images of one shape ({str(error).splitlines()[0]}); "
            "expected a set prepared as array_record: prepare it again"
        ) from error
    decoded = Split(images, np.array([label for _, label in examples], np.int32))
    for directory in (beside, fallback):
        if _write(directory / file, decoded):
            break
    return decoded


def _write(path: Path, split: Split) -> bool:
    """Writes atomically; leaves a directory that carries no write permission alone, even as root."""
    try:
        if path.parent.name and not path.parent.exists():
            path.parent.mkdir(parents=True)
        if not path.parent.stat().st_mode & stat.S_IWUSR:
            return False
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
            np.savez(file, images=split.images, labels=split.labels)
        os.replace(file.name, path)
    except OSError:
        return False
    return True
