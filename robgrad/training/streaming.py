"""Training data that memory does not hold: read while training goes on, in the order that data in memory would have."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robgrad.data import DataError, Split
from robgrad.data.checks import checked_split

# Bytes of examples that are on the device at a time; as many are being read meanwhile.
BLOCK_BYTES = 2**27
_THREADS = 16


class Block(NamedTuple):
    """The examples of some steps.

    Attributes:
      first: number of the first step.
      steps: how many steps they are of.
      table: the examples, stacked.
      places: which of them each replica takes, in its order, `[S, examples]`; None where the step says.
    """

    first: int
    steps: int
    table: Any = None
    places: np.ndarray | None = None


def is_source(data: Any) -> bool:
    """Whether data are read by index, one example at a time, as a `grain.MapDataset` or a list of examples."""
    if isinstance(data, tuple | Mapping | str) or hasattr(data, "shape"):
        return False
    return hasattr(data, "__len__") and hasattr(data, "__getitem__")


def example(source: Any, index: int) -> Any:
    """One example of a source as a row of what `fit` takes: of an image and a label a `data.Split` of them."""
    row = source[index]
    if isinstance(row, Mapping) and {"image", "label"} <= row.keys():
        row = row["image"], row["label"]
    return Split(*row) if type(row) is tuple and len(row) == 2 else row


def blocks(source: Any, keys: jax.Array, batch_size: int, steps: int, shuffle: bool, done: int) -> Iterator[Block]:
    """Reads the examples of all steps that are left, in threads of Grain's, ahead of what is asked for.

    Each epoch's order is that of data in memory: drawn from the replica's key and the epoch's number. What several
    replicas see alike, as those of one key do, is read once.

    Args:
      source: of examples, see `is_source`.
      keys: of the stack's replicas, `[S]`.
      batch_size: examples a step.
      steps: of the whole training.
      shuffle: a new order each epoch.
      done: steps that have been taken.

    Raises:
      DataError: if Grain is missing, or, where examples are images and labels, if they are not what `data.check` wants.
    """
    try:
        import grain  # Not among what robgrad installs.
    except ImportError as error:
        raise DataError("data that are read by index need Grain: pip install grain, or the extra '.[grain]'") from error
    per_epoch, row = len(source) // batch_size, example(source, 0)
    size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(row))
    every = np.asarray(jax.random.key_data(keys)).reshape(len(keys), -1)
    _, firsts, own = np.unique(every, axis=0, return_index=True, return_inverse=True)
    most = max(1, BLOCK_BYTES // max(1, size * batch_size * len(firsts)))
    # Blocks of nearly one length, so that little is read twice to fill the last of an epoch.
    length = -(-per_epoch // -(-per_epoch // most))

    @lru_cache(maxsize=2 * len(firsts))
    def order(index: int, epoch: int) -> np.ndarray:
        if not shuffle:
            return np.arange(len(source))
        return np.asarray(jax.random.permutation(jax.random.fold_in(keys[index], epoch), len(source)))

    starts, at = [], done
    while at < steps:
        taken = min(length - at % per_epoch % length, per_epoch - at % per_epoch)
        starts.append((at, taken))
        at += taken
    width = length * batch_size

    class Rows:
        """Which example comes when, whatever block it is of."""

        def __len__(self) -> int:
            return len(starts) * len(firsts) * width

        def __getitem__(self, index: int) -> int:
            block, rest = divmod(int(index), len(firsts) * width)
            which, place = divmod(rest, width)
            first, taken = starts[block]
            place = min(place, taken * batch_size - 1)
            return int(order(int(firsts[which]), first // per_epoch)[first % per_epoch * batch_size + place])

    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=len(firsts) * width)
    read = grain.MapDataset.source(Rows()).map(lambda row: example(source, row)).to_iter_dataset(options)
    tables = iter(read.batch(len(firsts) * width))
    places = own.reshape(-1, 1) * width + np.arange(width)
    for first, taken in starts:
        yield Block(first, taken, _checked(next(tables)), places.astype(np.int32))


def _checked(table: Any) -> Any:
    if not (hasattr(table, "images") and hasattr(table, "labels")):
        return jax.tree.map(jnp.asarray, table)
    split = checked_split(Split(table.images, table.labels), None, "data", as_images=False)
    return table._replace(images=split.images, labels=split.labels)
