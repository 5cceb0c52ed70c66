"""Sets prepared by tensorflow-datasets, read without TensorFlow and cached as plain arrays."""

import os
import stat
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np

from robgrad.data.images import DataError, Dataset, Split

# What reading a damaged archive of arrays may raise.
DAMAGE = (
    *(OSError, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError, MemoryError, OverflowError),
    *(struct.error, zipfile.BadZipFile, zlib.error),
)


def load(name: str, data_dir: Path, near: str = "") -> Dataset:
    """Reads a TFDS image set, `near` being what to say of names like this one where there is none such.

    Raises:
      DataError: if it is not there and cannot be downloaded, or is no set of labelled images of one shape.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(f"{name}: reading TFDS sets needs the extra 'data': pip install '.[data]'") from error

    ways = (
        "name another directory by --data_dir or TFDS_DATA_DIR, or install the extra that downloads it, "
        "`pip install '.[prepare]'` in the checkout, and run again"
    )
    if data_dir.exists() and not (data_dir.is_dir() and os.access(data_dir, os.R_OK | os.X_OK)):
        raise DataError(f"{data_dir}: expected a readable TFDS data directory; {ways}")
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        expected = "expected 'digits', the TFDS name of an image set, or the path of an .npz file"
        raise DataError(f"unknown data set '{name}': {expected}{near}") from error
    except ImportError as error:
        raise DataError(f"{name}: its description needs TensorFlow: pip install '.[prepare]'") from error
    # What is known before anything is downloaded is refused before.
    expected = f"{name}: expected an image classification set with splits 'train' and 'test'"
    keys, features = builder.info.supervised_keys, dict(builder.info.features.items())
    image = features.get(keys[0]) if keys else None
    if not isinstance(image, tfds.features.Image) or (builder.info.splits and "test" not in builder.info.splits):
        raise DataError(expected)
    if not builder.is_prepared():
        if None in image.shape:
            raise DataError(
                f"{name}: expected images of one shape, got {image.shape}; bring them to one size and name an .npz file"
            )
        _download(builder, f"{name}: not found in {data_dir}: expected {builder.data_path}{near}; {ways}")
        if "test" not in builder.info.splits:
            raise DataError(expected)
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
    """Reads a split from its cache of decoded arrays, or decodes it and writes the cache.

    The cache says what it was decoded from, and has checksums: another set's, or a damaged one, is replaced.
    """
    file, source = f"robgrad-{split}.npz", _source(builder, split)
    beside = Path(builder.data_path)
    fallback = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "robgrad", *beside.parts[-2:])
    for directory in (beside, fallback):
        try:
            with np.load(directory / file, allow_pickle=False) as cached:
                if cached.zip.testzip() is None and str(cached["source"]) == source:
                    return Split(cached["images"], cached["labels"])
        except DAMAGE:
            continue
    try:
        rows = builder.as_data_source(split)
        examples = [(example[image_key], example[label_key]) for example in rows]
        images = np.stack([image for image, _ in examples])
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{builder.data_path}: cannot read split '{split}' as images of one shape ({reason}); "
            "expected a set prepared as array_record: prepare it again"
        ) from error
    decoded = Split(images, np.array([label for _, label in examples], np.int32))
    for directory in (beside, fallback):
        if _write(directory / file, decoded, source):
            break
    return decoded


def _source(builder, split: str) -> str:
    """What a split's cache is of: the set, its version, and the size of each of its files."""
    files = sorted(Path(builder.data_path).glob(f"*-{split}.*-of-*"))
    sizes = ", ".join(f"{path.name} {path.stat().st_size}" for path in files)
    return f"{builder.info.full_name} {split} {builder.info.splits[split].num_examples}: {sizes}"


def _write(path: Path, split: Split, source: str) -> bool:
    """Writes atomically; leaves a directory that carries no write permission alone, even as root."""
    try:
        if path.parent.name and not path.parent.exists():
            path.parent.mkdir(parents=True)
        if not path.parent.stat().st_mode & stat.S_IWUSR:
            return False
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
            try:
                np.savez(file, images=split.images, labels=split.labels, source=source)
            except OSError:
                os.unlink(file.name)
                raise
        # Others who share the data may read it.
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
    except OSError:
        return False
    return True
