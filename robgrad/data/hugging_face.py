"""Data sets of Hugging Face's `datasets`, as `save_to_disk` has written them."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from robgrad.data.folders import check_sizes, halved, numbered, prepared, stacked
from robgrad.data.images import DataError, Dataset, Split

# What such a folder holds: of several splits, or of one.
MARKS = ("dataset_dict.json", "state.json")
# Names of columns, by which they are known where their kinds do not tell.
IMAGES, LABELS = ("image", "img", "images", "pixels"), ("label", "labels", "fine_label", "class")
TESTS = ("test", "validation", "valid", "val")


def is_saved(path: Path) -> bool:
    """Whether a folder is a data set that `save_to_disk` has written."""
    return any((path / mark).is_file() for mark in MARKS)


def load(path: Path, size: int | None = None) -> Dataset:
    """Reads a saved data set of images and classes.

    The images are the column of that kind, or called `image` or `img`; the classes the column of class labels, or
    called `label`. Without a split `test` (or `validation`), a fifth of each class is held out, drawn by the seed 0.

    Args:
      path: a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` has written.
      size: pixels of each side that images are resized to, the shorter one cut to a square; as they are where None.

    Returns:
      The data set, grey where all images are, else in colour; its name carries a checksum of the pixels.

    Raises:
      DataError: if `datasets` is not installed, the folder cannot be read, has no training split, or no columns of
        images and of classes; if labels are no whole numbers, or a class without a name has no image; and for images
        of several sizes without a `size`.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{path}: needs Hugging Face's datasets, from the extra 'huggingface': pip install '.[huggingface]'"
        ) from error
    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # Of Arrow, JSON and the file system, as the folder is damaged.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: cannot be read by datasets.load_from_disk ({reason})") from error
    parts = _parts(path, saved)
    images, labels = _columns(path, parts[0])
    kind = parts[0].features[labels]
    classes = tuple(map(str, getattr(kind, "names", ())))
    read = [([_image(path, one, size) for one in part[images]], part[labels]) for part in parts]
    check_sizes([(f"{path}, image {index}", one) for some, _ in read for index, one in enumerate(some)])
    grey = all(one.mode in ("L", "1") for some, _ in read for one in some)
    numbers = [np.asarray(given) for _, given in read]
    if any(of.dtype.kind not in "iub" for of in numbers if of.size):
        raise DataError(f"{path}: expected whole numbers in the column '{labels}', got {kind}")
    splits = [Split(stacked(some, grey), of.astype(np.int32)) for (some, _), of in zip(read, numbers, strict=True)]
    classes = classes or numbered(path, *(split.labels for split in splits))
    train, test = splits if len(splits) == 2 else halved(splits[0])
    digest = 0
    for leaf in (*train, *test):
        digest = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), digest)
    return Dataset(f"{path.resolve().name}-{digest:08x}", classes, train, test)


def _parts(path: Path, saved: Any) -> list[Any]:
    """The training split and, where there is one, the test split."""
    if not hasattr(saved, "keys"):
        return [saved]
    if "train" not in saved:
        raise DataError(f"{path}: expected a split 'train', got {', '.join(saved)}")
    return [saved["train"], *(saved[name] for name in TESTS if name in saved)][:2]


def _columns(path: Path, part: Any) -> tuple[str, str]:
    """The columns of images and of classes."""

    def column(kind: str, names: tuple[str, ...], what: str) -> str:
        of_kind = [name for name, feature in part.features.items() if type(feature).__name__ == kind]
        named = [name for name in names if name in (of_kind or part.features)]
        found = of_kind if len(of_kind) == 1 else named[:1]
        if not found:
            raise DataError(
                f"{path}: expected a column of {what}, called {names[0]}, got {', '.join(part.features)}; "
                f"rename_column makes one"
            )
        return found[0]

    return column("Image", IMAGES, "images"), column("ClassLabel", LABELS, "classes")


def _image(path: Path, value: Any, size: int | None) -> Any:
    """An image of Pillow's, of one or of an array of bytes."""
    from PIL import Image

    if not isinstance(value, Image.Image):
        array = np.asarray(value)
        if (
            array.ndim not in (2, 3)
            or not np.issubdtype(array.dtype, np.integer)
            or np.any((array < 0) | (array > 255))
        ):
            raise DataError(
                f"{path}: expected images, or arrays of bytes [H, W] or [H, W, C], got {array.dtype} of shape "
                f"{list(array.shape)}"
            )
        array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
        value = Image.fromarray(array.astype(np.uint8))
    return prepared(path, value, size)
