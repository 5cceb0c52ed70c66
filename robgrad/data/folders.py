"""Data sets as folders: a folder of images for each class, or a file of each array."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from robgrad.data.images import DataError, Dataset, Split

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm")
ARRAYS = tuple(f"{split}_{kind}" for split in ("train", "test") for kind in ("images", "labels"))
# Of images without a test split, those of each class that are held out for one.
HELD_OUT = 0.2


def has_arrays(path: Path) -> bool:
    """Whether a folder holds a file of each array, `train_images.npy` and so on."""
    return all((path / f"{name}.npy").is_file() for name in ARRAYS)


def load(path: Path, size: int | None = None) -> Dataset:
    """Reads a folder of class folders of images.

    Args:
      path: holds a folder of images for each class, or folders `train` and `test` (or `val`) which do. Without those, a
        fifth of each class is the test split, drawn by the seed 0. Classes are the folders' names in their order.
      size: pixels of each side that images are resized to, the shorter one cut to a square; as they are where None.

    Returns:
      The data set, grey where all images are, else in colour; its name carries a checksum of the files.

    Raises:
      DataError: if there are no classes, none of their images or others in a split, images of several sizes and no
        `size`, or an image that cannot be read.
    """
    parts = [path / name for name in ("train", "test", "val") if (path / name).is_dir()]
    if parts and (len(parts) < 2 or parts[0].name != "train"):
        raise DataError(f"{path}: expected folders train and test (or val), got {', '.join(one.name for one in parts)}")
    roots = parts[:2] or [path]
    classes = _folders(roots[0])
    if len(classes) < 2:
        raise DataError(
            f"{path}: expected a folder of images for each of two or more classes, or folders train and test of such, "
            f"got {len(classes)}"
        )
    if len(roots) == 2 and _folders(roots[1]) != classes:
        extra = sorted({*_folders(roots[1])} ^ {*classes})
        raise DataError(f"{roots[1]}: expected the classes of {roots[0]}, but {', '.join(extra[:5])} is in one of them")
    digest = 0
    found: list[tuple[list[Any], np.ndarray]] = []
    for root in roots:
        files = [(file, label) for label, name in enumerate(classes) for file in _images(root / name)]
        opened = []
        for file, _ in files:
            digest = zlib.crc32(file.read_bytes(), digest)
            opened.append(_opened(file, size))
        found.append((opened, np.array([label for _, label in files], np.int32)))
    check_sizes([(file, image) for images, _ in found for file, image in images])
    grey = all(image.mode in ("L", "1") for images, _ in found for _, image in images)
    splits = [Split(stacked([image for _, image in images], grey), labels) for images, labels in found]
    train, test = splits if len(splits) == 2 else halved(splits[0])
    return Dataset(f"{path.resolve().name}-{digest:08x}", tuple(classes), train, test)


def _folders(path: Path) -> list[str]:
    return sorted(one.name for one in path.iterdir() if one.is_dir() and not one.name.startswith("."))


def _images(path: Path) -> list[Path]:
    files = sorted(one for one in path.iterdir() if one.suffix.lower() in ENDINGS and not one.name.startswith("."))
    if not files:
        raise DataError(f"{path}: expected images ({', '.join(ENDINGS)}), found none")
    return files


def _opened(file: Path, size: int | None) -> tuple[Path, Any]:
    """An image of Pillow's, resized where that is asked for."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f"{file}: needs Pillow, from the extra 'data': pip install '.[data]'") from error
    try:
        with Image.open(file) as opened:
            return file, prepared(file, opened, size)
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{file}: cannot be read as an image ({reason})") from error


def prepared(name: Any, image: Any, size: int | None) -> Any:
    """An image of Pillow's, grey or in colour, upright, and resized where that is asked for.

    Raises:
      DataError: if it has more than 8 bits a channel.
    """
    from PIL import Image, ImageOps

    if image.mode.startswith(("I", "F")):
        raise DataError(f"{name}: expected an image of 8 bits a channel, got one of mode {image.mode}")
    upright = ImageOps.exif_transpose(image)
    image = upright if upright.mode in ("L", "1") else upright.convert("RGB")
    image.load()
    return image if size is None else ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


def check_sizes(images: list[tuple[Any, Any]]) -> None:
    """That all images are of one size, each given with its name.

    Raises:
      DataError: if they are not.
    """
    first, one = images[0]
    for name, image in images:
        if image.size != one.size:
            raise DataError(
                f"{name}: expected images of one size, {one.width}x{one.height} as {Path(first).name}, got "
                f"{image.width}x{image.height}; give a size to resize them to (--image_size=32)"
            )


def stacked(images: list[Any], grey: bool) -> np.ndarray:
    """Images of Pillow's as bytes `[N, H, W, C]`, of one channel where they are to be grey."""
    array = np.stack([np.asarray(image.convert("L" if grey else "RGB"), np.uint8) for image in images])
    return array[..., None] if grey else array


def numbered(path: Path, labels: np.ndarray, *others: np.ndarray) -> tuple[str, ...]:
    """Names of classes that have none: their numbers.

    Args:
      path: of the data set.
      labels: of the training images, or of all.
      others: of test images.

    Raises:
      DataError: if a number between 0 and the greatest has no training image. Negative labels are told by `check`.
    """
    top = max(int(one.max(initial=0)) for one in (labels, *others))
    there = np.unique(labels[labels >= 0])
    # The first number that a class should have and none has.
    gaps = np.flatnonzero(there != np.arange(len(there)))
    absent = [int(gaps[0]) if len(gaps) else len(there)] if len(there) <= top else []
    if absent and labels.size and labels.min() >= 0:
        raise DataError(
            f"{path}: expected training images of each class 0..{top}, got none of class {absent[0]}; number the "
            "classes from 0 without a gap, or name them"
        )
    return tuple(map(str, range(top + 1)))


def halved(split: Split) -> tuple[Split, Split]:
    """Training and test split, a share of each class in the second.

    Raises:
      DataError: if a class has a single image.
    """
    generator, test = np.random.default_rng(0), np.zeros(len(split.labels), bool)
    for label in np.unique(split.labels):
        places = generator.permutation(np.flatnonzero(split.labels == label))
        if len(places) < 2:
            raise DataError(f"class {label}: expected two images or more, of which one is held out for the test split")
        test[places[: max(1, round(HELD_OUT * len(places)))]] = True
    return split.take(~test), split.take(test)
