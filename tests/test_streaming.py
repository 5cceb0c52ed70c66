"""Training data that are read by index: the same networks to the bit as from memory, whatever the blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robgrad import attacks, data, networks, stacking, training
from robgrad.training import streaming

grain = pytest.importorskip("grain", reason="needs Grain, the extra '.[grain]'")
MODEL, KEYS = networks.MLP((16,), 10), (0, 0, 1)
SIZES = training.StepSizes(jnp.array([0.0, 0.5, 1.0]), 0.2)
STEP = training.classifier_step(MODEL, attacks.pgd("l2", attacks.cross_entropy, 2))


class Rows:
    """Examples by index, which counts how many are read."""

    def __init__(self, split):
        self.split, self.reads = split, 0

    def __len__(self):
        return len(self.split.labels)

    def __getitem__(self, index):
        self.reads += 1
        return {"image": self.split.images[index], "label": self.split.labels[index]}


@pytest.fixture(scope="module")
def some(digits):
    return data.Split(*(leaf[:210] for leaf in digits.train))


def fitted(examples, **options):
    start = stacking.stack([training.init_classifier(MODEL, (8, 8, 1), jax.random.key(seed)) for seed in KEYS])
    given = {"states": start, "epochs": 2, "batch_size": 20} | options
    return training.fit(STEP, given.pop("states"), SIZES, examples, **given)


def alike(one, other):
    assert all(map(np.array_equal, jax.tree.leaves(one.variables), jax.tree.leaves(other.variables)))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("steps", [3, 100])
def test_as_from_memory_to_the_bit(some, shuffle, steps, monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 68 * 20 * 2 * steps)
    want = fitted(some, shuffle=shuffle)
    pairs = [(image, label) for image, label in zip(*some, strict=True)]
    for source in (Rows(some), grain.MapDataset.source(Rows(some)), pairs):
        alike(fitted(source, shuffle=shuffle), want)


def test_goes_on_within_an_epoch(some, monkeypatch):
    """Stopped after a few steps, in the middle of a block, and begun again from those states."""
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 68 * 20 * 2 * 4)
    halfway = []
    checkpoints = training.Checkpoints(lambda states: halfway.append(jax.tree.map(jnp.copy, states)), steps=6)
    with pytest.raises(training.StoppedError):
        fitted(Rows(some), checkpoints=checkpoints, stop=lambda: bool(halfway))
    # Blocks end at steps 4, 8 and 10 of each epoch of ten.
    assert int(halfway[0].step[0]) == 6
    alike(fitted(Rows(some), states=halfway[0]), fitted(some))


def test_what_replicas_see_alike_is_read_once(some):
    source = Rows(some)
    fitted(source, epochs=1)
    # Two keys of three replicas, 10 steps of 20; one more to see what an example is.
    assert source.reads == 2 * 200 + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda split: (split.images * 1.0, split.labels), r"expected floating-point images in \[-1.0, 1.0\]"),
        (lambda split: (split.images, split.labels - 10), "expected labels of 0 and above"),
    ],
)
def test_examples_are_checked_as_they_come(some, change, message):
    with pytest.raises(data.DataError, match=message):
        fitted(Rows(data.Split(*change(some))))


def test_a_source_is_not_split_over_devices(some):
    with pytest.raises(ValueError, match="expected data in memory"):
        fitted(Rows(some), shard_data=True)
