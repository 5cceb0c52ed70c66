"""Where data sets come from: embedded, files of arrays, TFDS."""

import difflib
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from robgrad.data import folders, hugging_face, tfds
from robgrad.data.calls import mask_of
from robgrad.data.checks import check, checked_count
from robgrad.data.images import DataError, Dataset, Split
from robgrad.data.shapes import canvas_of, shapes

# How names begin of sets that the networks of a run make.
GENERATED = "generated:"


def load(name: str | os.PathLike, data_dir: str | os.PathLike | None = None, size: int | None = None) -> Dataset:
    """Loads a data set by name and checks it.

    Args:
      name: `"digits"` for scikit-learn's 8x8 digits, embedded, with a fixed stratified fifth held
        out; `"shapes"`, rendered shapes of 28x28 pixels, or another size, for instance `"shapes-16"` or
        `"shapes-32x3"` (colour); or a path that ends in `.npz`, a file of the arrays `train_images`, `train_labels`,
        `test_images`, `test_labels` and, where wanted, `classes` (names) and `test_masks` (which pixels of each
        test image matter to an expert); files in the layout of MedMNIST will do; or a folder, with a `/` in its name,
        that holds those arrays as `.npy` files, or a folder of images for each class, see `folders.load`, or what
        `save_to_disk` of Hugging Face's `datasets` has written, see `hugging_face.load`; or the TFDS name of any image
        classification set with splits `train` and `test`. Its images are decoded once and cached as a
        plain `.npz` beside the data, or in the user's cache directory where the data are read-only. A split that is
        stored class by class, as folders are, comes in an order drawn once, always the same. What a run's
        generator makes, `generated:RUN`, is loaded by `robgrad.runs.load_data`.
      data_dir: TFDS data directory; default `$TFDS_DATA_DIR`, then `~/tensorflow_datasets`.
      size: pixels of each side that the images of a folder are resized to; as they are where None.

    Raises:
      DataError: if the set is unknown, missing or unreadable, or is not of labelled images of one shape.
    """
    name = _text(name)
    if size is not None:
        checked_count("pixel of a side", size, 8)
        if not is_folder(name) or folders.has_arrays(Path(name).expanduser()):
            raise DataError(f"{name}: expected a folder of images to resize; other sets keep their size")
    if name in EMBEDDED:
        dataset = EMBEDDED[name]()
    elif canvas_of(name):
        dataset = shapes(name)
    elif name.startswith(GENERATED):
        raise DataError(f"{name}: expected a set that needs no trained networks; robgrad.runs.load_data loads this one")
    elif is_file(name):
        dataset = _from_file(Path(name).expanduser())
    elif is_folder(name):
        path = Path(name).expanduser()
        if not path.is_dir():
            raise DataError(f"{name}: expected a folder of images or arrays, found none")
        reader = hugging_face.load if hugging_face.is_saved(path) else folders.load
        dataset = _from_file(path) if folders.has_arrays(path) else reader(path, size)
    else:
        dataset = tfds.load(name, _data_dir(data_dir), near=_near(name, _data_dir(data_dir)))
    dataset = _mixed(dataset)
    for part, split in (("train", dataset.train), ("test", dataset.test)):
        if not len(split.labels):
            raise DataError(f"{name}: expected at least one {part} image, got none")
        check(split, len(dataset.classes), dataset.name)
    return dataset


def _mixed(dataset: Dataset) -> Dataset:
    """The set, its splits in an order drawn once where they are stored class by class: the first images are of all."""

    def places(labels: np.ndarray) -> np.ndarray | slice:
        by_class = len(labels) > 1 and labels[0] != labels[-1] and bool(np.all(labels[1:] >= labels[:-1]))
        return np.random.default_rng(0).permutation(len(labels)) if by_class else slice(None)

    train, test = places(dataset.train.labels), places(dataset.test.labels)
    masks = dataset.test_masks if dataset.test_masks is None else dataset.test_masks[test]
    return dataset._replace(train=dataset.train.take(train), test=dataset.test.take(test), test_masks=masks)


def _text(name: Any) -> str:
    """A data set's name, or path, as text; a path of one part gets the `./` by which it is known for one."""
    if not isinstance(name, str | os.PathLike):
        raise DataError(f"expected the name or path of a data set, got {name!r}")
    text = os.fspath(name)
    is_path = not isinstance(name, str) and os.sep not in text and not is_file(text)
    return f".{os.sep}{text}" if is_path else text


def _near(name: str, data_dir: Path) -> str:
    """A half sentence that offers the known data set whose name is nearest, unless that is the name."""
    try:
        there = [path.name for path in data_dir.iterdir() if path.is_dir()]
    except OSError:
        there = []
    nearest = difflib.get_close_matches(name, [*EMBEDDED, "shapes", "mnist", "fashion_mnist", "cifar10", *there], 1)
    return f"; did you mean '{nearest[0]}'?" if nearest and nearest[0] != name else ""


def _data_dir(data_dir: str | os.PathLike | None) -> Path:
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets"
    return Path(chosen).expanduser()


def is_file(name: str) -> bool:
    """Whether a data set's name is the path of a file of arrays."""
    return name.endswith(".npz")


def is_folder(name: str) -> bool:
    """Whether a data set's name is the path of a folder: it has a slash, and is no file of arrays."""
    return os.sep in name and not is_file(name)


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise DataError("digits: needs scikit-learn, from the extra 'data': pip install '.[data]'") from error

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
        if path.is_dir():
            arrays = {part: np.load(path / f"{part}.npy", allow_pickle=False) for part in parts}
            digest = zlib.crc32(b"".join((path / f"{part}.npy").read_bytes() for part in parts))
        else:
            digest = zlib.crc32(path.read_bytes())
            with np.load(path, allow_pickle=False) as stored:
                arrays = dict(stored)
        images, labels, test_images, test_labels = (_in_layout(part, arrays[part]) for part in parts)
    except (OSError, EOFError, TypeError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: expected an .npz file of the arrays {', '.join(parts)} ({reason})") from error
    if images.shape[1:] != test_images.shape[1:] or images.dtype != test_images.dtype:
        raise DataError(
            f"{path}: expected test images like the training images, of shape {list(images.shape[1:])} and "
            f"{images.dtype}, got {list(test_images.shape[1:])} and {test_images.dtype}"
        )
    for one, shown in ((labels, images), (test_labels, test_images)):
        if not np.issubdtype(one.dtype, np.integer):
            raise DataError(f"{path}: expected integer labels, got {one.dtype}; number the classes from 0")
        if one.shape != shown.shape[:1]:
            hint = "; give classes, not one-hot vectors" if one.ndim == 2 else ""
            raise DataError(
                f"{path}: expected one integer label for each of {len(shown)} images, got shape {list(one.shape)}{hint}"
            )
        if one.size and one.max() > np.iinfo(np.int32).max:
            raise DataError(f"{path}: expected labels of 32 bits, got {one.max()}; number the classes from 0")
    if "classes" in arrays and arrays["classes"].ndim != 1:
        raise DataError(f"{path}: expected classes as a list of names, got shape {list(arrays['classes'].shape)}")
    classes = tuple(map(str, arrays["classes"])) if "classes" in arrays else folders.numbered(path, labels, test_labels)
    train, test = Split(images, labels.astype(np.int32)), Split(test_images, test_labels.astype(np.int32))
    masks = _masks(path, arrays["test_masks"], test_images) if "test_masks" in arrays else None
    return Dataset(f"{path.stem}-{digest:08x}", classes, train, test, test_masks=masks)


def _in_layout(part: str, array: np.ndarray) -> np.ndarray:
    """Images with an axis of channels, labels without one of length 1: what MedMNIST's files have otherwise."""
    if part.endswith("images"):
        return array[..., None] if array.ndim == 3 else array
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def _masks(path: Path, masks: np.ndarray, images: np.ndarray) -> np.ndarray:
    """An expert's masks, checked; bool."""
    if np.issubdtype(masks.dtype, np.floating) and not np.isfinite(masks).all():
        raise DataError(f"{path}: expected test_masks of finite values, got NaN or infinity")
    try:
        return np.asarray(mask_of(masks, images.shape[:3]))
    except (DataError, TypeError) as error:
        raise DataError(
            f"{path}: expected test_masks of shape {list(images.shape[:3])}, bool or integer, got {list(masks.shape)} "
            f"and {masks.dtype}"
        ) from error


EMBEDDED: dict[str, Callable[[], Dataset]] = {"digits": _digits}
