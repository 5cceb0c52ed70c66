"""Flags: which data set and preset, and one flag for each number of a configuration.

An experiment calls `define` with its configuration when it is imported, and `from_flags` when it runs.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from absl import flags

from experiments import presets
from robgrad import attacks, datasets, losses

flags.DEFINE_string("dataset", "digits", "'digits' (embedded), the TFDS name of an image set, or the path of an .npz.")
flags.DEFINE_string("data_dir", None, "TFDS data directory. Default: $TFDS_DATA_DIR, then ~/tensorflow_datasets.")
flags.DEFINE_enum("preset", "quick", ["quick", "paper"], "Sizes: 'quick' for two CPU cores, or the paper's.")

FLAGS = flags.FLAGS
C = TypeVar("C", bound=presets.Config)

_HELP = {
    "held_out": "Training images left out at the start of the split.",
    "train_examples": "Training images used, after those held out.",
    "test_examples": "Test images analysed.",
    "norms": "Norms of adversarial training, of l2 and linf.",
    "train_losses": "Losses of the training attacks, of xent and cw.",
    "l2_epsilons": "Radii of l2 adversarial training, pixel range 2.",
    "linf_epsilons": "Radii of l-inf adversarial training, pixel range 2.",
    "l2_step_size": "Step of the l2 training attack.",
    "linf_step_size": "Step of the l-inf training attack.",
    "attack_steps": "Steps of the training attack.",
    "standard_epochs": "Epochs of the standard classifier.",
    "epochs": "Epochs of each robust classifier.",
    "batch_size": "Batch of each classifier.",
    "vae_gan_epochs": "Epochs of the VAE-GAN.",
    "vae_gan_batch_size": "Batch of the VAE-GAN.",
    "vae_gan_learning_rate": "Learning rate of the three Adams of the VAE-GAN.",
    "reconstruction_weight": "Weight lambda of the reconstruction in the decoder's loss.",
    "robust_epsilon": "Radius of the l2 xent attack behind robust_accuracy.",
    "analysis_epsilon": "Radius of the l2 attack whose distance to the manifold is measured.",
    "learning_rate": "Learning rate of the classifiers' Adam.",
    "discriminator_steps": "Discriminator steps a step of the VAE-GAN.",
    "robust_step_size": "Step of the attack behind robust_accuracy.",
    "robust_steps": "Steps of the attack behind robust_accuracy.",
    "analysis_losses": "Losses of the analysis attacks, of xent and cw.",
    "analysis_step_size": "Step of the analysis attack.",
    "analysis_steps": "Steps of the analysis attack.",
    "shuffle": "Shuffle each epoch; --noshuffle as the paper's code.",
    "zero_mask": "CW margins that set the true logit to 0 instead of leaving it out, as the paper's code.",
    "sampled_projection": "Sample the code when projecting instead of taking its mean, as the paper's code.",
    "chunk": "Images analysed at a time.",
    "epsilons": "How many of each norm's radii are used, evenly thinned down from the largest.",
    "percentiles": "Shares of pixels that ROAR removes and KAR keeps, in percent.",
    "seeds": "Retrainings of each method, percentile and benchmark.",
    "retraining_epochs": "Epochs of each retraining.",
    "retraining_batch_size": "Batch of each retraining.",
    "random_ranking": "Random ranks the pixels at random instead of tossing a coin for each, as the paper.",
    "own_mean": "Fill with each image's own mean colour instead of the data set's.",
}
_CHOICES = {"norms": tuple(attacks.NORMS), "train_losses": presets.LOSSES, "analysis_losses": presets.LOSSES}
_NUMBERS = ("l2_epsilons", "linf_epsilons", "percentiles")
_MAY_BE_ZERO = ("held_out", "l2_epsilons", "linf_epsilons", "robust_epsilon", "analysis_epsilon")


def _define(name: str, kind: type) -> None:
    text = f"{_HELP[name]} Default: the preset's."
    if name in _CHOICES:
        flags.DEFINE_list(name, None, text)
        choices = _CHOICES[name]
        flags.register_validator(
            name,
            lambda values: (
                values is None
                or (bool(values) and len(set(values)) == len(values) <= len(choices) and {*values} <= {*choices})
            ),
            f"expected some of {', '.join(choices)}, each once, separated by commas",
        )
    elif name in _NUMBERS:
        flags.DEFINE_list(name, None, text)
        check, expected = (_are_shares, "> 0 and < 100") if name == "percentiles" else (_are_radii, ">= 0")
        flags.register_validator(name, check, f"expected different finite numbers {expected}, separated by commas")
    elif kind is bool:
        flags.DEFINE_bool(name, None, text)
    elif kind is int:
        flags.DEFINE_integer(name, None, text, lower_bound=0 if name in _MAY_BE_ZERO else 1)
    else:
        flags.DEFINE_float(name, None, text)
        zero = name in _MAY_BE_ZERO
        flags.register_validator(
            name,
            lambda value: value is None or (np.isfinite(value) and (value > 0 or (zero and value == 0))),
            f"expected a finite number {'>= 0' if zero else '> 0'}",
        )


def _are_radii(values: Sequence[str] | None) -> bool:
    if values is None:
        return True
    try:
        radii = [float(value) for value in values]
    except ValueError:
        return False
    return len(set(radii)) == len(radii) > 0 and all(np.isfinite(radius) and radius >= 0 for radius in radii)


def _are_shares(values: Sequence[str] | None) -> bool:
    return values is None or (_are_radii(values) and all(0 < float(value) < 100 for value in values))


def define(config: type[presets.Config]) -> None:
    """Defines a flag for each number of a configuration that has none yet."""
    for field in dataclasses.fields(config):
        if field.name in _HELP and field.name not in FLAGS:
            _define(field.name, field.type)  # type: ignore[arg-type]


def from_flags(config: type[C], tables: Mapping[str, Mapping[str, Any]], dataset: datasets.Dataset) -> C:
    """The preset for a loaded data set, with what the flags override.

    Raises:
      flags.IllegalFlagValueError: if there is no such preset, or a value does not fit the data set.
    """
    names = [field.name for field in dataclasses.fields(config) if field.name in _HELP]
    given: dict[str, Any] = {name: FLAGS[name].value for name in names if FLAGS[name].value is not None}
    for name, value in given.items():
        if isinstance(value, list):
            given[name] = tuple(sorted(map(float, value)) if name in _NUMBERS else value)
    common = {"dataset": dataset.name, "preset": FLAGS.preset, "seed": FLAGS.seed}
    common["matmul_precision"] = FLAGS.matmul_precision
    made = config(**common, **_preset(tables[FLAGS.preset], dataset) | given)
    available = len(dataset.train.labels) - made.held_out
    _check("train_examples", made.train_examples, available, f"{dataset.name} has {available} left to train on")
    tests = len(dataset.test.labels)
    _check("test_examples", made.test_examples, tests, f"{dataset.name} has {tests}")
    for name in names:
        if name.endswith("batch_size"):
            _check(name, getattr(made, name), made.train_examples, f"--train_examples is {made.train_examples}")
    return made


def _preset(table: Mapping[str, Any], dataset: datasets.Dataset) -> dict[str, Any]:
    """The named preset; for another data set of a size that the paper has, the quick one of that size."""
    if dataset.name in table:
        return table[dataset.name]
    if FLAGS.preset == "paper":
        raise flags.IllegalFlagValueError(
            f"--preset=paper: expected --dataset to be one of {', '.join(table)}, got {dataset.name}; "
            "use --preset=quick"
        )
    match dataset.train.images.shape[1:]:
        case (8, 8, 1):
            preset = table["digits"]
        case (28, 28, 1):
            preset = table["fashion_mnist"] | {"held_out": 0}
        case (32, 32, _):
            preset = table["cifar10"]
        case shape:
            raise flags.IllegalFlagValueError(
                f"--dataset={dataset.name}: expected images of 8x8x1, 28x28x1 or 32x32xC pixels, got "
                f"{'x'.join(map(str, shape))}; use robgrad as a library with a generative.VaeGan of that size"
            )
    return preset | {
        "train_examples": min(preset["train_examples"], len(dataset.train.labels)),
        "test_examples": min(preset["test_examples"], len(dataset.test.labels)),
    }


def _check(name: str, value: int, most: int, why: str) -> None:
    if value > most:
        raise flags.IllegalFlagValueError(f"--{name}={value}: expected at most {most} ({why})")


def label(dataset: str) -> str:
    """A data set's name as part of a directory's."""
    return Path(dataset).stem if datasets.is_file(dataset) else dataset


def workdir(experiment: str) -> Path:
    """The directory of the run: the flag's, or one named after what is run."""
    return Path(FLAGS.workdir or f"runs/{experiment}-{label(FLAGS.dataset)}-{FLAGS.preset}")


def subsets(config: presets.Config, dataset: datasets.Dataset) -> tuple[datasets.Split, datasets.Split]:
    """The training and test images that a run uses."""
    rows = slice(config.held_out, config.held_out + config.train_examples)
    train = datasets.Split(*(leaf[rows] for leaf in dataset.train))
    return train, datasets.Split(*(leaf[: config.test_examples] for leaf in dataset.test))


def losses_of(config: presets.Config, bound: float) -> dict[str, losses.Loss]:
    """Losses by name; the margin is bounded in training, unbounded in analysis to reach the end of the ball."""
    return {"xent": losses.cross_entropy, "cw": partial(losses.cw_margin, bound=bound, zero_mask=config.zero_mask)}


def blocks(examples: int, most: int = 1000) -> Iterator[np.ndarray]:
    """Index blocks of one size that cover `0..examples - 1`, the last filled up with the last index."""
    count = -(-examples // most)
    size = -(-examples // count)
    for block in range(count):
        yield np.minimum(np.arange(block * size, (block + 1) * size), examples - 1)
